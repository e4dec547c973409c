"""Tools told in a system message, where the template has no place for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ikq.text.templates.abilities import Abilities
from ikq.text.tools.json_reply import told

__all__ = ["needs_telling", "with_tools"]


def needs_telling(
    abilities: Abilities, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> bool:
    """Whether there are tools, or calls and results, that the template has no place for."""
    if abilities.tools:
        return False
    if tools:
        return True
    has_calls = any(isinstance(m, Mapping) and m.get("tool_calls") for m in messages)
    has_results = any(isinstance(m, Mapping) and m.get("role") in ("tool", "function") for m in messages)
    return (has_calls and abilities.calls is None) or (has_results and not abilities.results)


def with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """With the system message that tells tools, behind those that are there."""
    given = list(messages)
    n = next((i for i, m in enumerate(given) if not _is_system(m)), len(given))
    return [*given[:n], {"role": "system", "content": told(tools)}, *given[n:]]


def _is_system(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") in ("system", "developer")
