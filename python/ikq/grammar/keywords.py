"""`GrammarKeywords`: the keywords of `Model.generate` and `Model.chat` that constrain the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from ikq.errors import UnsupportedError

if TYPE_CHECKING:
    from ikq.grammar.constraint import GrammarConstraint
    from ikq.tokenizer import Tokenizer

__all__ = ["GrammarKeywords", "constraint_of"]


class GrammarKeywords(TypedDict, total=False):
    """The form that a text must have; at most one of these may be given."""

    json_schema: Mapping[str, Any] | bool | None
    """JSON that is valid under this schema."""
    json_object: bool
    """A JSON object."""
    grammar: str | None
    """A text of this grammar, in llama.cpp's notation (GBNF)."""
    regex: str | None
    """A text that this regular expression matches as a whole."""
    lark: str | None
    """A text of this grammar, in Lark's notation."""


def constraint_of(tokenizer: Tokenizer | None, keywords: GrammarKeywords) -> GrammarConstraint | None:
    """The constraint that keywords ask for; `None` if they ask for none.

    Raises:
        GrammarError: it cannot be compiled; the message names the keyword and its place.
        UnsupportedError: llguidance is not installed, or the model has no tokenizer.
        ValueError: several are given.
    """
    given: dict[str, Any] = {
        k: v for k, v in keywords.items() if v is not None and not (k == "json_object" and not v)
    }
    if not given:
        return None
    if tokenizer is None:
        raise UnsupportedError(f"{' and '.join(given)}: the file has no tokenizer that could read it")
    from ikq.grammar.compiling import compile_constraint

    if "grammar" in given:
        given["gbnf"] = given.pop("grammar")
    return compile_constraint(tokenizer, **given)
