"""A `ServiceError` in the form of OpenAI's APIs, which llama-server's own paths have as well."""

from __future__ import annotations

from typing import Any

from ikq.serve.endpoint import ErrorForm
from ikq.serve.errors import ErrorKind, ServiceError

__all__ = ["LLAMA_ERRORS", "OPENAI_ERRORS", "error_object"]

_TYPES: dict[ErrorKind, str] = {
    "invalid_request": "invalid_request_error",
    "context_length": "invalid_request_error",
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "not_found_error",
    "too_large": "invalid_request_error",
    "overloaded": "rate_limit_error",
    "timeout": "timeout_error",
    "unsupported": "not_supported_error",
    "unavailable": "unavailable_error",
    "unloadable": "invalid_request_error",
    "internal": "server_error",
}

_CODES: dict[ErrorKind, str] = {
    "context_length": "context_length_exceeded",
    "authentication": "invalid_api_key",
    "not_found": "not_found",
    "overloaded": "rate_limit_exceeded",
    "too_large": "request_too_large",
    "unloadable": "model_not_loadable",
}


def error_object(error: ServiceError) -> dict[str, Any]:
    """The body of a response, or an event of a stream."""
    return {
        "error": {
            "message": error.sentence,
            "type": _TYPES[error.kind],
            "param": error.parameter,
            "code": _CODES.get(error.kind),
        }
    }


def _status(error: ServiceError) -> int:
    # a parameter that is not offered is a mistake of the request there
    return 400 if error.kind == "unsupported" else error.status


OPENAI_ERRORS = ErrorForm(status=_status, body=error_object)
LLAMA_ERRORS = ErrorForm(status=lambda error: error.status, body=error_object)
