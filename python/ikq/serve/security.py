"""Who may ask: keys; and requests whose length can be read in two ways."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.types import Scope

from ikq.errors import FormatError
from ikq.serve.errors import ServiceError

__all__ = ["check_framing", "check_key", "client_of", "read_keys"]


def read_keys(file: Path) -> list[str]:
    """Keys of a file, one in each line; empty lines and those that begin with `#` are none.

    Raises:
        OSError: it cannot be read.
        FormatError: it is not text.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise FormatError(f"{file}: not UTF-8") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def given_key(request: Request) -> str | None:
    """The key that a request has: as OpenAI's clients send it, or as Anthropic's do."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key")


def check_key(request: Request, keys: Sequence[str]) -> None:
    """Lets requests with one of these keys pass; all, if there are none.

    Raises:
        ServiceError: it has none of them.
    """
    if not keys:
        return
    given = given_key(request)
    if given is None:
        raise ServiceError("authentication", "an API key is needed: `Authorization: Bearer KEY`")
    # all are compared, in the same time each, so that time says nothing about them
    digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
    is_known = [hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in keys]
    if not any(is_known):
        raise ServiceError("authentication", "this API key is not known here")


def client_of(request: Request, keys: Sequence[str]) -> str:
    """A name of who asks, for fairness and for the log; it does not give a key away.

    Args:
        request: See there.
        keys: Those that there are; without any, what a request has for one is made up and says nothing.
    """
    key = given_key(request)
    if key is not None and keys:
        return f"key-{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    return request.client.host if request.client is not None else "local"


def check_framing(scope: Scope) -> None:
    """Refuses requests that two programs in a row might cut in different places.

    Raises:
        ServiceError: it says its length twice.
    """
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    codings = [value for name, value in scope["headers"] if name == b"transfer-encoding"]
    if len(lengths) > 1 or len(codings) > 1 or (lengths and codings):
        raise ServiceError("invalid_request", "the request says its length twice")
