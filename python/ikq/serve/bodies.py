"""Bodies of requests, read: limits of size, JSON that is JSON."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from ikq.serve.errors import ServiceError
from ikq.serve.streams import ClientGone

__all__ = ["read_json"]

# Seconds that a client may take for the next part of a body.
_PATIENCE = 30.0


async def read_json(request: Request, most: int) -> Any:  # noqa: ANN401  # JSON
    """The body of a request, which must be JSON in UTF-8.

    Args:
        request: See there.
        most: Most bytes.

    Raises:
        ServiceError: it is too large, does not come, or is no JSON.
        ClientGone: the client went away before it was there.
    """
    body = await _read(request, most)
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
            part = await asyncio.wait_for(anext(stream), _PATIENCE)
            n += len(part)
            if n > most:
                raise too_large
            parts.append(part)
    except StopAsyncIteration:
        return b"".join(parts)
    except asyncio.TimeoutError:
        raise ServiceError("timeout", "the body did not come in time") from None
    except ClientDisconnect:
        raise ClientGone from None
