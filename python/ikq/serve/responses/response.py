"""The object that a response is: `Response`."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from ikq.serve.events import Usage
from ikq.serve.requests import ChatRequest
from ikq.serve.responses.bodies import ResponsesBody

__all__ = ["Item", "Response", "Status"]

Item: TypeAlias = dict[str, Any]
"""An item of the output."""

Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed"]


class Response:
    """A response: what was asked, and what there is of the answer.

    Attributes:
        id: Its name.
        output: Items, the last of them perhaps unfinished.
        status: How far it is.
        incomplete_reason: Why it is incomplete.
        error: Why it failed: `code` and `message`.
    """

    def __init__(
        self, id: str, *, model: str, created: int, body: ResponsesBody, request: ChatRequest
    ) -> None:
        self.id = id if id.startswith("resp_") else f"resp_{id}"
        self.output: list[Item] = []
        self.status: Status = "in_progress"
        self.incomplete_reason: str | None = None
        self.error: dict[str, str] | None = None
        self._usage: dict[str, Any] | None = None
        self._asked = {"created_at": created, "model": model} | _asked(body, request)

    def end(
        self,
        status: Status,
        usage: Usage,
        *,
        incomplete_reason: str | None = None,
        error: dict[str, str] | None = None,
    ) -> None:
        """There will be no more of it.

        Args:
            status: How it ended.
            usage: All its tokens.
            incomplete_reason: Why it is incomplete.
            error: Why it failed: `code` and `message`.
        """
        self.status = status
        self.incomplete_reason = incomplete_reason
        self.error = error
        self._usage = {
            "input_tokens": usage.n_prompt,
            "input_tokens_details": {"cached_tokens": usage.n_cached, "cache_write_tokens": 0},
            "output_tokens": usage.n_completion,
            "output_tokens_details": {"reasoning_tokens": usage.n_reasoning},
            "total_tokens": usage.n_prompt + usage.n_completion,
        }

    def as_object(self) -> dict[str, Any]:
        """As JSON, now. Changes to the response do not change it."""
        reason = self.incomplete_reason
        return {
            "id": self.id,
            "object": "response",
            "status": self.status,
            "error": self.error,
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": [dict(item) for item in self.output],
            "usage": self._usage,
            **self._asked,
        }


def _asked(body: ResponsesBody, request: ChatRequest) -> dict[str, Any]:
    """The part of the object that repeats the request."""
    as_json = body.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": request.tool_choice.parallel,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None} | as_json.get("reasoning", {}),
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": request.sampling.temperature,
        "text": {"format": {"type": "text"}} | as_json.get("text", {}),
        "tool_choice": as_json.get("tool_choice", "auto"),
        "tools": as_json.get("tools", []),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": request.sampling.top_p,
        "truncation": "disabled",
    }
