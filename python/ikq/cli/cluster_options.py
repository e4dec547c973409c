"""`--cluster` and `--path-map`, of verbs whose work several machines can share."""

from __future__ import annotations

import argparse

import ikq
from ikq.cluster.connect import check_address
from ikq.cluster.files import tokenizer_of
from ikq.cluster.paths import parse_path_rule

__all__ = ["add_options", "check", "tokenizer"]


def add_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options; the group that they are in."""
    group = parser.add_argument_group("several machines (docs/cluster.md)")
    group.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="let the nodes of a Ray cluster work: HOST:PORT of its head, or `local`",
    )
    group.add_argument(
        "--path-map",
        metavar="NODE:/HERE=/THERE",
        action="append",
        default=[],
        help="where a node has files of this machine, without NODE: every node; may be repeated",
    )
    return group


def check(args: argparse.Namespace) -> None:
    """Refuses addresses and paths that are none; `args.path_map` is a list of `PathRule` then.

    Raises:
        ikq.errors.RefusedError: As said.
    """
    if args.cluster is None:
        if args.path_map:
            raise ikq.RefusedError("--path-map is for --cluster")
        return
    if getattr(args, "lora", None):  # of verbs that load models as a whole
        raise ikq.RefusedError("--lora is not for --cluster: nodes load models as their files have them")
    check_address(args.cluster)
    args.path_map = [parse_path_rule(text) for text in args.path_map]


def tokenizer(args: argparse.Namespace, model: str) -> ikq.Tokenizer:
    """The tokenizer of a model that nodes load and this process does not."""
    return tokenizer_of(model, dict(args.override_kv))
