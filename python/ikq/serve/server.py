"""`Server`: the service behind a port, in this thread or in one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from ikq.errors import RefusedError
from ikq.serve import openapi
from ikq.serve.app import make_app
from ikq.serve.connection import Connection
from ikq.serve.endpoint import Endpoint
from ikq.serve.folder import Stamp, find_models, stamp_of
from ikq.serve.loaded import LoadedModel
from ikq.serve.loading import check_model, load_model
from ikq.serve.local import LocalService
from ikq.serve.models import Models
from ikq.serve.request_log import LOG
from ikq.serve.routes import anthropic, llama_server, openai, page, responses
from ikq.serve.settings import Settings
from ikq.serve.signals import UvicornServer, signals
from ikq.serve.starting import check_start
from ikq.speculation.options import Speculation

__all__ = ["Server"]


class Server:
    """A server of a model, or of the models of a folder.

    Args:
        model: A file, or a folder of models, which are loaded when they are asked for.
        settings: How it runs.
        name: What clients call the model of a file; its name without `.gguf`, if not given.
        load_options: Keywords of `Model.load`.
        speculation: Options of speculative decoding, unless a request gives others.

    Raises:
        RefusedError: there is no model in the folder, or the settings are not possible.

    Examples:
        >>> import ikq
        >>> from ikq.serve.settings import Settings
        >>> with ikq.Server("tests/data/tiny-moe-bf16.gguf", Settings(port=0)) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        model: str | Path,
        settings: Settings | None = None,
        *,
        name: str | None = None,
        load_options: Mapping[str, Any] | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.settings = settings or Settings()
        check_start(self.settings)
        path = Path(model)
        is_folder = path.is_dir()
        paths = find_models(path) if is_folder else {name or path.stem: path}
        if not paths:
            raise RefusedError(f"{path}: there is no model (*.gguf) in this folder")
        self._options = dict(load_options or {})
        self._speculation = speculation or Speculation()
        self.models = Models(
            paths,
            self._load,
            self._check,
            self._stamp,
            settings=self.settings,
            look=partial(find_models, path) if is_folder else None,
        )
        self._preloads = not is_folder
        self.service = LocalService(self.models, self.settings)
        self.app = make_app(self.service, self.settings, self._endpoints(), self._lifespan)
        self._uvicorn: uvicorn.Server | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def url(self) -> str:
        """The address that it listens at, with the prefix of all paths.

        Raises:
            RuntimeError: it has not been started.
        """
        if self._socket is None:
            raise RuntimeError("the server has not been started: it has no address yet")
        host, port = self._socket.getsockname()[:2]
        scheme = "http" if self.settings.ssl_certfile is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{self.settings.api_prefix}"

    def run(self) -> None:
        """Serves until it is interrupted (Ctrl-C, SIGTERM); then it completes the requests in progress.

        A second interrupt ends the process at once, with the exit code 130 (SIGTERM: 143).

        Raises:
            OSError: the port is taken.
            OSError, IkqError: the model cannot be loaded.
        """
        server = self._prepared()
        assert self._socket is not None
        with self._socket, signals(server):
            server.run([self._socket])
        if self._error is not None:
            raise self._error

    def start(self) -> None:
        """Starts serving in a thread, and returns when the server is ready.

        Raises:
            OSError, IkqError: as `run`.
        """
        server = self._prepared()
        assert self._socket is not None
        sockets = [self._socket]
        is_up = threading.Event()

        def serve() -> None:
            try:
                with sockets[0]:
                    asyncio.run(_serve(server, sockets, is_up))
            except BaseException as error:
                self._error = self._error or error
            finally:
                is_up.set()

        self._thread = threading.Thread(target=serve, name="ikq-serve", daemon=True)
        self._thread.start()
        is_up.wait()
        if not server.started:
            self._thread.join()
            raise self._error or RuntimeError("the server did not start")

    def stop(self) -> None:
        """Stops the server that `start` began, after completing the requests in progress."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepared(self) -> uvicorn.Server:
        settings = self.settings
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            try:
                self._socket.bind((settings.host, settings.port))
            except OSError as error:
                place = f"{settings.host}:{settings.port} (--host, --port)"
                raise OSError(error.errno, f"cannot listen at {place}: {error.strerror}") from error
            if self._preloads:
                ((name, path),) = self.models.paths.items()
                self.models.add(self._load(name, path))
        except BaseException:
            self._socket.close()
            raise
        self._error = None
        config = uvicorn.Config(
            self.app,
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # beyond the grace only clients that read nothing are left
            timeout_graceful_shutdown=round(settings.grace) + 5,
            ssl_certfile=None if settings.ssl_certfile is None else str(settings.ssl_certfile),
            ssl_keyfile=None if settings.ssl_keyfile is None else str(settings.ssl_keyfile),
        )
        self._uvicorn = UvicornServer(config, settings.grace, self._end_all)
        return self._uvicorn

    def _endpoints(self) -> list[Endpoint]:
        pages = page.ENDPOINTS if self.settings.page else []
        apis = (openai, anthropic, responses, llama_server)
        endpoints = [endpoint for api in apis for endpoint in api.ENDPOINTS]
        prefix = self.settings.api_prefix
        endpoints = [replace(e, path=prefix + e.path) for e in endpoints]
        return [
            *endpoints,
            replace(openapi.endpoint_of(endpoints), path=f"{prefix}/openapi.json"),
            *(replace(e, path=prefix + e.path) for e in pages),
        ]

    def _load(self, name: str, path: Path) -> LoadedModel:
        return load_model(name, path, self._options, self.settings, self._speculation)

    def _check(self, path: Path) -> int:
        return check_model(path, self._options, self.settings, self._speculation)

    def _stamp(self, path: Path) -> Stamp:
        draft = self._speculation.draft_model
        return stamp_of(path, [Path(draft)] if isinstance(draft, (str, os.PathLike)) else [])

    async def _end_all(self) -> None:
        """Ends all texts; those who wait for them, or for a model, are told."""
        self.models.refuse()
        await asyncio.gather(*(asyncio.to_thread(m.engine.close) for m in self.models.loaded))

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        assert self._socket is not None
        self.models.open()
        self._socket.listen(1024)  # who reads the line may connect
        LOG.info("listening at %s", self.url)
        try:
            yield
        finally:
            await self.models.close()


async def _serve(server: uvicorn.Server, sockets: list[socket.socket], is_up: threading.Event) -> None:
    serving = asyncio.ensure_future(server.serve(sockets))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    is_up.set()
    await serving
