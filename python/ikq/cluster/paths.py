"""Where files of the driver lie on other nodes: `PathRule`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import PurePath
from typing import NamedTuple

from ikq.errors import RefusedError

__all__ = ["PathRule", "mapped", "parse_path_rule", "whole"]


class PathRule(NamedTuple):
    """Paths that begin with `here` begin with `there` on a node.

    Attributes:
        node: Address, host name or Ray's name of the node; `*` is every node.
        here: A folder or file as the driver has it.
        there: The same as the node has it.
    """

    node: str
    here: str
    there: str


def parse_path_rule(text: str) -> PathRule:
    """A rule from `NODE:HERE=THERE`, or `HERE=THERE` for every node.

    Raises:
        RefusedError: it is none, or its paths are not absolute.
    """
    head, equals, there = text.partition("=")
    node, here = (
        ("*", head) if head.startswith("/") else (head.partition(":/")[0], f"/{head.partition(':/')[2]}")
    )
    if not equals or not node or not there.startswith("/") or (":/" not in head and not head.startswith("/")):
        raise RefusedError(f"--path-map {text}: write NODE:/HERE=/THERE, with whole paths")
    return PathRule(node, here, there)


def mapped(path: str, rules: Iterable[PathRule], names: Collection[str]) -> str:
    """An absolute path of the driver as a node has it; the first rule for the node that fits decides.

    Args:
        path: the path.
        rules: what the user has said.
        names: of the node.
    """
    for rule in rules:
        if rule.node != "*" and rule.node not in names:
            continue
        try:
            rest = PurePath(path).relative_to(rule.here)
        except ValueError:
            continue
        return str(PurePath(rule.there) / rest)
    return path


def whole(path: str | os.PathLike[str]) -> str:
    """A path from the root, as rules have them: links in it stay what they are."""
    return os.path.abspath(path)  # noqa: PTH100
