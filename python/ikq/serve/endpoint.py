"""`Endpoint`: what a path does. The routes of an API are a list of these."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from ikq.serve.errors import ServiceError
from ikq.serve.service import Service
from ikq.serve.settings import Settings

__all__ = ["Call", "Endpoint", "ErrorForm", "Handler"]


@dataclass(frozen=True, kw_only=True)
class ErrorForm:
    """How an API writes errors.

    Attributes:
        status: The status of the response.
        body: Its JSON.
        id_header: The header of all responses that has the request's name, by which the log knows it.
        has_id: The JSON has it as well, as `request_id`.
    """

    status: Callable[[ServiceError], int]
    body: Callable[[ServiceError], dict[str, Any]]
    id_header: str = "x-request-id"
    has_id: bool = False


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request that was let in.

    Attributes:
        service: What answers it.
        settings: Those of the server.
        body: The body, checked: one of the endpoint's `body`; `None` if it has none.
        request: Path, headers and the like. Its body has been read.
    """

    service: Service
    settings: Settings
    body: Any
    request: Request


Handler: TypeAlias = Callable[[Call], Awaitable[Response]]
"""Answers a call. When the client goes away it is cancelled; so are the pieces of a `Streamed` response."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """What a path does.

    Attributes:
        method: `GET` or `POST`.
        path: May hold `{name}`, which `Call.request.path_params` has.
        handle: Answers a call; it raises `ServiceError`.
        errors: How errors are written.
        body: What the body must be; `None`: it is not read.
        needs_body: There has to be one; otherwise none stands for `{}`.
        query: What may come after `?`, as JSON schemas by name, for the description of the server's paths.
        needs_query: It has to be there.
        summary: A sentence for the description of the server's paths.
        needs_key: It asks for a key, if there are any.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handle: Handler
    errors: ErrorForm
    body: type[BaseModel] | None = None
    needs_body: bool = True
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    needs_query: bool = False
    summary: str = ""
    needs_key: bool = True
