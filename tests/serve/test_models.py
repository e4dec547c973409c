"""Which models are there and when: with models that are nothing but a name."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time

import pytest
from scripted import eventually

import ikq
from ikq.serve import models as module
from ikq.serve.asking import Asker
from ikq.serve.errors import ServiceError
from ikq.serve.folder import find_models, stamp_of
from ikq.serve.models import Models
from ikq.serve.settings import Settings


class Vocabulary:
    """What is large and looked after when a model goes."""


class Weights:
    """A model without any."""

    def __init__(self):
        self.tokenizer = Vocabulary()


class Fake:
    """A model that was loaded."""

    held = 0

    def __init__(self, name, text):
        self.name = name
        self.text = text
        self.is_closed = False
        self.model = Weights()

    def close(self):
        self.is_closed = True


class Shelf:
    """Models of a folder whose files are texts; `no` is a damaged one, `late` one whose damage loading finds.

    Attributes:
        loads: Names of those that were loaded or tried to, in order.
        gate: Loads wait for it.
    """

    def __init__(self, folder, **settings):
        self.folder = folder
        self.loads = []
        self.gate = threading.Event()
        self.gate.set()
        self.models = Models(
            find_models(folder),
            self.load,
            self.check,
            stamp_of,
            settings=Settings(**{"parallel": 2, "queue": 2, **settings}),
            look=lambda: find_models(folder),
        )

    def write(self, name, text="yes"):
        file = self.folder / f"{name}.gguf"
        file.with_suffix(".new").write_text(text)
        file.with_suffix(".new").rename(file)

    def check(self, path):
        if path.read_text() == "no":
            raise ikq.FormatError("it is damaged")
        return 0

    def load(self, name, path):
        self.loads.append(name)
        assert self.gate.wait(20)
        text = path.read_text()
        if text == "late":
            raise ikq.FormatError("a weight is not finite")
        if text == "fault":
            raise KeyError("who knows")
        return Fake(name, text)

    @property
    def names(self):
        return [model.name for model in self.models.loaded]

    async def hold(self, name, seconds=20.0, n_texts=1):
        asker = Asker(deadline=time.perf_counter() + seconds, too_late="too late")
        return await self.models.hold(name, asker, n_texts)

    async def told(self, name, **options):
        """The error of a request."""
        with pytest.raises(ServiceError) as error:
            await self.hold(name, **options)
        return error.value


@pytest.fixture
def shelf(tmp_path):
    shelf = Shelf(tmp_path)
    for name in "ab":
        shelf.write(name)
    shelf.models.paths = find_models(tmp_path)
    return shelf


def run(shelf, test):
    async def all_of_it():
        try:
            await asyncio.wait_for(test, 30)
        finally:
            shelf.gate.set()
            await shelf.models.close()
        assert shelf.models.loaded == []

    asyncio.run(all_of_it())


async def begun(shelf, n):
    """Waits until so many loads have begun."""
    for _ in range(1000):
        if len(shelf.loads) >= n:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(shelf.loads)


def test_time_runs_while_a_model_is_loaded(shelf):
    async def test():
        shelf.gate.clear()
        error = await shelf.told("a", seconds=0.1)
        assert (error.kind, error.sentence) == ("timeout", "too late")
        # what has begun goes on, for those who come later
        shelf.gate.set()
        model = await shelf.hold("a")
        assert shelf.loads == ["a"]
        shelf.models.release(model)
        assert await shelf.models.unload("a")

    run(shelf, test())


def test_time_runs_while_a_place_is_waited_for(shelf):
    async def test():
        first = await shelf.hold("a")
        assert (await shelf.told("b", seconds=0.1)).kind == "timeout"
        assert shelf.loads == ["a"]
        # nobody waits for its place any more, so it stays
        shelf.models.release(first)
        await asyncio.sleep(0.05)
        assert shelf.names == ["a"]

    run(shelf, test())


def test_whoever_goes_away_waits_for_no_model(shelf):
    async def test():
        first = await shelf.hold("a")
        waiting = [asyncio.ensure_future(shelf.hold("b")) for _ in range(3)]
        await asyncio.sleep(0.02)
        for task in waiting[:2]:
            task.cancel()
        await asyncio.sleep(0.02)
        shelf.models.release(first)
        model = await waiting[2]
        assert (model.name, shelf.names) == ("b", ["b"])
        # it has one user, not three
        shelf.models.release(model)
        assert await shelf.models.unload("b")
        # those who go while it is loaded are no users either
        shelf.gate.clear()
        task = asyncio.ensure_future(shelf.hold("a"))
        await begun(shelf, 3)
        task.cancel()
        shelf.gate.set()
        model = await shelf.hold("a")
        shelf.models.release(model)
        assert await shelf.models.unload("a")

    run(shelf, test())


def test_as_many_wait_for_a_model_as_the_server_takes(shelf):
    async def test():
        shelf.gate.clear()
        waiting = [asyncio.ensure_future(shelf.hold("a", n_texts=n)) for n in (1, 2)]
        await begun(shelf, 1)
        error = await shelf.told("a", n_texts=2)
        assert (error.kind, error.retry_after is not None) == ("overloaded", True)
        waiting.append(asyncio.ensure_future(shelf.hold("a")))
        await asyncio.sleep(0.01)
        assert (await shelf.told("a")).kind == "overloaded"
        waiting[1].cancel()
        await asyncio.sleep(0.01)
        waiting.append(asyncio.ensure_future(shelf.hold("a", n_texts=2)))
        shelf.gate.set()
        models = await asyncio.gather(*(task for i, task in enumerate(waiting) if i != 1))
        assert len(set(models)) == 1

    run(shelf, test())


@pytest.mark.parametrize("text", ["no", "late", "fault"])
def test_a_broken_one_is_tried_once(shelf, text):
    async def test():
        shelf.models.release(await shelf.hold("a"))
        shelf.write("b", text)
        for i in range(3):
            error = await shelf.told("b")
            assert error.kind == ("internal" if text == "fault" else "unloadable")
            assert "who knows" not in error.sentence
            if i == 0:
                shelf.models.release(await shelf.hold("a"))
        assert shelf.names == ["a"]
        assert shelf.loads == (["a"] if text == "no" else ["a", "b", "a"])
        shelf.write("b", "good again")
        assert (await shelf.hold("b")).text == "good again"

    run(shelf, test())


def test_everybody_hears_why_a_model_does_not_come(shelf):
    async def test():
        shelf.write("b", "late")
        errors = await asyncio.gather(*(shelf.told("b") for _ in range(3)))
        assert all("not finite" in error.sentence for error in errors)
        assert shelf.loads == ["b"]

    run(shelf, test())


def test_a_model_that_is_always_used_makes_room_in_time(shelf, monkeypatch):
    """Requests that follow one another without a gap do not keep another model away."""
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    counts = [0] * 4

    async def use(who, name):
        while min(counts) < 10:
            model = await shelf.hold(name)
            await asyncio.sleep(0.01)
            shelf.models.release(model)
            counts[who] += 1

    async def test():
        await asyncio.wait_for(asyncio.gather(*(use(who, name) for who, name in enumerate("aabb"))), 60)
        # by turns, not at each request
        assert 2 <= len(shelf.loads) <= sum(counts) / 2

    run(shelf, test())


def test_files_come_and_go_and_are_replaced(shelf):
    async def test():
        models = shelf.models
        assert (await shelf.told("c")).kind == "not_found"
        shelf.write("c", "first")
        first = await shelf.hold("c")
        assert first.text == "first"
        await models.refresh()
        assert list(models.paths) == ["a", "b", "c"]
        # a loaded one is used as it is when its file goes
        (shelf.folder / "c.gguf").unlink()
        await models.refresh()
        assert list(models.paths) == ["a", "b", "c"]
        assert await shelf.hold("c") is first
        models.release(first)
        # another file in its place is loaded when nobody uses the old one
        shelf.write("c", "second")
        waiting = asyncio.ensure_future(shelf.hold("c"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        models.release(first)
        second = await waiting
        assert (second.text, first.is_closed) == ("second", True)
        models.release(second)
        # one that is broken is not
        shelf.write("c", "no")
        for _ in range(2):
            assert await shelf.hold("c") is second
            models.release(second)
        (shelf.folder / "c.gguf").unlink()
        assert await models.unload("c")
        assert (await shelf.told("c")).kind == "not_found"
        await models.refresh()
        assert list(models.paths) == ["a", "b"]

    run(shelf, test())


def test_a_set_that_is_not_whole_yet(shelf):
    async def test():
        parts = [f"s-0000{i}-of-00002" for i in (1, 2)]
        shelf.check = lambda path: find_set(shelf.folder, parts)
        shelf.models._check = shelf.check
        shelf.write(parts[0])
        for _ in range(2):
            assert (await shelf.told("s")).kind == "unloadable"
        shelf.write(parts[1])
        assert (await shelf.hold("s")).name == "s"

    def find_set(folder, parts):
        for part in parts:
            if not (folder / f"{part}.gguf").exists():
                raise ikq.FormatError(f"{part} is not there")
        return 0

    run(shelf, test())


def test_a_folder_that_goes_away(shelf):
    async def test():
        shelf.models.release(await shelf.hold("a"))
        shutil.rmtree(shelf.folder)
        await shelf.models.refresh()
        assert list(shelf.models.paths) == ["a"]
        assert (await shelf.told("b")).kind == "not_found"
        assert (await shelf.hold("a")).name == "a"

    run(shelf, test())


def test_the_end_of_the_server_is_told_to_those_who_wait(shelf):
    async def test():
        shelf.gate.clear()
        loading, placed = (asyncio.ensure_future(shelf.told(name)) for name in "ab")
        await begun(shelf, 1)
        shelf.models.refuse()
        for task in (loading, placed):
            assert (await task).kind == "unavailable"
        assert (await shelf.told("a")).kind == "unavailable"

    run(shelf, test())


def test_loads_that_end_behind_the_end_are_closed(shelf):
    made = []
    load = shelf.models._load
    shelf.models._load = lambda *args: made.append(load(*args)) or made[-1]

    async def test():
        shelf.gate.clear()
        waiting = asyncio.ensure_future(shelf.told("a"))
        await begun(shelf, 1)
        closing = asyncio.ensure_future(shelf.models.close())
        assert (await waiting).kind == "unavailable"
        shelf.gate.set()
        await closing

    run(shelf, test())
    assert eventually(lambda: made and made[0].is_closed)
