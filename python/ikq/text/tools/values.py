"""Arguments between tags as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["as_json", "is_text", "nested_as_json"]


def is_text(parameters: Mapping[str, Any], key: str, said: Mapping[str, str | None]) -> bool:
    """Whether a value between tags is a text, and not JSON.

    Args:
        parameters: The function's, as a JSON schema.
        key: Name of the argument.
        said: What the tag itself says: `string` (`true` or `false`), or `type`.
    """
    if said.get("string") is not None:
        return said["string"] == "true"
    if said.get("type") is not None:
        return said["type"] == "string"
    properties = parameters.get("properties")
    schema = properties.get(key) if isinstance(properties, Mapping) else None
    if not isinstance(schema, Mapping):
        return False
    if schema.get("type") == "string":
        return True
    values = schema.get("enum")
    return "type" not in schema and isinstance(values, list) and all(isinstance(v, str) for v in values)


def as_json(text: str) -> str:
    """A value between tags as JSON: itself if it is JSON, otherwise a text."""
    stripped = text.strip()
    try:
        json.loads(stripped, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return json.dumps(text.strip("\n"), ensure_ascii=False)
    return stripped


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and the like, which are not JSON


def nested_as_json(text: str, mark: str, depth: int = 0) -> str:
    """A value whose parts have tags of their own as JSON.

    Args:
        text: `<x>1</x>` is an object, `<item>1</item><item>2</item>` a list, the mark before each tag.
        mark: What stands before each tag.
        depth: How deep in another value.
    """
    found = re.match(rf"\s*{re.escape(mark)}<([^<>/]+)>", text)
    if found is None or depth > 100:
        return as_json(text)
    parts: list[tuple[str, str]] = []
    while found is not None:
        name = found[1]
        begin, end, after = found.end(), *_closing(text, found.end(), mark, name)
        parts.append((name, nested_as_json(text[begin:end], mark, depth + 1)))
        text = text[after:]
        found = re.match(rf"\s*{re.escape(mark)}<([^<>/]+)>", text)
    if all(name == "item" for name, _ in parts):
        return "[" + ", ".join(value for _, value in parts) + "]"
    return "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in parts) + "}"


def _closing(text: str, at: int, mark: str, name: str) -> tuple[int, int]:
    """Begin and end of the tag that closes one of this name; the end of the text if none does."""
    open_, close = f"{mark}<{name}>", f"{mark}</{name}>"
    n = 1
    while (place := text.find(close, at)) >= 0:
        n += text.count(open_, at, place) - 1
        at = place + len(close)
        if n == 0:
            return place, at
    return len(text), len(text)
