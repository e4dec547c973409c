"""Bodies of requests, read: limits of size, JSON that is JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from ikq.serve.errors import ServiceError
from ikq.serve.streams import ClientGone

__all__ = ["read_json"]

# Seconds that a client may take for the next part of a body.
_PATIENCE = 30.0


async def read_json(request: Request, most: int, *, may_lack: bool = False) -> Any:  # noqa: ANN401  # JSON
    """The body of a request, which must be JSON in UTF-8.

    Args:
        request: See there.
        most: Most bytes.
        may_lack: No body is as good as `{}`.

    Raises:
        ServiceError: it is too large, does not come, or is no JSON.
        ClientGone: the client went away before it was there.
    """
    body = await _read(request, most)
    if may_lack and not body.strip():
        return {}
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as e:
        raise ServiceError("invalid_request", f"the body is not JSON: {e}") from None


async def _read(request: Request, most: int) -> bytes:
    said = request.headers.get("content-length", "0")
    too_large = ServiceError("too_large", f"the body has more than {most} bytes (--max-body)")
    if not said.isdigit() or int(said) > most:
        raise too_large
    parts: list[bytes] = []
    n = 0
    stream = request.stream()
    try:
        while True:
            part = await _next_part(stream)
            n += len(part)
            if n > most:
                raise too_large
            parts.append(part)
    except StopAsyncIteration:
        return b"".join(parts)
    except ClientDisconnect:
        raise ClientGone from None


async def _next_part(stream: AsyncIterator[bytes]) -> bytes:
    # not `wait_for`: up to Python 3.11 it loses a cancellation that comes as the part does
    coming = asyncio.ensure_future(anext(stream))
    try:
        done, _ = await asyncio.wait([coming], timeout=_PATIENCE)
    finally:
        coming.cancel()
    if not done:
        raise ServiceError("timeout", f"the next part of the body did not come within {_PATIENCE:g} s")
    return coming.result()
