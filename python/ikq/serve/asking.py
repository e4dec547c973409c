"""`Asker`: who asks, and until when they wait."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

from ikq.serve.errors import ServiceError
from ikq.serve.request_log import CURRENT

__all__ = ["Asker", "current_asker", "within"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Whoever waits for something.

    Attributes:
        client: A name of who it is. Clients take turns.
        request: What tells the request from others of the client, which take turns as well.
        deadline: When it ends as an error, as `time.perf_counter` counts.
        too_late: What the error says.
    """

    client: str = "local"
    request: Hashable = field(default_factory=object)
    deadline: float = float("inf")
    too_late: str = ""

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline < time.perf_counter()

    @property
    def seconds(self) -> float | None:
        """Seconds that are left; `None`: any time."""
        return None if self.deadline == float("inf") else max(0.0, self.deadline - time.perf_counter())

    def error(self) -> ServiceError:
        """What is said when it is late."""
        return ServiceError("timeout", self.too_late)


def current_asker(allowed: float | None, own: float | None = None) -> Asker:
    """Who asks in the task that runs. Time counts from when the request came.

    Args:
        allowed: Seconds that the server gives to a request; `None`: any time.
        own: Seconds that the request gives itself; `None`: it does not say.
    """
    record = CURRENT.get()
    if own is not None and (allowed is None or own <= allowed):
        seconds, too_late = own, f"the request took longer than the {own:g} s that it gave itself (`timeout`)"
    elif allowed is not None:
        seconds = allowed
        too_late = f"the request took longer than the {allowed:g} s that the server allows (--timeout)"
    else:
        seconds, too_late = float("inf"), ""
    if record is None:
        return Asker(deadline=time.perf_counter() + seconds, too_late=too_late)
    return Asker(client=record.client, request=id(record), deadline=record.began + seconds, too_late=too_late)


async def within(asker: Asker, work: Awaitable[T]) -> T:
    """What some work gives; it is cancelled when whoever asks is late.

    Raises:
        ServiceError: it took too long.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=asker.seconds)
        if not task.done():
            raise asker.error()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
