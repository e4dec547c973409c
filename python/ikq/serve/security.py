"""Who may ask: keys; pages of other origins; and requests whose length can be read in two ways."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import Scope

from ikq.files.text_files import read_lines
from ikq.serve.errors import ServiceError
from ikq.serve.settings import Settings

__all__ = ["check_framing", "check_host", "check_key", "check_origin", "client_of", "read_keys"]

# Names below these never lead to somebody else's machine: no registry gives them away.
_LOCAL_NAMES = (".localhost", ".local", ".internal")
# Methods of requests that change nothing.
_SAFE = ("GET", "HEAD", "OPTIONS")


def read_keys(file: Path) -> list[str]:
    """Keys of a file, one in each line; empty lines and those that begin with `#` are none.

    Raises:
        OSError: it cannot be read.
        FormatError: it is not text.
    """
    return [line.strip() for line in read_lines(file) if line.strip() and not line.lstrip().startswith("#")]


def given_key(request: Request) -> bytes | None:
    """The key that a request has: as OpenAI's clients send it, or as Anthropic's do."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip().encode("latin-1")
    key = request.headers.get("x-api-key")
    return None if key is None else key.encode("latin-1")


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
    if not _is_known(given, keys):
        raise ServiceError("authentication", "this API key is not known here")


def _is_known(given: bytes, keys: Sequence[str]) -> bool:
    """Whether a key is one of these."""
    # all are compared, in the same time each, so that time says nothing about them
    digest = hashlib.sha256(given).digest()
    is_known = [hmac.compare_digest(digest, known) for known in _digests(tuple(keys))]
    return any(is_known)


@lru_cache(maxsize=8)
def _digests(keys: tuple[str, ...]) -> tuple[bytes, ...]:
    """Of all spellings of keys: clients write other letters than those of ASCII in one of two ways."""
    return tuple(hashlib.sha256(spelling).digest() for key in keys for spelling in _spellings(key))


def _spellings(key: str) -> Iterable[bytes]:
    yield key.encode()
    if not key.isascii() and all(ord(letter) < 256 for letter in key):
        yield key.encode("latin-1")


def client_of(request: Request, keys: Sequence[str]) -> str:
    """A name of who asks, for fairness and for the log; it does not give a key away.

    A key that is none of `keys` says nothing about who asks: anybody can invent another one for each request.
    """
    key = given_key(request) if keys else None
    if key is not None and _is_known(key, keys):
        return f"key-{hashlib.sha256(key).hexdigest()[:8]}"
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
    if codings and scope["http_version"] == "1.0":
        raise ServiceError("invalid_request", "HTTP/1.0 has no transfer codings")


def check_origin(request: Request, origins: Sequence[str]) -> None:
    """Refuses what a page of another origin asks for, unless it is one of `origins`.

    Browsers send simple requests without asking first; that the page cannot read the reply does not undo
    them.

    Raises:
        ServiceError: it comes from such a page.
    """
    origin = request.headers.get("origin")
    if request.method in _SAFE or origin is None or "*" in origins or origin in origins:
        return
    # what browsers say themselves, and pages cannot: it also holds behind a proxy that changes the host
    if request.headers.get("sec-fetch-site") == "same-origin":
        return
    # a page needs to be let in by `--cors` before it can send the second of these
    own = (request.headers.get("host"), request.headers.get("x-forwarded-host"))
    if _host_of(origin) not in [host for host in own if host]:
        sentence = f"pages of {origin[:200]} may not ask here: --cors names those that may"
        raise ServiceError("permission", sentence)


def check_host(request: Request, settings: Settings) -> None:
    """Refuses names of this machine that somebody else may have given to it.

    A page whose name was made to lead to 127.0.0.1 looks like one of this server's own. So a server
    without keys that listens only there is asked by an address, or by a name that is nobody else's.

    Raises:
        ServiceError: the name is not one of those.
    """
    if settings.api_keys or settings.ssl_certfile or not _is_loopback(settings.host):
        return
    name = _name_of(request.headers.get("host", ""))
    own = [settings.host.lower(), *(_name_of(_host_of(origin)) for origin in settings.cors_origins)]
    if "*" in settings.cors_origins or "." not in name or name.endswith(_LOCAL_NAMES) or name in own:
        return
    if not _is_address(name):
        sentence = f"{name[:200]} is no name of this server: --cors ORIGIN makes it one, or use a key"
        raise ServiceError("permission", sentence)


def _host_of(origin: str) -> str:
    """The host of an origin, with its port; empty if it has none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name_of(host: str) -> str:
    """A host without its port."""
    end = host.find("]")
    name = host[1:end] if host.startswith("[") and end > 0 else host.partition(":")[0]
    return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
