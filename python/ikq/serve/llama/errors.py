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
    kind = _TYPES.get(error.kind, "invalid_request_error")
    said = {"code": error.status, "message": error.sentence, "type": kind, "param": error.parameter}
    return {"error": {**said, **error.facts}}


LLAMA_ERRORS = ErrorForm(status=lambda error: error.status, body=error_object)
