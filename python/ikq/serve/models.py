"""`Models`: the models that a server has, loaded when somebody asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from ikq.errors import IkqError, RefusedError
from ikq.serve.errors import ServiceError
from ikq.serve.loaded import LoadedModel
from ikq.serve.memory import available_memory
from ikq.serve.request_log import LOG

__all__ = ["Models", "find_models"]


def find_models(folder: Path) -> dict[str, Path]:
    """Models of a folder and those in it, by the names that clients use; a split set is one.

    A name is that of the file without `.gguf`, with the folder before it where it is not in the first one.
    Clients' names are looked up here and never become paths.

    Raises:
        OSError: the folder cannot be read.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.gguf")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        stem, _, count = name.rpartition("-of-")
        stem, _, shard = stem.rpartition("-")
        if stem and len(count) == len(shard) == 5 and (count + shard).isdigit():
            if int(shard) != 1:
                continue
            name = stem
        if path.is_file():
            found[name] = path
    return found


class Models:
    """Models by name. A model is there as long as somebody uses it, and until another one needs its place.

    Args:
        paths: Files by name.
        load: Loads one; in a thread.
        check: Finds out whether one could be loaded, and how many bytes of memory it needs; in a thread.
        most: Most models that are loaded.
        takes_any_name: There is one model, and it answers whatever it is called.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        load: Callable[[str, Path], LoadedModel],
        check: Callable[[Path], int],
        *,
        most: int,
        takes_any_name: bool,
    ) -> None:
        self.paths = dict(paths)
        self._load = load
        self._check = check
        # files that could not be loaded: which they were, and why
        self._broken: dict[str, tuple[object, str]] = {}
        self._most = most
        self._takes_any_name = takes_any_name
        # the latest last
        self._loaded: dict[str, LoadedModel] = {}
        self._users: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._loads = asyncio.Lock()

    @property
    def loaded(self) -> list[LoadedModel]:
        """Those that are loaded, the latest last."""
        return list(self._loaded.values())

    def add(self, model: LoadedModel) -> None:
        """Takes a model that was loaded already; before the event loop runs."""
        self._loaded[model.name] = model

    def name_of(self, wanted: str | None) -> str:
        """The name of the model that a request means.

        Raises:
            ServiceError: there is no such model, or it does not say which.
        """
        if self._takes_any_name:
            return next(iter(self.paths))
        if wanted in self.paths:
            return wanted
        if wanted is None and len(self.paths) == 1:
            return next(iter(self.paths))
        sentence = f"there is no model {wanted!r}" if wanted is not None else "which model?"
        raise ServiceError("not_found", f"{sentence}; GET /v1/models lists them", parameter="model")

    @asynccontextmanager
    async def use(self, wanted: str | None) -> AsyncIterator[LoadedModel]:
        """A model, which stays loaded within the block.

        Raises:
            ServiceError: there is no such model, or it cannot be loaded.
        """
        model = await self.hold(wanted)
        try:
            yield model
        finally:
            self.release(model)

    async def hold(self, wanted: str | None) -> LoadedModel:
        """A model, which stays loaded until `release`.

        Raises:
            ServiceError: as `use`.
        """
        name = self.name_of(wanted)
        if name not in self._loaded:
            async with self._loads:
                if name not in self._loaded:
                    await self._bring(name)
        model = self._loaded[name] = self._loaded.pop(name)
        self._users[name] = self._users.get(name, 0) + 1
        return model

    def release(self, model: LoadedModel) -> None:
        """Nobody uses it any more who did. In the thread of the event loop."""
        self._users[model.name] -= 1
        if not self._users[model.name]:
            task = asyncio.ensure_future(self._tell())
            task.add_done_callback(lambda _: None)

    async def unload(self, wanted: str) -> bool:
        """Lets a model go that nobody uses; whether it was loaded and could.

        Raises:
            ServiceError: there is no such model.
        """
        name = self.name_of(wanted)
        if name not in self._loaded or self._users.get(name):
            return False
        await self._drop(name)
        return True

    async def close(self) -> None:
        """Closes all; texts that are not over end as errors."""
        for name in list(self._loaded):
            await self._drop(name)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _bring(self, name: str) -> None:
        """Loads a model, when there is a place for it. Nothing makes room for one that cannot be loaded."""
        path = self.paths[name]
        stamp = _stamp(path)
        if name in self._broken and self._broken[name][0] == stamp:
            raise _unloadable(name, self._broken[name][1])
        try:
            needed = await asyncio.to_thread(self._check, path)
            most = available_memory() + sum(model.held for model in self._loaded.values())
            if needed > most:
                raise _unloadable(name, f"it needs {_gib(needed)} of memory, and there are {_gib(most)}")
            while len(self._loaded) >= self._most:
                await self._drop_idle()
            self._loaded[name] = await self._loaded_one(name, path)
        except (OSError, IkqError) as error:
            sentence = str(error)
            self._broken[name] = (stamp, sentence)
            raise _unloadable(name, sentence) from None

    async def _loaded_one(self, name: str, path: Path) -> LoadedModel:
        """The model; others go as long as memory does not hold it."""
        while True:
            try:
                LOG.info("loading %s", name)
                return await asyncio.to_thread(self._load, name, path)
            except RefusedError as error:
                if not self._loaded:
                    sentence = f"{name} cannot be loaded now: {error}"
                    raise ServiceError("unavailable", sentence, parameter="model") from None
                await self._drop_idle()

    async def _drop_idle(self) -> None:
        """Lets the model go that was not used longest; waits until there is one that nobody uses."""
        async with self._changed:
            await self._changed.wait_for(lambda: any(not self._users.get(n) for n in self._loaded))
            idle = next(n for n in self._loaded if not self._users.get(n))
        await self._drop(idle)

    async def _drop(self, name: str) -> None:
        model = self._loaded.pop(name)
        self._users.pop(name, None)
        LOG.info("unloading %s", name)
        await asyncio.to_thread(model.close)


def _stamp(path: Path) -> object:
    """What tells a file from one that takes its place later."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _unloadable(name: str, sentence: str) -> ServiceError:
    return ServiceError("unloadable", f"{name} cannot be loaded: {sentence}", parameter="model")


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f} GiB"
