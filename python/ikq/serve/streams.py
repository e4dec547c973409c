"""`Streamed`: a response in pieces, which ends when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ikq.serve.errors import ServiceError
from ikq.serve.request_log import LOG, note_error

__all__ = ["ClientGone", "Streamed", "event", "while_connected"]

T = TypeVar("T")

# Seconds that the first piece is waited for, so that errors that come before it have a status of their own;
# and seconds after which a comment says that the server is still there.
_PATIENCE, _PULSE = 5.0, 15.0

_COMMENT = b": still computing\n\n"


class ClientGone(Exception):  # noqa: N818  # it is no error
    """The client went away."""


def event(data: object, name: str | None = None) -> bytes:
    """A server-sent event.

    Args:
        data: What is said, as JSON; a `str` is said as it is.
        name: The event's name, for APIs that name them.
    """
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n").encode()


class Streamed(Response):
    """Server-sent events as they come.

    Args:
        events: Pieces of the body. It is closed in any case, also when the client goes away.
        tell: An error as a piece of the body: what the events raise when the status has been sent.
        send_timeout: Seconds that the client may leave a piece unread.
        headers: Further headers.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        tell: Callable[[ServiceError], bytes],
        *,
        send_timeout: float = 60.0,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})},
            media_type="text/event-stream",
        )
        del self.headers["content-length"]
        self._events = events
        self._tell = tell
        self._send_timeout = send_timeout
        self._first: asyncio.Task[bytes] | None = None

    async def prepare(self) -> None:
        """Waits a moment for the first piece.

        Raises:
            Exception: what the pieces raise before the first one.
        """
        self._first = asyncio.ensure_future(anext(self._events))
        await asyncio.wait([self._first], timeout=_PATIENCE)
        error = self._first.exception() if self._first.done() else None
        if error is not None and not isinstance(error, StopAsyncIteration):
            raise error

    async def aclose(self) -> None:
        """Nobody wants the pieces."""
        if self._first is not None and not self._first.done():
            self._first.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await self._first
        await self._events.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        try:
            await while_connected(receive, self._send_all(send, start))
        except ClientGone:
            return
        finally:
            await self.aclose()

    async def _send_all(self, send: Send, start: dict[str, Any]) -> None:
        await send(start)
        coming = self._first or asyncio.ensure_future(anext(self._events))
        try:
            while True:
                done, _ = await asyncio.wait([coming], timeout=_PULSE)
                if not done:
                    await self._send_part(send, _COMMENT)
                    continue
                try:
                    part = coming.result()
                except StopAsyncIteration:
                    break
                except Exception as error:
                    await self._send_part(send, self._told(error))
                    break
                await self._send_part(send, part)
                coming = asyncio.ensure_future(anext(self._events))
        finally:
            if not coming.done():
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                    await coming
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _told(self, error: Exception) -> bytes:
        """An error as an event; the log has it as well."""
        if not isinstance(error, ServiceError):
            LOG.error("error in a stream", exc_info=error)
            error = ServiceError("internal", "the server failed to answer; its log says why")
        note_error(error.sentence)
        return self._tell(error)

    async def _send_part(self, send: Send, part: bytes) -> None:
        message = {"type": "http.response.body", "body": part, "more_body": True}
        # not `wait_for`: up to Python 3.11 it loses a cancellation that comes as the sending ends
        sending = asyncio.ensure_future(send(message))
        try:
            done, _ = await asyncio.wait([sending], timeout=self._send_timeout)
        finally:
            sending.cancel()
        if not done:
            raise ClientGone
        try:
            sending.result()
        except OSError:
            raise ClientGone from None


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """What some work gives; it is cancelled when the client goes away.

    Args:
        receive: Tells when that is. The request's body has been read.
        work: See there.

    Raises:
        ClientGone: the client went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await one


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
