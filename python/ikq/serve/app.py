"""`make_app`: all paths of the server as one application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ikq.serve.anthropic.errors import ANTHROPIC_ERRORS
from ikq.serve.bodies import read_json
from ikq.serve.endpoint import Call, Endpoint, ErrorForm
from ikq.serve.errors import ErrorKind, ServiceError
from ikq.serve.openai_errors import OPENAI_ERRORS
from ikq.serve.request_log import CURRENT, LOG, Record, log
from ikq.serve.security import check_framing, check_host, check_key, check_origin, client_of
from ikq.serve.service import Service
from ikq.serve.settings import Settings
from ikq.serve.streams import ClientGone, Streamed, while_connected
from ikq.serve.validation import check

__all__ = ["make_app"]

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]

_KINDS: dict[int, ErrorKind] = {404: "not_found", 405: "not_allowed"}

# What servers say of a client that went away; it hears it no more.
_GONE = 499


def make_app(
    service: Service, settings: Settings, endpoints: Iterable[Endpoint], lifespan: Lifespan | None = None
) -> Starlette:
    """An application of ASGI.

    Args:
        service: What answers.
        settings: Keys, limits, log.
        endpoints: All paths.
        lifespan: What is done at its begin and end.
    """
    endpoints = list(endpoints)
    routes = [Route(e.path, _Answering(e, service, settings), methods=[e.method]) for e in endpoints]
    middleware = [Middleware(_Gate, endpoints=endpoints, settings=settings)]
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
                allow_headers=["*"],
            )
        )
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: _lost(endpoints, settings)},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _Gate:
    """Refuses requests that no path may answer, whatever it is, and closes their connections."""

    def __init__(self, app: ASGIApp, endpoints: list[Endpoint], settings: Settings) -> None:
        self._app = app
        self._endpoints = endpoints
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            try:
                check_framing(scope)
                check_host(request, self._settings)
                check_origin(request, self._settings.cors_origins)
            except ServiceError as error:
                form = _form_at(request, self._endpoints)
                record = Record(request.method, scope["path"], client_of(request, self._settings.api_keys))
                response = _refusal(form, error, record)
                # where its body ends is not known, or nobody wants it
                response.headers["connection"] = "close"
                response.headers[form.id_header] = record.id
                record.status = response.status_code
                if self._settings.access_log:
                    log(record, as_json=self._settings.log_json)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Answering:
    """An endpoint as an application."""

    def __init__(self, endpoint: Endpoint, service: Service, settings: Settings) -> None:
        self._endpoint = endpoint
        self._service = service
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        record = Record(scope["method"], scope["path"], client_of(request, self._settings.api_keys))
        token = CURRENT.set(record)
        try:
            response = await self._response(request, record)
            response.headers[_form_for(request, self._endpoint.errors).id_header] = record.id
            record.status = response.status_code
            await response(scope, receive, send)
        except (ClientGone, OSError):
            record.status = _GONE
        except asyncio.CancelledError:
            # only the end of the server cancels a request as a whole: its client reads nothing
            record.status = _GONE
        finally:
            CURRENT.reset(token)
            if self._settings.access_log:
                log(record, as_json=self._settings.log_json)

    async def _response(self, request: Request, record: Record) -> Response:
        endpoint, settings = self._endpoint, self._settings
        form = _form_for(request, endpoint.errors)
        try:
            if endpoint.needs_key:
                check_key(request, settings.api_keys)
            body = None
            if endpoint.body is not None:
                given = await read_json(request, settings.max_body, may_lack=not endpoint.needs_body)
                body = check(endpoint.body, given)
            call = Call(service=self._service, settings=settings, body=body, request=request)
            response = await while_connected(request.receive, self._prepared(call))
        except ServiceError as error:
            return _refusal(form, error, record)
        except ClientGone:
            raise
        except Exception:
            LOG.exception("error in %s", endpoint.path)
            sentence = "the server failed to answer; its log says why"
            return _refusal(form, ServiceError("internal", sentence), record)
        return response

    async def _prepared(self, call: Call) -> Response:
        """The response; of a stream the first piece is there, or long in coming."""
        response = await self._endpoint.handle(call)
        if isinstance(response, Streamed):
            try:
                await response.prepare()
            except BaseException:
                await response.aclose()
                raise
        return response


def _refusal(form: ErrorForm, error: ServiceError, record: Record) -> JSONResponse:
    """An error as a response."""
    record.error = error.sentence
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.kind == "authentication":
        headers["www-authenticate"] = "Bearer"
    if error.kind in ("too_large", "timeout"):
        # the rest of the body may still come, and is nobody's
        headers["connection"] = "close"
    return JSONResponse(_said(form, error, record), status_code=form.status(error), headers=headers)


def _said(form: ErrorForm, error: ServiceError, record: Record) -> dict[str, Any]:
    """The JSON of an error."""
    return form.body(error) | ({"request_id": record.id} if form.has_id else {})


def _form_at(request: Request, endpoints: list[Endpoint]) -> ErrorForm:
    """How errors are written in the API that is nearest to a path."""
    path = request.url.path
    found = next((e.errors for e in endpoints if path.startswith(e.path)), OPENAI_ERRORS)
    return _form_for(request, found)


def _form_for(request: Request, form: ErrorForm) -> ErrorForm:
    """How errors are written for who asks: Anthropic's clients say who they are, on shared paths too."""
    return ANTHROPIC_ERRORS if "anthropic-version" in request.headers else form


def _lost(
    endpoints: list[Endpoint], settings: Settings
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Answers to requests for paths that are not there, in the form of the API that is nearest."""

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        form = _form_at(request, endpoints)
        if error.status_code == 405:
            sentence = f"{request.method} is not a method of {path}"
        else:
            sentence = f"there is nothing at {path}"
        refused = ServiceError(_KINDS.get(error.status_code, "invalid_request"), sentence)
        client = client_of(request, settings.api_keys)
        record = Record(request.method, path, client, error.status_code, error=sentence)
        if settings.access_log:
            log(record, as_json=settings.log_json)
        headers = {**(error.headers or {}), form.id_header: record.id}
        return JSONResponse(_said(form, refused, record), status_code=error.status_code, headers=headers)

    return answer
