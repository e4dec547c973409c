"""Responses that later ones go on from: `ResponseStore`."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ikq.serve.errors import ServiceError

__all__ = ["ResponseStore", "Stored"]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A response that is kept.

    Attributes:
        response: As it was sent.
        messages: The conversation up to its end, without instructions.
    """

    response: Mapping[str, Any]
    messages: Sequence[Mapping[str, Any]]


class ResponseStore:
    """Keeps responses in memory; those that were not used for longest go first.

    Args:
        max_responses: Most that are kept.
        max_bytes: Most bytes of them, as JSON.
    """

    def __init__(self, max_responses: int = 1024, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self._n_bytes = 0

    def put(self, id: str, stored: Stored) -> None:
        """Keeps a response, if it is not larger than all that may be kept."""
        n_bytes = len(json.dumps([stored.response, list(stored.messages)]))
        self.drop(id)
        self._kept[id] = (stored, n_bytes)
        self._n_bytes += n_bytes
        while self._n_bytes > self._max_bytes or len(self._kept) > self._max_responses:
            self.drop(next(iter(self._kept)))

    def get(self, id: str, parameter: str | None = None) -> Stored:
        """A response that was kept.

        Args:
            id: Its name.
            parameter: The field that names it, for the error.

        Raises:
            ServiceError: it was not kept, or not long enough.
        """
        if id not in self._kept:
            raise ServiceError(
                "not_found" if parameter is None else "invalid_request",
                f"Response with id '{id}' not found: it was not stored, or others have taken its place. "
                "Send the whole conversation as `input`.",
                parameter=parameter,
                code=None if parameter is None else "previous_response_not_found",
            )
        self._kept.move_to_end(id)
        return self._kept[id][0]

    def item(self, id: str, parameter: str) -> Mapping[str, Any]:
        """An item of the output of a response that was kept.

        Args:
            id: Its name, which has that of its response and its number in it.
            parameter: The field that names it, for the error.

        Raises:
            ServiceError: it was not kept, or not long enough.
        """
        response, _, _ = id.partition("_")[2].rpartition("_")
        kept = self._kept.get(f"resp_{response}")
        output: Sequence[Mapping[str, Any]] = [] if kept is None else kept[0].response["output"]
        found = next((item for item in output if item["id"] == id), None)
        if found is None:
            sentence = (
                f"Item with id '{id[:80]}' not found: its response was not stored, or others have taken its "
                "place. Send the item itself."
            )
            raise ServiceError("invalid_request", sentence, parameter=parameter)
        return found

    def drop(self, id: str) -> bool:
        """Forgets a response; says whether it was there."""
        found = self._kept.pop(id, None)
        self._n_bytes -= 0 if found is None else found[1]
        return found is not None
