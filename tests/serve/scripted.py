"""A service that says what a test tells it, behind a real server: for tests of what is between."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response

from ikq.serve.app import make_app
from ikq.serve.endpoint import Call, Endpoint
from ikq.serve.errors import ServiceError
from ikq.serve.events import Event, Finished, Piece, Usage
from ikq.serve.openai_errors import OPENAI_ERRORS
from ikq.serve.requests import ChatRequest
from ikq.serve.routes import anthropic, openai, page, responses
from ikq.serve.settings import Settings


def piece(kind: str, text: str, **fields) -> Piece:
    """A piece of the only text."""
    return Piece(index=0, kind=kind, text=text, **fields)


class ScriptedReply:
    """Events one after the other; a number is a time that passes before the next."""

    def __init__(self, number: int, script: Iterable[Event | Exception | float]) -> None:
        self.id = f"{number:024x}"
        self.model = "scripted"
        self.created = 1_700_000_000
        self.prompt = (1, 2, 3)
        self.usage = Usage(n_prompt=3, n_cached=1)
        self.is_closed = False
        self._script = iter(script)

    def __aiter__(self) -> ScriptedReply:
        return self

    async def __anext__(self) -> Event:
        for event in self._script:
            if isinstance(event, (int, float)):
                await asyncio.sleep(event)
            elif isinstance(event, Exception):
                raise event
            else:
                self.usage.n_completion += 1
                return event
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.is_closed = True

    def token_bytes(self, token: int) -> bytes:
        return str(token).encode()


class ScriptedService:
    """Notes what it is asked.

    Attributes:
        script: What it says next; an error says it before there is a reply.
        asked: Requests so far.
        replies: Replies so far.
    """

    def __init__(self) -> None:
        self.script: list[Event | Exception | float] | ServiceError = []
        self.asked: list[ChatRequest] = []
        self.replies: list[ScriptedReply] = []

    def says(self, *script: Event | Exception | float) -> None:
        self.script = list(script)

    def says_text(self, *texts: str) -> None:
        self.says(
            *(Piece(index=0, kind="content", text=text) for text in texts), Finished(index=0, reason="stop")
        )

    async def chat(self, request: ChatRequest) -> ScriptedReply:
        self.asked.append(request)
        if isinstance(self.script, ServiceError):
            raise self.script
        self.replies.append(ScriptedReply(len(self.replies), self.script))
        return self.replies[-1]

    async def count_tokens(self, request: ChatRequest) -> int:
        self.asked.append(request)
        return 42


async def list_models(call: Call) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "scripted", "object": "model"}]})


MODELS = Endpoint(method="GET", path="/v1/models", handle=list_models, errors=OPENAI_ERRORS)


def scripted_app(service: ScriptedService, keys: tuple[str, ...] = ()) -> Starlette:
    endpoints = [MODELS, *openai.ENDPOINTS, *anthropic.ENDPOINTS, *responses.ENDPOINTS, *page.ENDPOINTS]
    return make_app(service, Settings(api_keys=keys, access_log=False), endpoints)


@contextlib.contextmanager
def running(app: Starlette) -> Iterator[str]:
    """The address of a server that runs an application in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        for _ in range(1000):
            if server.started:
                break
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def eventually(is_true: Callable[[], bool]) -> bool:
    """Whether something becomes true within some ten seconds that this process runs."""
    for _ in range(1000):
        if is_true():
            return True
        time.sleep(0.01)
    return False
