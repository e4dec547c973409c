"""Chunks of a text that nodes run, with results in order: `chunk_values`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ikq.cluster.connect import connected
from ikq.cluster.job import Failure
from ikq.cluster.rates import ChunkRates
from ikq.cluster.worker import node_names
from ikq.errors import IkqError

__all__ = ["ChunkResult", "Opener", "Runner", "chunk_results", "chunk_values"]

Opener = Callable[[Sequence[str]], Callable[[int], Any]]
"""Loads what a node needs, which has these names, and gives what runs a chunk; it travels to nodes."""

_WAIT = 0.5
_LOOK_INTERVAL = 5.0
# as often as Ray repeats the tasks of `Dispatch`
_REPEATS = 10


@dataclass(frozen=True)
class ChunkResult:
    """What a node made of a chunk.

    Attributes:
        node: Its name.
        value: The result.
        seconds: Time that it took, without what was loaded for it.
        failure: What kept it from it.
    """

    node: str
    value: Any = None
    seconds: float = 0.0
    failure: Failure | None = None


class Runner:
    """An actor: what a node has loaded, which runs one chunk at a time."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._run: Callable[[int], Any] | None = None

    def run(self, chunk: int) -> ChunkResult:
        """What the node makes of a chunk; files are opened with the first one."""
        names = node_names()
        try:
            if self._run is None:
                self._run = self._opener(names)
            start = time.perf_counter()
            value = self._run(chunk)
            return ChunkResult(names[0], value, time.perf_counter() - start)
        except (IkqError, OSError, MemoryError) as e:
            return ChunkResult(names[0], failure=Failure.of(e, names[0]))


class _Nodes:
    """An actor on each node that is there; those that died are replaced while their node lives."""

    def __init__(self, ray: Any, start: Callable[[Any], Any]) -> None:
        self._ray, self._start = ray, start
        self._actors: dict[str, Any] = {}
        self._looked = 0.0

    def there(self) -> dict[str, Any]:
        now = time.monotonic()
        if now - self._looked > _LOOK_INTERVAL or not self._actors:
            self._looked = now
            for node in self._ray.nodes():
                if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] not in self._actors:
                    self._actors[node["NodeID"]] = self._start(node)
        return self._actors

    def lose(self, node_id: str) -> None:
        self._actors.pop(node_id, None)

    def end(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()


def chunk_values(
    opener: Opener,
    first: int,
    n: int,
    address: str,
    *,
    n_tokens: int,
    unit: str = "chunk",
    n_cpus: int | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[Any]:
    """Runs the chunks `first` to `n` on the nodes of a Ray cluster; yields what they make, in order.

    Args:
        opener: what runs them.
        first: the first chunk.
        n: the one behind the last.
        address: `local`, or `HOST:PORT` of the head of a cluster.
        n_tokens: of a chunk.
        unit: what messages call a chunk.
        n_cpus: CPUs of a `local` cluster.
        on_note: called with what the user should know, among it how fast nodes are.

    Raises:
        UnsupportedError: Ray is not installed.
        RefusedError: no cluster is there, or a node has other files.
        IkqError, OSError: as `chunk_results`.
    """
    rates = ChunkRates(n_tokens, on_note, unit)
    with connected(address, n_cpus, on_note) as ray:
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        actor = ray.remote(Runner)

        def start(node: Mapping[str, Any]) -> Any:
            # all of the node's CPUs are its model's
            options = {
                "num_cpus": node["Resources"]["CPU"],
                "scheduling_strategy": strategy(node["NodeID"], soft=False),
            }
            return actor.options(**options).remote(opener)

        for result in chunk_results(ray, start, first, n, on_note, unit):
            rates.add(result.node, result.seconds)
            rates.tell()
            yield result.value
    summary = rates.summary()
    if on_note is not None and summary is not None:
        on_note(summary)


def chunk_results(
    ray: Any,
    start: Callable[[Any], Any],
    first: int,
    n: int,
    on_note: Callable[[str], None] | None,
    unit: str = "chunk",
) -> Iterator[ChunkResult]:
    """Runs the chunks `first` to `n` and yields their results in order.

    Every node has one actor, which runs one chunk at a time and has a second one waiting. Chunks of an actor
    that dies are run by others.

    Args:
        ray: the module.
        start: makes an actor, with a method `run(chunk)`, on a node (as `ray.nodes()` tells it).
        first: the first chunk.
        n: the one behind the last.
        on_note: called with what the user should know.
        unit: what messages call a chunk.

    Raises:
        IkqError, OSError: what kept a node from its work; a chunk that died again and again.
    """
    waiting = list(range(n - 1, first - 1, -1))
    in_work: dict[Any, tuple[int, str]] = {}
    deaths: dict[int, int] = {}
    results: dict[int, ChunkResult] = {}
    nodes = _Nodes(ray, start)
    is_told = False
    try:
        for chunk in range(first, n):
            while chunk not in results:
                actors = nodes.there()
                if not actors and not is_told and on_note is not None:
                    on_note("cluster: no node is there to work; waiting for one")
                is_told = not actors
                # results that wait for an earlier one are held in memory
                for node_id, actor in actors.items():
                    n_own = sum(node == node_id for _, node in in_work.values())
                    while waiting and n_own < 2 and waiting[-1] < chunk + 4 * len(actors):
                        number = waiting.pop()
                        in_work[actor.run.remote(number)] = (number, node_id)
                        n_own += 1
                if not in_work:
                    time.sleep(_WAIT)
                    continue
                ready, _ = ray.wait(list(in_work), num_returns=1, timeout=_WAIT)
                for reference in ready:
                    number, node_id = in_work.pop(reference)
                    try:
                        result: ChunkResult = ray.get(reference)
                    except ray.exceptions.RayTaskError as e:
                        raise IkqError(
                            f"a node could not run ikq, which must be there as here: {e.cause!r}"
                        ) from None
                    except ray.exceptions.RayError as e:
                        nodes.lose(node_id)
                        deaths[number] = deaths.get(number, 0) + 1
                        if deaths[number] >= _REPEATS:
                            raise IkqError(
                                f"workers died {_REPEATS} times over {unit} {number + 1}: {e}"
                            ) from None
                        waiting.append(number)
                        waiting.sort(reverse=True)
                        continue
                    if result.failure is not None:
                        raise result.failure.exception()
                    results[number] = result
            yield results.pop(chunk)
    finally:
        nodes.end()
