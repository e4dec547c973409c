"""Recipe files, and the rules in them.

A recipe file has a rule `regex=type` per line (or several, with commas), blank lines, and comments behind
`#`. The first rule whose expression is found in a tensor's name gives it its type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ikq.arrays.quant_types import as_type
from ikq.errors import FormatError, RefusedError, UsageError
from ikq.files.text_files import read_lines
from ikq.quantizing.options import PathLike

__all__ = [
    "AFTER_SIGN",
    "RuleLine",
    "applicable_rules",
    "read_recipe",
    "read_rule_lines",
    "recipe_type",
]

_TYPE_COMMENT = re.compile(r"#\s*type:\s*(\S+)\s*$", re.IGNORECASE)
_FLOATS = ("F32", "F16", "BF16")


AFTER_SIGN = r"what follows # is a comment; in an expression write \x23 for that sign"
"""Said of a rule that is none because a comment cuts it."""


class RuleLine(NamedTuple):
    """A rule `regex=type` and the line of its file, counted from 1."""

    number: int
    rule: str


def read_recipe(path: PathLike) -> list[str]:
    """Rules `regex=type` of a recipe file; line ends of any system, and a byte order mark, do not matter.

    Raises:
        OSError: The file cannot be read.
        ikq.errors.FormatError: A file that is no text.
        ikq.errors.UsageError: A line that is no rule, or names an unknown type; says which line.
        ikq.errors.RefusedError: A file without a rule.
    """
    rules = [line.rule for line in read_rule_lines(path)]
    if not rules:
        raise RefusedError(f"{path} has no rule; a recipe has lines such as blk\\..*\\.attn_q=q6_k")
    return rules


def read_rule_lines(path: PathLike) -> list[RuleLine]:
    """As `read_recipe`, with the lines that rules are in; a file may have none."""
    rules: list[RuleLine] = []
    for number, line in enumerate(read_lines(path), 1):
        before, sign, _ = line.partition("#")
        text = before.strip().strip(",").strip()
        if not text:
            continue
        parts = [part.strip() for part in text.split(",") if part.strip()]
        listed = [_rule(part) for part in parts]
        if all(rule is not None for rule in listed):
            rules += [RuleLine(number, rule) for rule in listed if rule is not None]
        elif (whole := _rule(text)) is not None:
            rules.append(RuleLine(number, whole))
        else:
            hint = f" ({AFTER_SIGN})" if sign else ""
            raise UsageError(
                f"{path}, line {number}: {text!r} is not a rule REGEX=TYPE with a known type{hint}"
            )
    return rules


def _rule(text: str) -> str | None:
    pattern, equals, word = text.rpartition("=")
    if not (equals and pattern.strip()):
        return None
    try:
        return f"{pattern.strip()}={as_type(word.strip()).name.lower()}"
    except FormatError:
        return None


def recipe_type(path: PathLike) -> str | None:
    """The TYPE that a recipe names in a comment `# type: NAME`: what the file is said to be."""
    for line in read_lines(path):
        if found := _TYPE_COMMENT.match(line.strip()):
            return found[1]
    return None


def applicable_rules(rules: Sequence[str], kept: Iterable[str], others: Iterable[str]) -> list[str]:
    """Leaves out rules that only ask of norms and routers to be the floats that they are anyway.

    Recipes of other programs name all tensors, these as f32; to the quantizer such a rule fits nothing.

    Args:
        rules: `regex=type`.
        kept: Names of tensors that are never quantized.
        others: Names of all other tensors: a rule that fits one of them stays.
    """
    names, quantized = list(kept), list(others)
    out = []
    for rule in rules:
        pattern, _, word = rule.rpartition("=")
        if word.upper() in _FLOATS:
            try:
                found = re.compile(pattern).search
                if any(map(found, names)) and not any(map(found, quantized)):
                    continue
            except re.error:
                pass
        out.append(rule)
    return out
