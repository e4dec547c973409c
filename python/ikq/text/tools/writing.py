"""Calls as a model writes them: `written`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ikq.text.tools.spelling import JsonCalls, Spelling

__all__ = ["written"]


def written(spelling: Spelling, calls: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of calls.

    Args:
        spelling: How they are written.
        calls: In OpenAI's form.

    Returns:
        `None` for spellings that templates write themselves.
    """
    if not isinstance(spelling, JsonCalls):
        return None
    texts = [spelling.call[0] + _json_call(spelling, call) + spelling.call[1] for call in calls]
    before, after = spelling.section
    inner = spelling.between.join(texts)
    return f"{before}[{inner}]{after}" if spelling.is_list else f"{before}{inner}{after}"


def _json_call(spelling: JsonCalls, call: Mapping[str, Any]) -> str:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not spelling.name:
        return json.dumps({function["name"]: arguments}, ensure_ascii=False)
    fields = {spelling.name: function["name"], spelling.arguments: arguments}
    if spelling.id:
        fields[spelling.id] = call.get("id")
    return json.dumps(fields, ensure_ascii=False)
