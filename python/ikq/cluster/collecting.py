"""`collect_on_cluster`: an importance matrix from chunks that nodes run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikq.cluster.chunks import chunk_values
from ikq.cluster.files import NodeModel
from ikq.cluster.growing import Growing
from ikq.cluster.sums import NodeSums
from ikq.evaluate.perplexity import estimate
from ikq.evaluate.windows import Windows
from ikq.statistics.calibrate.loop import ChunksDone, run_chunks

__all__ = ["Collecting", "collect_on_cluster"]


@dataclass(frozen=True)
class Collecting:
    """What every node needs of a run.

    Attributes:
        model: The model.
        collect: Keywords of `Model.collect_activations`.
        windows: The text.
        perplexity: Losses are wanted.
    """

    model: NodeModel
    collect: Mapping[str, Any]
    windows: Windows
    perplexity: bool

    def __call__(
        self, names: Sequence[str]
    ) -> Callable[[int], tuple[dict[str, object], NDArray[np.float64]]]:
        """Loads the model; gives what makes a collector's state of one chunk, and its losses."""
        model = self.model.loaded(names)

        def run(chunk: int) -> tuple[dict[str, object], NDArray[np.float64]]:
            with model.collect_activations(**self.collect) as collector:
                steps = run_chunks(model, self.windows, collector, first=chunk, perplexity=self.perplexity)
                done = next(steps)
                steps.close()  # type: ignore[attr-defined]  # a generator
                return collector.state(), done.losses

        return run


def collect_on_cluster(
    job: Collecting,
    collector: NodeSums,
    address: str,
    *,
    first: int = 0,
    losses: NDArray[np.float64] | None = None,
    n_cpus: int | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[ChunksDone]:
    """`run_chunks` on the nodes of a Ray cluster: the same results, bit for bit.

    The caller calls `take` of each result before it asks for the next one.

    Args:
        job: what nodes need.
        collector: takes the statistics with `ChunksDone.take`.
        address: `local`, or `HOST:PORT` of the head of a cluster.
        first: chunk to begin with; those before are in the collector already.
        losses: what `ChunksDone.losses` was after them.
        n_cpus: CPUs of a `local` cluster.
        on_note: called with what the user should know.

    Raises:
        ikq.errors.IkqError, OSError: as `chunk_values`.
    """
    known = Growing(losses)
    n, n_tokens = job.windows.n, job.windows.n_ctx
    values = chunk_values(job, first, n, address, n_tokens=n_tokens, n_cpus=n_cpus, on_note=on_note)
    for i, (state, found) in enumerate(values, first):
        total = known.add(found)
        ppl = estimate(total, i + 1) if job.perplexity else None
        yield ChunksDone(i + 1, ppl, total, partial(collector.add, state))
