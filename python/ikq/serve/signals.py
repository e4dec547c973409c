"""Signals that end a server: the first one gracefully, the second one at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType

import uvicorn

from ikq.serve.request_log import LOG

__all__ = ["UvicornServer", "signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class UvicornServer(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with an end that is told to requests.

    Args:
        config: See there.
        grace: Seconds that requests have to be completed when the server ends.
        end_all: Ends those that are not; they answer that the server is shutting down.
    """

    def __init__(self, config: uvicorn.Config, grace: float, end_all: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._grace = grace
        self._end_all = end_all

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to others."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        LOG.info("ending; requests have %g s to be completed, another signal ends at once", self._grace)
        ending = asyncio.ensure_future(self._end_later())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_later(self) -> None:
        await asyncio.sleep(self._grace)
        await self._end_all()


@contextlib.contextmanager
def signals(server: uvicorn.Server) -> Iterator[None]:
    """Ends a server by SIGINT and SIGTERM within the block; does nothing outside of the main thread.

    Args:
        server: See there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        if server.should_exit:
            # nothing that runs can be waited for; files are written whole or not at all
            os.write(2, b"ended at once\n")
            os._exit(128 + number)
        # nothing is logged here: the signal may have come in the middle of another line
        server.should_exit = True

    before = [signal.signal(number, end) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
