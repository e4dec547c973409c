"""`--cluster` of `ikq perplexity` and `ikq kld`: the nodes of a Ray cluster run the windows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import ikq
from ikq.cli.notes import note_on_stderr
from ikq.evaluate import Divergence, Perplexity, Windows

__all__ = ["check_writing", "divergences", "perplexities"]


def check_writing(args: argparse.Namespace) -> None:
    """Refuses base files, which one machine writes.

    Raises:
        RefusedError: as said.
    """
    if args.cluster is not None and args.kl_divergence_base:
        raise ikq.RefusedError("base files are written on one machine; leave --cluster out")


def perplexities(args: argparse.Namespace, load: dict[str, Any], windows: Windows) -> Iterator[Perplexity]:
    """As `measure_perplexity`, of the model that is named."""
    from ikq.cluster import perplexity_on_cluster

    return perplexity_on_cluster(args.model, windows, args.cluster, load=load, **_how(args))


def divergences(
    args: argparse.Namespace, load: dict[str, Any], base: str, windows: Windows | None
) -> Iterator[Divergence]:
    """As `measure_divergence`; from a base file, or from a model and the windows of a text."""
    from ikq.cluster import divergence_on_cluster

    return divergence_on_cluster(
        args.model, base, args.cluster, windows=windows, chunks=args.chunks, load=load, **_how(args)
    )


def _how(args: argparse.Namespace) -> dict[str, Any]:
    return {"path_map": args.path_map, "n_cpus": args.threads, "on_note": note_on_stderr}
