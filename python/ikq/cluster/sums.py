"""Statistics of chunks that nodes have run, added up: `NodeSums`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikq.statistics.activations import ActivationCollector, ActivationStatistics, LayerSimilarity

__all__ = ["NodeSums"]

_Owner = Sequence[tuple[Sequence[str], bool]]


@dataclass
class _Site:
    """Sums and counts of one input of matrices, which have these names."""

    owner: _Owner
    sums: NDArray[np.float64]
    counts: NDArray[np.uint64]

    @classmethod
    def of(cls, owner: _Owner, sums: NDArray[np.float64], counts: NDArray[np.uint64]) -> _Site:
        """A copy that can be added to: what a node has sent lies in the memory that Ray shares."""
        return cls(owner, np.array(sums, np.float64), np.array(counts, np.uint64))


@dataclass
class _Part:
    """Sites of the model, or of its head for further tokens, by the tensor that names each."""

    sites: dict[str, _Site] = field(default_factory=dict)

    def add(self, sites: Iterator[tuple[_Owner, tuple[NDArray[np.float64], NDArray[np.uint64]]]]) -> None:
        """Adds in place: a site may be of gigabytes, and most are not in every chunk."""
        for owner, (sums, counts) in sites:
            name = owner[0][0][0]
            site = self.sites.get(name)
            if site is None:
                self.sites[name] = _Site.of(owner, sums, counts)
            else:
                site.sums += sums
                site.counts += counts


class NodeSums(ActivationCollector):
    """A collector of no model, which takes the states of those that have each seen a chunk on a node.

    It holds one set of sums, which states are added to in place. They are handed to the core only where
    statistics are asked for.

    Args:
        all_experts: See `Model.collect_activations`, as for all that follows.
        similarity: See there.
        output: See there.
    """

    def __init__(self, *, all_experts: bool = False, similarity: bool = False, output: bool = True) -> None:
        super().__init__(all_experts=all_experts, similarity=similarity, output=output)
        self._parts = _Part(), _Part()
        self._layers: list[list[float]] = []
        self._n_tokens_of_layers = 0
        self._is_behind = False

    def add(self, state: Mapping[str, Any]) -> None:
        """Adds what a collector has seen (`ActivationCollector.state`) after all that is here.

        Sums of a chunk are made by themselves on one machine too, so that results are those of one run, bit
        for bit, where states come in the order of their chunks.
        """
        n_own = len(state["owners"]) - int(state["n_of_head"])
        for part, of in zip(self._parts, (slice(0, n_own), slice(n_own, None)), strict=True):
            part.add(zip(state["owners"][of], state["arrays"][of], strict=True))
        layers = state["layers"]
        self._layers += [[0.0] * 3 for _ in range(len(layers) - len(self._layers))]
        for to, new in zip(self._layers, layers, strict=False):
            to[:] = [x + y for x, y in zip(to, new, strict=True)]
        self._n_tokens_of_layers += int(state["n_tokens"])
        self.n_chunks += int(state["n_chunks"])
        self.chunk_size = max(self.chunk_size, int(state["chunk_size"]))
        self._is_behind = True

    def state(self) -> dict[str, object]:
        """As `ActivationCollector.state`; the arrays are those that later chunks are added to, not copies."""
        sites = [site for part in self._parts for site in part.sites.values()]
        return {
            "n_of_head": len(self._parts[1].sites),
            "owners": [site.owner for site in sites],
            "layers": [list(layer) for layer in self._layers],
            "n_tokens": self._n_tokens_of_layers,
            "n_chunks": self.n_chunks,
            "chunk_size": self.chunk_size,
            "arrays": [(site.sums, site.counts) for site in sites],
        }

    def restore(self, state: dict[str, object]) -> None:
        """As `ActivationCollector.restore`, which also finds out whether it is a state."""
        super().restore(state)
        self._parts, self._layers, self._n_tokens_of_layers = (_Part(), _Part()), [], 0
        self.n_chunks = self.chunk_size = 0
        self.add(state)
        self._is_behind = False

    def statistics(self, dataset: str | None = None) -> ActivationStatistics:
        """As `ActivationCollector.statistics`."""
        self._catch_up()
        return super().statistics(dataset)

    def layer_similarity(self) -> list[LayerSimilarity]:
        """As `ActivationCollector.layer_similarity`."""
        self._catch_up()
        return super().layer_similarity()

    def _catch_up(self) -> None:
        if self._is_behind:
            super().restore(self.state())
            self._is_behind = False
