"""`LocalReply`: events of an engine's job, for `async for`."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

from ikq.serve.asking import Asker
from ikq.serve.engine import Engine
from ikq.serve.errors import ServiceError
from ikq.serve.events import Event, Finished
from ikq.serve.jobs import Job
from ikq.serve.text import TextPlan

__all__ = ["LocalReply"]


class LocalReply:
    """See `ikq.serve.service.Reply`. Made in the event loop that waits for it.

    Args:
        engine: Who computes it.
        plan: What.
        n: How many texts.
        model: The name of the model.
        asker: Who asks.
        done: Called once, when nothing more comes.

    Raises:
        ServiceError: the engine does not take it.
    """

    def __init__(
        self,
        engine: Engine,
        plan: TextPlan,
        n: int,
        *,
        model: str,
        asker: Asker,
        done: Callable[[], None],
    ) -> None:
        self.id = secrets.token_hex(12)
        self.model = model
        self.created = int(time.time())
        self.prompt = plan.tokens
        self._tokenizer = plan.tokenizer
        self._engine = engine
        self._events: asyncio.Queue[Event | ServiceError] = asyncio.Queue()
        # texts whose end was not taken, and did not come
        self._n_left = self._n_coming = n
        self._is_over = self._is_released = False
        self._done = done
        self._job = Job(plan, n, asyncio.get_running_loop(), self._take, asker)
        self.usage = self._job.usage
        engine.submit(self._job)

    def token_bytes(self, token: int) -> bytes:
        """See `Reply`."""
        return self._tokenizer.token_bytes(token) if token < self._tokenizer.n_vocab else b""

    def __aiter__(self) -> LocalReply:
        return self

    async def __anext__(self) -> Event:
        if self._is_over:
            raise StopAsyncIteration
        found = await self._events.get()
        if isinstance(found, ServiceError):
            self._finish()
            raise found
        if isinstance(found, Finished):
            self._n_left -= 1
            if not self._n_left:
                self._finish()
        return found

    async def aclose(self) -> None:
        """Nobody wants the rest."""
        if not self._is_over:
            self._engine.cancel(self._job)
            self._finish()

    def _take(self, events: list[Event], error: ServiceError | None) -> None:
        for event in events:
            self._events.put_nowait(event)
            self._n_coming -= isinstance(event, Finished)
        if error is not None:
            self._events.put_nowait(error)
        if error is not None or not self._n_coming:
            self._release()

    def _finish(self) -> None:
        self._is_over = True
        self._release()

    def _release(self) -> None:
        """Lets the model go: also when nobody has taken what came."""
        if not self._is_released:
            self._is_released = True
            self._done()
