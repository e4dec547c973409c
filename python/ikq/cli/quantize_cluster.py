"""`--cluster` of `ikq quantize`: the nodes of a Ray cluster do the work."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import ikq
from ikq.cli import cluster_options
from ikq.quantizing.options import QuantizeOptions
from ikq.quantizing.pipeline import QuantizePlan, QuantizeResult

__all__ = ["add_options", "check", "runner"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    cluster_options.add_options(parser).add_argument(
        "--shared-output",
        action="store_true",
        help="nodes write into the output themselves, which all of them see under the same or a mapped path",
    )


def check(args: argparse.Namespace) -> None:
    """Refuses options that do not go together, and addresses that are none.

    Raises:
        ikq.errors.RefusedError: As said.
    """
    cluster_options.check(args)
    if args.shared_output and args.cluster is None:
        raise ikq.RefusedError("--shared-output is for --cluster")
    if args.sequential and args.cluster is not None:
        raise ikq.RefusedError("--sequential works on one machine; leave --cluster out")


def runner(
    args: argparse.Namespace, plan: QuantizePlan, type_name: str, options: QuantizeOptions
) -> Callable[..., QuantizeResult]:
    """What carries the plan out: this machine, or the nodes of a cluster."""
    if args.cluster is None:
        return plan.run
    from ikq.cluster import quantize_on_cluster

    return functools.partial(
        quantize_on_cluster,
        plan,
        type_name,
        args.cluster,
        path_map=args.path_map,
        shared_output=args.shared_output,
        **options,
    )
