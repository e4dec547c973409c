"""`--cluster` of `ikq imatrix`: the nodes of a Ray cluster run the chunks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ikq
from ikq.cli.notes import note_on_stderr
from ikq.cluster.sums import NodeSums
from ikq.evaluate import Windows
from ikq.statistics.calibrate import ChunksDone

__all__ = ["check", "collector_of", "steps_of"]


def check(args: argparse.Namespace) -> None:
    """Refuses what a cluster does not do.

    Raises:
        ikq.errors.RefusedError: As said.
    """
    if args.cluster is not None and args.covariance is not None:
        raise ikq.RefusedError("--covariance works on one machine; leave --cluster out")


def collector_of(args: argparse.Namespace) -> NodeSums:
    """What takes the statistics here; no model runs here."""
    return NodeSums(**_wishes(args))


def steps_of(
    args: argparse.Namespace, windows: Windows, load: dict[str, Any], collector: NodeSums
) -> Callable[..., Iterator[ChunksDone]]:
    """What runs the chunks: as `run_chunks`, of `first`, `losses` and `perplexity`."""
    from ikq.cluster.collecting import Collecting, collect_on_cluster
    from ikq.cluster.files import NodeFile, NodeModel

    def steps(*, first: int, losses: NDArray[np.float64], perplexity: bool) -> Iterator[ChunksDone]:
        job = Collecting(
            model=NodeModel(NodeFile.model(args.model), load, tuple(args.path_map)),
            collect=_wishes(args),
            windows=windows,
            perplexity=perplexity,
        )
        return collect_on_cluster(
            job,
            collector,
            args.cluster,
            first=first,
            losses=losses,
            n_cpus=args.threads,
            on_note=note_on_stderr,
        )

    return steps


def _wishes(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "all_experts": args.all_experts,
        "similarity": args.layer_similarity,
        "output": args.process_output,
    }
