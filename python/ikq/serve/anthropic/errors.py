"""A `ServiceError` in the form of the Messages API."""

from __future__ import annotations

from typing import Any

from ikq.serve.endpoint import ErrorForm
from ikq.serve.errors import ErrorKind, ServiceError

__all__ = ["ANTHROPIC_ERRORS", "error_object", "error_status"]

_FORMS: dict[ErrorKind, tuple[int, str]] = {
    "invalid_request": (400, "invalid_request_error"),
    "context_length": (400, "invalid_request_error"),
    "unloadable": (400, "invalid_request_error"),
    "unsupported": (400, "invalid_request_error"),
    "authentication": (401, "authentication_error"),
    "permission": (403, "permission_error"),
    "not_found": (404, "not_found_error"),
    "not_allowed": (405, "invalid_request_error"),
    "too_large": (413, "request_too_large"),
    "overloaded": (429, "rate_limit_error"),
    "internal": (500, "api_error"),
    "timeout": (504, "timeout_error"),
    "unavailable": (529, "overloaded_error"),
}


def error_object(error: ServiceError) -> dict[str, Any]:
    """The body of a response, or an event of a stream."""
    sentence = error.sentence
    if error.kind == "context_length":
        # by this beginning clients know that a shorter conversation would do
        sentence = f"prompt is too long: {sentence}"
    return {"type": "error", "error": {"type": _FORMS[error.kind][1], "message": sentence}}


def error_status(error: ServiceError) -> int:
    """The status of the response, as the original has it."""
    return _FORMS[error.kind][0]


ANTHROPIC_ERRORS = ErrorForm(status=error_status, body=error_object, id_header="request-id", has_id=True)
