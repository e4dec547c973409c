"""`collect_on_cluster`: an importance matrix from chunks that nodes run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikq.cluster.chunks import ChunkResult, chunk_results
from ikq.cluster.connect import connected
from ikq.cluster.job import Failure
from ikq.cluster.paths import PathRule, mapped
from ikq.cluster.worker import node_names
from ikq.errors import IkqError, RefusedError
from ikq.evaluate.perplexity import estimate
from ikq.evaluate.windows import Windows
from ikq.files.gguf import GGUFReader
from ikq.inference.model import Model
from ikq.statistics.activations import ActivationCollector
from ikq.statistics.calibrate.loop import ChunksDone, run_chunks
from ikq.statistics.calibrate.state import run_identity

__all__ = ["Text", "added", "collect_on_cluster", "model_identity"]


@dataclass(frozen=True)
class Text:
    """What every node needs of a run.

    Attributes:
        model: The model's file, an absolute path of the driver.
        identity: What `model_identity` says of it.
        load: Keywords of `Model.load`.
        collect: Keywords of `Model.collect_activations`.
        windows: The text.
        perplexity: Losses are wanted.
        rules: Where the driver's paths lie on nodes.
    """

    model: str
    identity: str
    load: Mapping[str, Any]
    collect: Mapping[str, Any]
    windows: Windows
    perplexity: bool
    rules: tuple[PathRule, ...]


def model_identity(model: str) -> str:
    """Hash of samples of a model's files, and of the version of ikq."""
    with GGUFReader(model) as reader:
        files = [Path(shard.path) for shard in reader.shards]
    return run_identity(files, np.zeros(0, np.int32), {})


class Runner:
    """An actor: a node's model, which runs one chunk at a time."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._model: Model | None = None

    def run(self, chunk: int) -> ChunkResult:
        """The state of a collector that has seen this chunk alone, and the chunk's losses."""
        names = node_names()
        try:
            return ChunkResult(names[0], self._run(chunk, names))
        except (IkqError, OSError, MemoryError) as e:
            return ChunkResult(names[0], failure=Failure.of(e, names[0]))

    def _run(self, chunk: int, names: Sequence[str]) -> tuple[dict[str, object], NDArray[np.float64]]:
        text = self._text
        if self._model is None:
            path = mapped(text.model, text.rules, names)
            if model_identity(path) != text.identity:
                raise RefusedError(f"{path} is not what the driver has, or its version of ikq differs")
            self._model = Model.load(path, **text.load)
        with self._model.collect_activations(**text.collect) as collector:
            steps = run_chunks(self._model, text.windows, collector, first=chunk, perplexity=text.perplexity)
            done = next(steps)
            steps.close()  # type: ignore[attr-defined]  # a generator
            return collector.state(), done.losses


def collect_on_cluster(
    text: Text,
    collector: ActivationCollector,
    address: str,
    *,
    first: int = 0,
    losses: NDArray[np.float64] | None = None,
    n_cpus: int | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[ChunksDone]:
    """`run_chunks` on the nodes of a Ray cluster: the same results, bit for bit.

    A chunk's sums are made by themselves on one machine too, and are added here in the order of chunks.

    Args:
        text: what nodes need.
        collector: takes the statistics; not of a model.
        address: `local`, or `HOST:PORT` of the head of a cluster.
        first: chunk to begin with; those before are in the collector already.
        losses: what `ChunksDone.losses` was after them.
        n_cpus: CPUs of a `local` cluster.
        on_note: called with what the user should know.

    Raises:
        ikq.errors.IkqError, OSError: as `quantize_on_cluster`.
    """
    total = collector.state()
    known = [np.zeros(0) if losses is None else losses]
    n_by_node: dict[str, int] = {}
    with connected(address, n_cpus, on_note) as ray:
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        actor = ray.remote(Runner)

        def start(node: Mapping[str, Any]) -> Any:
            # all of the node's CPUs are its model's
            options = {
                "num_cpus": node["Resources"]["CPU"],
                "scheduling_strategy": strategy(node["NodeID"], soft=False),
            }
            return actor.options(**options).remote(text)

        for i, result in enumerate(chunk_results(ray, start, first, text.windows.n, on_note), first):
            n_by_node[result.node] = n_by_node.get(result.node, 0) + 1
            state, found = result.value
            total = added(total, state)
            collector.restore(total)
            known = [np.concatenate([*known, found])]
            yield ChunksDone(i + 1, estimate(known[0], i + 1) if text.perplexity else None, known[0])
    if on_note is not None and n_by_node:
        shares = ", ".join(f"{node} {n}" for node, n in sorted(n_by_node.items()))
        on_note(f"cluster: chunks by node: {shares}")


def added(total: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, object]:
    """The state of a collector that has seen what two have, the first one's before the second one's."""
    n_head, one_head = int(total["n_of_head"]), int(one["n_of_head"])
    owners, arrays = [], []
    # sites of the head for further tokens come behind the model's
    for of_total, of_one in (
        (slice(0, len(total["owners"]) - n_head), slice(0, len(one["owners"]) - one_head)),
        (slice(len(total["owners"]) - n_head, None), slice(len(one["owners"]) - one_head, None)),
    ):
        sites = dict(zip(map(_first, total["owners"][of_total]), total["arrays"][of_total], strict=True))
        names = dict(zip(map(_first, total["owners"][of_total]), total["owners"][of_total], strict=True))
        for owner, (sums, counts) in zip(one["owners"][of_one], one["arrays"][of_one], strict=True):
            name = _first(owner)
            if name in sites:
                old_sums, old_counts = sites[name]
                sites[name] = (old_sums + sums, old_counts + counts)
            else:
                sites[name], names[name] = (sums, counts), owner
        owners.append(list(names.values()))
        arrays.append(list(sites.values()))
    layers = [list(layer) for layer in total["layers"]]
    layers += [[0.0] * 3 for _ in range(len(one["layers"]) - len(layers))]
    for to, new in zip(layers, one["layers"], strict=False):
        to[:] = [x + y for x, y in zip(to, new, strict=True)]
    return {
        "n_of_head": len(owners[1]),
        "owners": owners[0] + owners[1],
        "layers": layers,
        "n_tokens": int(total["n_tokens"]) + int(one["n_tokens"]),
        "n_chunks": int(total["n_chunks"]) + int(one["n_chunks"]),
        "chunk_size": max(int(total["chunk_size"]), int(one["chunk_size"])),
        "arrays": arrays[0] + arrays[1],
    }


def _first(owner: Sequence[tuple[Sequence[str], bool]]) -> str:
    """The tensor that names a site."""
    return owner[0][0][0]
