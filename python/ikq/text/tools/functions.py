"""Functions that may be called, in OpenAI's form: `function_of`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ikq.errors import FormatError

__all__ = ["function_of", "parameters_of"]


def function_of(tool: object, i: int = 0) -> dict[str, Any]:
    """The function of a tool: `name` and `parameters`, and what else it has.

    Args:
        tool: In OpenAI's form: a function, or one with `{"type": "function", "function": ...}` around it.
        i: Which of the tools, for errors.

    Raises:
        FormatError: it has no name, or its parameters are no schema.
    """
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise FormatError(f"tools[{i}] is no function with a name")
    parameters = inner.get("parameters") or {"type": "object"}
    if not isinstance(parameters, Mapping) or not isinstance(parameters.get("properties", {}), Mapping):
        raise FormatError(f"tools[{i}]: the parameters are no JSON schema of an object")
    return {**inner, "parameters": dict(parameters)}


def parameters_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each function's arguments, by the function's name.

    Raises:
        FormatError: as `function_of`.
    """
    functions = [function_of(tool, i) for i, tool in enumerate(tools)]
    return {f["name"]: f["parameters"] for f in functions}
