"""`Models`: the models that a server has, loaded when somebody asks for them."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from ikq.errors import RefusedError
from ikq.inference.memory import available_memory
from ikq.serve.arrivals import Arrival, closing
from ikq.serve.asking import Asker, current_asker, within
from ikq.serve.errors import ServiceError
from ikq.serve.failures import Failures, unexpected, unloadable
from ikq.serve.folder import Stamp, is_whole
from ikq.serve.loaded import LoadedModel
from ikq.serve.request_log import LOG
from ikq.serve.settings import Settings

__all__ = ["Models"]

T = TypeVar("T")

# Seconds for which a model that is waited for leaves the others be; then one of them takes no more requests.
_PATIENCE = 2.0
# Seconds between looks at whether anybody still holds a model that goes.
_WAITS = (0.01, 0.03, 0.1, 0.3, 1.0)


class Models:
    """Models by name. A model stays loaded while a request uses it, and until another one needs its place.

    A model that requests wait for takes the place of one that nobody uses. If there is none for a while, the
    least recently requested one takes no more requests until it is unloaded.

    Loading does not belong to a request: it continues when the client disconnects, for later requests.

    Args:
        paths: Files by name.
        load: Loads one; in a thread.
        check: Finds out whether one could be loaded, and how many bytes of memory it needs; in a thread.
        stamp: Tells the files that one is loaded from, from others that take their places.
        settings: How many are loaded, how many may wait for one, and how long.
        look: Finds files by name, for those that come, go or are replaced while the server runs; in a thread.
            `None`: there is one model, and it answers whatever it is called.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        load: Callable[[str, Path], LoadedModel],
        check: Callable[[Path], int],
        stamp: Callable[[Path], Stamp],
        *,
        settings: Settings,
        look: Callable[[], Mapping[str, Path]] | None = None,
    ) -> None:
        self.paths = dict(paths)
        self._load = load
        self._check = check
        self._stamp = stamp
        self._look = look
        self._settings = settings
        self._failures = Failures()
        # the latest last
        self._loaded: dict[str, LoadedModel] = {}
        # of what they were loaded
        self._stamps: dict[str, Stamp] = {}
        self._users: dict[str, int] = {}
        self._arrivals: dict[str, Arrival] = {}
        # takes no more requests, so that another one gets its place
        self._leaving: str | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._looking: asyncio.Task[None] | None = None
        self.open()

    def open(self) -> None:
        """Begins, or begins again behind `close`; before the event loop, or in it."""
        # a model has lost a user, or one that is waited for somebody who waits
        self._changed = asyncio.Event()
        # of whoever loads or closes one
        self._places = asyncio.Lock()
        self._closes = False

    @property
    def loaded(self) -> list[LoadedModel]:
        """Those that are loaded, the latest last."""
        return list(self._loaded.values())

    def add(self, model: LoadedModel) -> None:
        """Takes a model that was loaded already; before the event loop runs."""
        self._loaded[model.name] = model

    async def refresh(self) -> None:
        """Looks for files that have come and gone. Models that are loaded stay."""
        if self._look is None:
            return
        if self._looking is None:
            self._looking = self._task(self._refresh(self._look))
        await asyncio.shield(self._looking)

    async def _refresh(self, look: Callable[[], Mapping[str, Path]]) -> None:
        try:
            found = await asyncio.to_thread(look)
        except OSError as error:
            LOG.warning("models cannot be looked for: %s", error)
            return
        finally:
            self._looking = None
        in_use = {name: path for name, path in self.paths.items() if name in {*self._loaded, *self._arrivals}}
        self.paths = dict(sorted({**in_use, **found}.items()))

    async def name_of(self, wanted: str | None) -> str:
        """The name of the model that a request means.

        Raises:
            ServiceError: there is no such model, or it does not say which.
        """
        if self._look is None:
            return next(iter(self.paths))
        path = self.paths.get(wanted or "")
        if path is None or (wanted not in self._loaded and not path.is_file()):
            await self.refresh()
        if wanted in self.paths:
            return wanted
        if wanted is None and len(self.paths) == 1:
            return next(iter(self.paths))
        sentence = f"there is no model {wanted!r}" if wanted is not None else "which model?"
        raise ServiceError("not_found", f"{sentence}; GET /v1/models lists them", parameter="model")

    @asynccontextmanager
    async def use(self, wanted: str | None, timeout: float | None = None) -> AsyncIterator[LoadedModel]:
        """A model, which stays loaded within the block. No block is in another one: it might wait for that.

        Args:
            wanted: What the request calls it.
            timeout: Seconds that the request gives itself.

        Raises:
            ServiceError: as `hold`.
        """
        model = await self.hold(wanted, current_asker(self._settings.timeout, timeout))
        try:
            yield model
        finally:
            self.release(model)

    async def hold(self, wanted: str | None, asker: Asker, n_texts: int = 1) -> LoadedModel:
        """A model, which stays loaded until `release`.

        Args:
            wanted: What the request calls it.
            asker: Who waits for it.
            n_texts: How many texts are wanted of it.

        Raises:
            ServiceError: there is no such model, it cannot be loaded, too many wait, or it took too long.
        """
        name = await self.name_of(wanted)
        if name in self._loaded and name != self._leaving and not self._is_replaced(name):
            self._users[name] = self._users.get(name, 0) + 1
            model = self._loaded[name]
        else:
            model = await self._arrived(name, asker, n_texts)
        if name in self._loaded:
            self._loaded[name] = self._loaded.pop(name)
        return model

    def release(self, model: LoadedModel) -> None:
        """Nobody uses it any more who did. In the thread of the event loop."""
        self._users[model.name] -= 1
        self._changed.set()

    async def unload(self, wanted: str) -> bool:
        """Lets a model go that nobody uses; whether it was loaded and could.

        Raises:
            ServiceError: there is no such model.
        """
        name = await self.name_of(wanted)
        return await asyncio.shield(self._task(self._unload(name)))

    def refuse(self) -> None:
        """Loads nothing any more; those who wait for a model are told."""
        self._closes = True
        for arrival in self._arrivals.values():
            arrival.fail(closing())
        self._changed.set()

    async def close(self) -> None:
        """Closes all; texts that are not over end as errors."""
        self.refuse()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._loaded):
            await self._drop(name)

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that goes on when nobody waits for it any more."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _is_replaced(self, name: str) -> bool:
        """Whether a model that is loaded has other files now, which can be loaded as far as is known."""
        if self._look is None or name not in self._stamps:
            return False
        stamp = self._stamp(self.paths[name])
        return stamp != self._stamps[name] and is_whole(stamp) and self._failures.find(name, stamp) is None

    async def _arrived(self, name: str, asker: Asker, n_texts: int) -> LoadedModel:
        """A model that is not there, or about to go, when it is there; with one user more.

        Raises:
            ServiceError: as `hold`.
        """
        if self._closes:
            raise closing()
        arrival = self._arrivals.get(name) or Arrival()
        if arrival.n_texts + n_texts > self._settings.parallel + self._settings.queue:
            sentence = (
                f"{arrival.n_texts} texts wait for {name} to be loaded, which is as many as the server takes "
                "(--parallel, --queue); try again later"
            )
            raise ServiceError("overloaded", sentence, retry_after=10)
        arrival.n_waiting += 1
        arrival.n_texts += n_texts
        if name not in self._arrivals:
            self._arrivals[name] = arrival
            self._task(self._arrive(name, arrival))
        try:
            return await within(asker, asyncio.shield(arrival.model))
        except BaseException:
            if arrival.model.done() and arrival.model.exception() is None:
                self.release(arrival.model.result())
            arrival.n_waiting -= 1
            arrival.n_texts -= n_texts
            self._changed.set()
            raise

    async def _arrive(self, name: str, arrival: Arrival) -> None:
        """Loads a model for those who wait for it."""
        try:
            async with self._places:
                if name not in self._loaded or self._is_replaced(name):
                    await self._bring(name, arrival)
                # from here on it has users, before anybody could let it go again
                del self._arrivals[name]
                if not arrival.model.done():
                    self._users[name] = self._users.get(name, 0) + arrival.n_waiting
                    arrival.model.set_result(self._loaded[name])
        except BaseException as error:
            self._arrivals.pop(name, None)
            arrival.fail(_told(name, error))
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _unload(self, name: str) -> bool:
        if name not in self._loaded or self._users.get(name):
            return False
        async with self._places:
            if name not in self._loaded or self._users.get(name):
                return False
            await self._drop(name)
        return True

    async def _bring(self, name: str, arrival: Arrival) -> None:
        """Loads a model, when there is a place for it. Nothing makes room for one that cannot be loaded."""
        path = self.paths[name]
        stamp = self._stamp(path)
        if known := self._failures.find(name, stamp):
            raise known
        arrival.check_wanted()
        try:
            needed = await asyncio.to_thread(self._check, path)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a panic of the core is no `Exception`
            told = self._failures.note(name, stamp, error)
            if name not in self._loaded:
                raise told from None
            LOG.warning("%s was replaced, and is used as it was: %s", name, told)
            return
        most = available_memory() + sum(model.held for model in self._loaded.values())
        if needed > most:
            raise unloadable(name, f"it needs {_gib(needed)} of memory, and there are {_gib(most)}")
        if name in self._loaded:
            await self._drop_idle(arrival, name)
        while len(self._loaded) >= self._settings.models_max:
            await self._drop_idle(arrival)
        arrival.check_wanted()
        self._loaded[name] = await self._loaded_one(name, path, stamp, arrival)
        self._stamps[name] = stamp

    async def _loaded_one(self, name: str, path: Path, stamp: Stamp, arrival: Arrival) -> LoadedModel:
        """The model; others go as long as memory does not hold it."""
        while True:
            try:
                LOG.info("loading %s", name)
                return await asyncio.to_thread(self._load, name, path)
            except RefusedError as error:
                if not self._loaded:
                    sentence = f"{name} cannot be loaded now: {error}"
                    raise ServiceError("unavailable", sentence, parameter="model") from None
                await self._drop_idle(arrival)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                raise self._failures.note(name, stamp, error) from None

    async def _drop_idle(self, arrival: Arrival, name: str | None = None) -> None:
        """Lets the model go that was not used longest; waits until there is one that nobody uses.

        Args:
            arrival: What its place is for.
            name: The one that is to go; `None`: any.

        Raises:
            ServiceError: nobody waits for its place any more.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + (_PATIENCE if name is None else 0)
        try:
            while True:
                self._changed.clear()
                arrival.check_wanted()
                names = self._loaded if name is None else [name]
                idle = next((n for n in names if not self._users.get(n)), None)
                if idle is not None:
                    break
                if self._leaving is None and loop.time() >= end:
                    self._leaving = next(iter(names))
                wait = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait([wait], timeout=None if self._leaving else end - loop.time())
                finally:
                    wait.cancel()
        finally:
            self._leaving = None
        await self._drop(idle)

    async def _drop(self, name: str) -> None:
        self._stamps.pop(name, None)
        LOG.info("unloading %s", name)
        await asyncio.to_thread(_let_go, [self._loaded.pop(name)])


def _let_go(held: list[LoadedModel]) -> None:
    """Closes a model and frees its memory, so that the next one does not come on top of it.

    Vocabularies are large, and in cycles that only a collection finds, and only when nobody holds them any
    more. A thread that has prepared a text may let go of the model some time after the text is over.

    Args:
        held: The model; taken out, so that the caller does not hold it.
    """
    model = held.pop()
    model.close()
    vocabulary = weakref.ref(model.model.tokenizer)
    del model
    for wait in _WAITS:
        gc.collect()
        if vocabulary() is None:
            return
        time.sleep(wait)
    LOG.warning("the vocabulary of a model that was unloaded is still in use")


def _told(name: str, error: BaseException) -> ServiceError:
    """What those who wait for a model hear of an error."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return closing()
    return unexpected(name, error)


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f} GiB"
