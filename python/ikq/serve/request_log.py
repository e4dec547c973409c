"""A line per request: `Record`, `log_line`."""

from __future__ import annotations

import json
import logging
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from ikq.serve.events import Usage

__all__ = ["CURRENT", "LOG", "Record", "log", "note_error"]

LOG = logging.getLogger("ikq.serve")
"""Where lines go; `ikq serve` shows them on standard error."""


@dataclass
class Record:
    """What is to be said of a request.

    Attributes:
        method: Of HTTP.
        path: Without what comes after `?`, which may hold secrets.
        client: Who asks: an address, or a key that nobody can read.
        status: Of the response; 499: the client went away before it.
        began: When.
        models: Names of the models that answered.
        usages: Tokens and seconds of what they answered.
        error: What the client was told.
        id: A name that the client is told too.
    """

    method: str
    path: str
    client: str
    status: int = 0
    began: float = field(default_factory=time.perf_counter)
    models: list[str] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    error: str | None = None
    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")


CURRENT: ContextVar[Record | None] = ContextVar("CURRENT", default=None)
"""The request that the running task answers."""


def note_error(sentence: str) -> None:
    """Notes what the client of the request is told that the running task answers."""
    record = CURRENT.get()
    if record is not None:
        record.error = sentence


def log(record: Record, *, as_json: bool) -> None:
    """Writes the line of a request that is over."""
    seconds = time.perf_counter() - record.began
    facts: dict[str, object] = {
        "client": record.client,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "seconds": round(seconds, 3),
    }
    if record.models:
        facts["model"] = record.models[-1]
    if record.usages:
        facts |= _tokens(record.usages)
    if record.error:
        facts["error"] = record.error
    if as_json:
        LOG.info(json.dumps({"time": round(time.time(), 3), "id": record.id, **facts}, ensure_ascii=False))
        return
    head = f"{record.client} {record.method} {_one_line(record.path)} {record.status} {seconds:.3f} s"
    rest = [f"{name} {value}" for name, value in facts.items() if name in _SHOWN]
    error = [_one_line(record.error)] if record.error else []
    LOG.info(", ".join([head, *rest, *error]))


_SHOWN = (
    "model",
    "prompt",
    "cached",
    "chosen",
    "queue_seconds",
    "prompt_per_second",
    "chosen_per_second",
    "drafted",
    "accepted",
)


def _tokens(usages: list[Usage]) -> dict[str, object]:
    """Tokens of all replies together, and speeds."""
    prompt = sum(u.n_prompt for u in usages)
    cached = sum(u.n_cached for u in usages)
    chosen = sum(u.n_completion for u in usages)
    prompt_seconds = sum(u.prompt_seconds for u in usages)
    chosen_seconds = sum(u.completion_seconds for u in usages)
    facts: dict[str, object] = {"prompt": prompt, "cached": cached, "chosen": chosen}
    facts["queue_seconds"] = round(max(u.queue_seconds for u in usages), 3)
    if prompt_seconds:
        facts["prompt_per_second"] = round((prompt - cached) / prompt_seconds, 1)
    if chosen_seconds:
        facts["chosen_per_second"] = round((chosen - len(usages)) / chosen_seconds, 1)
    if drafted := sum(u.n_drafted for u in usages):
        facts |= {"drafted": drafted, "accepted": sum(u.n_accepted for u in usages)}
    return facts


def _one_line(text: str) -> str:
    """A text that cannot pretend to be another line."""
    return text.encode("unicode_escape").decode()[:200]
