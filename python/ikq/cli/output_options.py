"""Options of verbs that write GGUF files: metadata, and how the output is split."""

from __future__ import annotations

import argparse

from ikq.cli.numbers import at_least, size

__all__ = ["add_output_options"]


def add_output_options(group: argparse._ActionsContainer) -> None:
    """Adds `--override-kv` and the options that split the output."""
    group.add_argument(
        "--override-kv",
        metavar="KEY=TYPE:VALUE",
        action="append",
        default=[],
        help="change metadata, TYPE is int, float, bool or str; may be repeated",
    )
    group.add_argument(
        "--split-max-size", metavar="N(M|G)", type=size, help="split into files of at most this size"
    )
    group.add_argument(
        "--split-max-tensors", metavar="N", type=at_least(1), help="split into files of at most N tensors"
    )
    group.add_argument(
        "--no-tensor-first-split", action="store_true", help="let the first of these files hold metadata only"
    )
