"""A `ServiceError` in the form of OpenAI's APIs."""

from __future__ import annotations

from typing import Any

from ikq.serve.endpoint import ErrorForm
from ikq.serve.errors import ErrorKind, ServiceError

__all__ = ["OPENAI_ERRORS", "error_object"]

# what is none of these is a mistake of the request
_TYPES: dict[ErrorKind, str] = {
    "permission": "permission_error",
    "overloaded": "rate_limit_error",
    "timeout": "timeout_error",
    "unavailable": "server_error",
    "internal": "server_error",
}

_CODES: dict[ErrorKind, str] = {
    "context_length": "context_length_exceeded",
    "authentication": "invalid_api_key",
    "not_found": "not_found",
    "not_allowed": "method_not_supported",
    "overloaded": "rate_limit_exceeded",
    "too_large": "request_too_large",
    "unsupported": "unsupported_parameter",
    "unloadable": "model_not_loadable",
}


def error_object(error: ServiceError) -> dict[str, Any]:
    """The body of a response, or an event of a stream."""
    return {
        "error": {
            "message": error.sentence,
            "type": _TYPES.get(error.kind, "invalid_request_error"),
            "param": error.parameter,
            "code": _code(error),
            **error.facts,
        }
    }


def _code(error: ServiceError) -> str | None:
    if error.code is not None:
        return error.code
    if error.kind == "not_found" and error.parameter == "model":
        return "model_not_found"
    return _CODES.get(error.kind)


def _status(error: ServiceError) -> int:
    # a parameter that is not offered is a mistake of the request there
    return 400 if error.kind == "unsupported" else error.status


OPENAI_ERRORS = ErrorForm(status=_status, body=error_object)
