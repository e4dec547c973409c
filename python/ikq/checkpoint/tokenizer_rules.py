"""What the usual `tokenizer.json` do besides their vocabulary, read off their descriptions.

The `tokenizers` library, which answers the same questions for all of them, takes several MiB of memory. Where
a description is not one of those that are understood here, these functions say so and the library is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ikq.tokenizer.pre_tokenizers import PRE_TOKENIZERS

__all__ = ["ends", "pre_name"]

# another name, which comes first, does the same with other patterns
_ALIKE = PRE_TOKENIZERS["bailingmoe"].patterns


def pre_name(whole: Mapping[str, Any], *, whole_words: bool, add_bos: bool) -> str | None:
    """The name in `PRE_TOKENIZERS` of a pre-tokenizer with the same patterns; None where it takes trying.

    Args:
        whole: the tokenizer's object.
        whole_words: whether a piece that is a token is taken as it is (`ignore_merges`).
        add_bos: whether prompts begin with BOS; tells rules apart that differ in nothing else.
    """
    patterns = _patterns(whole.get("pre_tokenizer"))
    names = [
        name
        for name, rule in PRE_TOKENIZERS.items()
        if not rule.raw and rule.whole_words == whole_words and rule.patterns == patterns
    ]
    if not names or patterns == _ALIKE:
        return None
    return next((n for n in names if PRE_TOKENIZERS[n].add_bos == add_bos), names[0])


def _patterns(rule: object) -> tuple[str, ...] | None:
    """The patterns of a sequence of splits before bytes; None for anything else."""
    steps = rule.get("pretokenizers") if isinstance(rule, dict) and rule.get("type") == "Sequence" else None
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        return None
    *splits, last = steps
    if (last.get("type"), last.get("add_prefix_space"), last.get("use_regex")) != ("ByteLevel", False, False):
        return None
    found: list[str] = []
    for step in splits:
        pattern = step.get("pattern")
        is_usual = (step.get("type"), step.get("behavior"), step.get("invert")) == (
            "Split",
            "Isolated",
            False,
        )
        if not is_usual or not isinstance(pattern, dict) or not isinstance(pattern.get("Regex"), str):
            return None
        found.append(pattern["Regex"])
    return tuple(found)


def ends(whole: Mapping[str, Any]) -> tuple[int | None, int | None] | None:
    """Tokens that are put before and behind a text; None where it takes trying."""
    if whole.get("truncation") is not None or whole.get("padding") is not None:
        return None
    after = whole.get("post_processor")
    steps: object = [after]
    if isinstance(after, dict) and after.get("type") == "Sequence":
        steps = after.get("processors")
    try:
        found = [e for e in map(_ends_of_step, steps if isinstance(steps, list) else ["?"]) if e is not None]
    except _UnknownError:
        return None
    if len(found) > 1:
        return None
    return found[0] if found else (None, None)


class _UnknownError(Exception):
    """A step that is not understood."""


def _ends_of_step(step: object) -> tuple[int | None, int | None] | None:
    """What a step puts before and behind a text; None for one that never adds anything."""
    if step is None or (isinstance(step, dict) and step.get("type") == "ByteLevel"):
        return None
    if not isinstance(step, dict) or step.get("type") != "TemplateProcessing":
        raise _UnknownError
    single, table = step.get("single"), step.get("special_tokens")
    if not isinstance(single, list) or not isinstance(table, dict):
        raise _UnknownError
    pieces = [_special(table, piece) for piece in single]
    if pieces.count(None) != 1:
        raise _UnknownError
    return pieces[0], pieces[-1]


def _special(table: Mapping[str, Any], piece: object) -> int | None:
    """The token that a piece of a template stands for; None for the text."""
    if isinstance(piece, dict) and len(piece) == 1:
        text, own = piece.get("Sequence"), piece.get("SpecialToken")
        if isinstance(text, dict) and text.get("id") == "A":
            return None
        entry = table.get(str(own.get("id"))) if isinstance(own, dict) else None
        ids = entry.get("ids") if isinstance(entry, dict) else None
        if isinstance(ids, list) and len(ids) == 1 and type(ids[0]) is int:
            return ids[0]
    raise _UnknownError
