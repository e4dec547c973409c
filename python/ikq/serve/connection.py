"""`Connection`: HTTP/1.1 with a limit of time for a request's headers."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connection"]

# Seconds that a client may take for the headers of a request.
_PATIENCE = 20.0


class Connection(H11Protocol):
    """A connection that is closed when no request comes: clients that send a byte now and then hold none."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._end_timer()

    def on_response_complete(self) -> None:
        """A response was sent; another request may follow."""
        super().on_response_complete()
        self._expect_request()

    def _unsupported_upgrade_warning(self) -> None:
        """Says nothing in the log: whoever asks for an upgrade is answered without, as HTTP has it."""

    def _expect_request(self) -> None:
        self._end_timer()
        self._timer = self.loop.call_later(_PATIENCE, self._close_without, self.cycle)

    def _end_timer(self) -> None:
        """Without this the event loop would keep a closed connection and its last request until then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_without(self, last: object) -> None:
        """Closes the connection unless there was a request after the last one."""
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()
