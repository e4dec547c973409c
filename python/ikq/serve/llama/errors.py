"""A `ServiceError` in the form of llama-server's own paths."""

from __future__ import annotations

from typing import Any

from ikq.serve.endpoint import ErrorForm
from ikq.serve.errors import ErrorKind, ServiceError

__all__ = ["LLAMA_ERRORS", "error_object"]

# what is none of these is a mistake of the request
_TYPES: dict[ErrorKind, str] = {
    "context_length": "exceed_context_size_error",
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "not_found_error",
    "overloaded": "unavailable_error",
    "timeout": "timeout_error",
    "unsupported": "not_supported_error",
    "unavailable": "unavailable_error",
    "internal": "server_error",
}


def error_object(error: ServiceError) -> dict[str, Any]:
    """The body of a response, or an event of a stream. `code` is the status; `param` is ours."""
    kind = "invalid_request_error" if _is_mistake(error) else _TYPES.get(error.kind, "invalid_request_error")
    said = {"code": _status(error), "message": error.sentence, "type": kind, "param": error.parameter}
    return {"error": {**said, **error.facts}}


def _is_mistake(error: ServiceError) -> bool:
    """Whether a field of the request is not offered; otherwise the path is not, as the server was started."""
    return error.kind == "unsupported" and error.parameter is not None


def _status(error: ServiceError) -> int:
    return 400 if _is_mistake(error) else error.status


LLAMA_ERRORS = ErrorForm(status=_status, body=error_object)
