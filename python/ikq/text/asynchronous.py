"""Iterators that compute in a thread of their own, for `async for`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(make: Callable[[Callable[[int, int], None]], Iterator[T]]) -> AsyncGenerator[T, None]:
    """Values of an iterator that is made and asked in a thread; the event loop is never blocked.

    Args:
        make: Makes the iterator, in the thread. It gets a function that the iterator's work should call now
            and then; the call raises once nobody wants the values any more.

    Raises:
        Exception: what `make` or the iterator raises.
    """
    loop = asyncio.get_running_loop()
    values: asyncio.Queue[T | BaseException | None] = asyncio.Queue()
    unwanted = threading.Event()

    def put(value: T | BaseException | None) -> None:
        # the loop may be closed: then nobody waits for the value
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(values.put_nowait, value)

    def check(done: int, total: int) -> None:
        if unwanted.is_set():
            raise _UnwantedError

    def work() -> None:
        try:
            check(0, 0)
            for value in make(check):
                put(value)
                check(0, 0)
            put(None)
        except BaseException as e:
            put(e)

    # a thread of its own: those of the loop's executor are few
    threading.Thread(target=work, name="ikq-generate", daemon=True).start()
    try:
        while (value := await values.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        unwanted.set()


class _UnwantedError(Exception):
    """Nobody waits for the values."""
