"""`ServiceError`: why a request was not done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

__all__ = ["ErrorKind", "ServiceError"]

ErrorKind: TypeAlias = Literal[
    "invalid_request",
    "context_length",
    "authentication",
    "permission",
    "not_found",
    "not_allowed",
    "too_large",
    "overloaded",
    "timeout",
    "unsupported",
    "unavailable",
    "unloadable",
    "internal",
]

_STATUS: dict[ErrorKind, int] = {
    "invalid_request": 400,
    "context_length": 400,
    "authentication": 401,
    "permission": 403,
    "not_found": 404,
    "not_allowed": 405,
    "too_large": 413,
    "overloaded": 429,
    "timeout": 408,
    "unsupported": 501,
    "unavailable": 503,
    "unloadable": 422,
    "internal": 500,
}


class ServiceError(Exception):
    """A request that was not done, or not to its end. Each API writes it in its own form.

    Attributes:
        kind: What sort of reason.
        sentence: The reason, and the way out if there is one.
        parameter: Name of the request's field that is at fault, as the API calls it.
        retry_after: Seconds after which it may be tried again.
        code: OpenAI's word for it, where the kind alone does not say which.
        facts: Numbers that programs look for beside the sentence.
    """

    def __init__(
        self,
        kind: ErrorKind,
        sentence: str,
        *,
        parameter: str | None = None,
        retry_after: int | None = None,
        code: str | None = None,
        facts: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.kind: ErrorKind = kind
        self.sentence = sentence
        self.parameter = parameter
        self.retry_after = retry_after
        self.code = code
        self.facts = dict(facts or {})

    @property
    def status(self) -> int:
        """The status of the HTTP response."""
        return _STATUS[self.kind]
