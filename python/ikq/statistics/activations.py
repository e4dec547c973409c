"""Activation statistics (imatrix files): `ActivationStatistics`, `ActivationCollector`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.errors import FormatError, RefusedError, ShapeError

__all__ = ["ActivationCollector", "ActivationEntry", "ActivationStatistics", "LayerSimilarity"]

# A mean of exactly 1 in every column is what `.dat` files have for experts that no token reached.
_UNSEEN = 1.0


class ActivationEntry(NamedTuple):
    """Statistics of the input of a matrix.

    Attributes:
        sums: Sums over tokens of the squared input, float64 `(n_expert, n_per_row)`.
        counts: Tokens, float64 `(n_expert,)`.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean squared input, `(n_expert, n_per_row)`; zeros for experts without tokens."""
        return self.sums / np.maximum(self.counts, 1e-300)[:, np.newaxis]


class LayerSimilarity(NamedTuple):
    """Mean cosines between the residual stream before and after a part of the model; 1: it changes nothing.

    Attributes:
        layer: Over the whole layer.
        attention: Over its attention.
        ffn: Over its feed-forward network.
    """

    layer: float
    attention: float
    ffn: float


class ActivationStatistics(Mapping[str, ActivationEntry]):
    """Statistics by tensor name, as sums and counts: they can be merged and written.

    `Imatrix` has the same statistics as means, in the form that the encoders use.

    Attributes:
        datasets: Names of the texts.
        n_chunks: Chunks of text.
        chunk_size: Tokens of a chunk.
        all_experts: Every token counted for every expert.
        counts_are_exact: Counts are the tokens of each expert. False after reading a `.dat` file, which has
            only a number of chunks.
    """

    def __init__(
        self,
        entries: Mapping[str, ActivationEntry],
        *,
        datasets: Iterable[str] = (),
        n_chunks: int = 0,
        chunk_size: int = 0,
        all_experts: bool = False,
        counts_are_exact: bool = True,
    ) -> None:
        self._entries = dict(entries)
        self.datasets = list(datasets)
        self.n_chunks = n_chunks
        self.chunk_size = chunk_size
        self.all_experts = all_experts
        self.counts_are_exact = counts_are_exact

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        chunk_size: int = 512,
        n_expert: Mapping[str, int] | None = None,
    ) -> ActivationStatistics:
        """Reads a file of either form, `.dat` (ik_llama.cpp) or GGUF (llama.cpp).

        Args:
            path: The file.
            chunk_size: Tokens of a chunk where the file does not say it (`.dat`).
            n_expert: Experts of each tensor, which `.dat` files do not say either; without it all experts of
                a tensor are one row.

        Raises:
            OSError: the file cannot be read.
            FormatError: it is neither form, is damaged, or holds NaN or negative values.
        """
        file = _ikq.StatisticsFile.open(os.fspath(path))
        tokens = file.chunk_size or chunk_size
        entries = {}
        for name, read, read_counts in file.entries():
            sums, counts = read.astype(np.float64), read_counts.astype(np.float64)
            for what, values in (("sum", sums), ("count", counts)):
                if not (np.isfinite(values) & (values >= 0)).all():
                    raise FormatError(f"{path}: a {what} of entry `{name}` is negative or not finite")
            if file.counts_are_calls:
                sums, counts = sums * tokens, np.maximum(counts, 1) * tokens
                n = (n_expert or {}).get(name, 1)
                if n > 1 and sums.size % n == 0:
                    sums, counts = _by_expert(sums, counts, n)
            entries[name] = ActivationEntry(sums, counts)
        n_chunks = file.n_chunks
        if n_chunks is None:
            most = max((float(e.counts.max(initial=0)) for e in entries.values()), default=0)
            n_chunks = round(most / tokens)
        return cls(
            entries,
            datasets=file.datasets,
            n_chunks=n_chunks,
            chunk_size=tokens,
            all_experts=file.all_experts,
            counts_are_exact=not file.counts_are_calls,
        )

    @classmethod
    def merged(cls, parts: Iterable[ActivationStatistics]) -> ActivationStatistics:
        """Adds statistics up, as if they came from one text.

        Counts that are chunks (`.dat`) are first scaled to the tokens per chunk that an expert of that tensor
        has in the parts which count tokens.

        Raises:
            RefusedError: there are none, or some count every token for every expert and others do not.
            ShapeError: entries of one name have different sizes.
        """
        parts = list(parts)
        if not parts:
            raise RefusedError("nothing to merge")
        if len({p.all_experts for p in parts}) > 1:
            raise RefusedError(
                "some of these statistics count every token for every expert (--all-experts), others only "
                "the chosen experts: merge like with like"
            )
        exact = [p for p in parts if p.counts_are_exact]
        rest = [p for p in parts if not p.counts_are_exact]
        entries: dict[str, ActivationEntry] = {}
        for part in exact:
            for name, entry in part.items():
                entries[name] = _added(name, entries.get(name), entry)
        n_exact = sum(p.n_chunks for p in exact)
        per_chunk = {n: float(e.counts.mean()) / n_exact for n, e in entries.items()} if n_exact else {}
        for part in rest:
            for name, entry in part.items():
                share = per_chunk.get(name, part.chunk_size) / max(part.chunk_size, 1)
                scaled = ActivationEntry(entry.sums * share, entry.counts * share)
                entries[name] = _added(name, entries.get(name), scaled)
        sizes = [p.chunk_size for p in (*exact, *rest) if p.chunk_size]
        return cls(
            entries,
            datasets=dict.fromkeys(name for p in parts for name in p.datasets),
            n_chunks=sum(p.n_chunks for p in parts),
            chunk_size=sizes[0] if sizes else 0,
            all_experts=parts[0].all_experts,
            counts_are_exact=not rest,
        )

    def write(self, path: str | os.PathLike[str], form: Literal["dat", "gguf"] | None = None) -> None:
        """Writes a file; what was there stays until the new one is whole.

        Args:
            path: The file.
            form: `dat` (ik_llama.cpp; means, no counts per expert) or `gguf` (llama.cpp). `None`: GGUF if the
                name ends in `.gguf`.

        Raises:
            OSError: the file cannot be written.
            FormatError: a sum is not finite.
        """
        path = os.fspath(path)
        if form is None:
            form = "gguf" if path.lower().endswith(".gguf") else "dat"
        entries = []
        for name, (sums, counts) in self._entries.items():
            if not np.isfinite(sums).all():
                raise FormatError(f"the input of `{name}` is not finite: its statistics cannot be written")
            entries.append((name, np.ascontiguousarray(sums), counts.astype(np.float32)))
        _ikq.write_statistics(
            path,
            form,
            entries,
            datasets=self.datasets,
            n_chunks=self.n_chunks,
            chunk_size=self.chunk_size,
            all_experts=self.all_experts,
        )

    def __getitem__(self, name: str) -> ActivationEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return (
            f"ActivationStatistics({len(self)} entries, {self.n_chunks} chunks of {self.chunk_size} tokens)"
        )


def _by_expert(
    sums: NDArray[np.float64], counts: NDArray[np.float64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One row of all experts as a row for each; those without data are found by their mean of 1."""
    sums, counts = sums.reshape(n, -1).copy(), np.repeat(counts, n)
    unseen = (sums == _UNSEEN * counts[:, np.newaxis]).all(axis=1)
    sums[unseen], counts[unseen] = 0, 0
    return sums, counts


def _added(name: str, old: ActivationEntry | None, new: ActivationEntry) -> ActivationEntry:
    if old is None:
        return new
    if old.sums.size != new.sums.size:
        raise ShapeError(f"`{name}` has {old.sums.size} values in one file and {new.sums.size} in another")
    if len(old.counts) == len(new.counts):
        return ActivationEntry(old.sums + new.sums, old.counts + new.counts)
    if len(old.counts) == 1:
        old = ActivationEntry(*_by_expert(old.sums, old.counts, len(new.counts)))
    elif len(new.counts) == 1:
        new = ActivationEntry(*_by_expert(new.sums, new.counts, len(old.counts)))
    else:
        raise ShapeError(f"`{name}` has {len(old.counts)} experts in one file, {len(new.counts)} in another")
    return ActivationEntry(old.sums + new.sums, old.counts + new.counts)


class ActivationCollector:
    """Collects statistics of the inputs of matrices; made by `Model.collect_activations`.

    Attributes:
        all_experts, similarity, output, choices: As asked for.
        n_chunks: Texts that count: blocks of `chunk`, and calls of the model outside of such blocks.
        chunk_size: Tokens of the longest of them.
    """

    def __init__(
        self,
        *,
        all_experts: bool = False,
        similarity: bool = False,
        output: bool = True,
        choices: bool = False,
        covariance_layers: range | None = None,
        n_threads: int | None = None,
        origin: str | None = None,
    ) -> None:
        self._origin = origin
        self._core = _ikq.StatisticsCollector(
            all_experts=all_experts,
            similarity=similarity,
            output=output,
            choices=choices,
            covariance_layers=(
                None if covariance_layers is None else (covariance_layers.start, covariance_layers.stop)
            ),
            n_threads=n_threads,
        )
        # of the model's head for further tokens, whose layer is none of the model's
        self._head = _ikq.StatisticsCollector(
            all_experts=all_experts, similarity=False, output=output, choices=choices
        )
        self.all_experts = all_experts
        self.similarity = similarity
        self.output = output
        self.choices = choices
        self.n_chunks = 0
        self.chunk_size = 0
        self._open = False
        self._n_tokens = 0

    @contextmanager
    def chunk(self) -> Iterator[None]:
        """Calls of the model that count together, or not at all if one of them fails."""
        if self._open:
            raise ValueError("chunks do not nest")
        self._open = True
        try:
            yield
        except BaseException:
            self._discard()
            raise
        else:
            self._commit()
        finally:
            self._open = False

    def _evaluated(self, n_tokens: int) -> None:
        """The model has run tokens."""
        self._n_tokens += n_tokens
        if not self._open:
            self._commit()

    def _failed(self) -> None:
        """The model has not."""
        if not self._open:
            self._discard()

    def _commit(self) -> None:
        self._core.commit()
        self._head.commit()
        self.n_chunks += 1
        self.chunk_size = max(self.chunk_size, self._n_tokens)
        self._n_tokens = 0

    def _discard(self) -> None:
        self._core.discard()
        self._head.discard()
        self._n_tokens = 0

    def statistics(self, dataset: str | None = None) -> ActivationStatistics:
        """A copy of what counts so far.

        Args:
            dataset: Name of the text.
        """
        entries = {
            name: ActivationEntry(sums, counts.astype(np.float64))
            for name, sums, counts in (*self._core.entries(), *self._head.entries())
        }
        return ActivationStatistics(
            entries,
            datasets=[] if dataset is None else [dataset],
            n_chunks=self.n_chunks,
            chunk_size=self.chunk_size,
            all_experts=self.all_experts,
        )

    def expert_choices(self) -> dict[str, list[list[int]]]:
        """By name of the router, the experts of every token that counts, in the order in which they ran.

        Lists, because an expert reduction gives tokens different numbers of experts. Empty unless `choices`.
        """
        return dict((*self._core.choices(), *self._head.choices()))

    def write_covariances(
        self, path: str | os.PathLike[str], dataset: str | None = None, *, identity: str | None = None
    ) -> None:
        """Writes the covariances that count so far, where they were asked for.

        Args:
            path: The file; what was there stays until the new one is whole.
            dataset: Name of the text.
            identity: What the run depends on, for one that goes on from the file.

        Raises:
            OSError: the file cannot be written.
        """
        datasets = [] if dataset is None else [dataset]
        self._core.write_covariances(
            os.fspath(path), datasets, self.n_chunks, self.chunk_size, self._origin, identity
        )

    def restore_covariances(self, path: str | os.PathLike[str], identity: str) -> None:
        """Continues from a file of `write_covariances`; results are the same bits as without interruption.

        Raises:
            OSError: the file cannot be read.
            FormatError: it is damaged, or of another run.
        """
        file = _ikq.CovarianceFile.open(os.fspath(path))
        if file.identity != identity:
            raise FormatError(f"{os.fspath(path)} is of another run")
        self._core.restore_covariances(file)

    def layer_similarity(self) -> list[LayerSimilarity]:
        """How alike inputs and outputs of layers are, layer after layer; empty unless `similarity`."""
        layers, n_tokens = self._core.similarity()
        return [LayerSimilarity(*(total / n_tokens for total in layer)) for layer in layers]

    def state(self) -> dict[str, object]:
        """Everything that counts so far, for `restore`.

        Numbers and lists for JSON, and under `arrays` pairs of sums float64 `(n, n_per_row)` and counts
        uint64 `(n,)`.
        """
        sites, layers, n_tokens = self._core.state()
        of_head, _, _ = self._head.state()
        n_of_head = len(of_head)
        sites = [*sites, *of_head]
        return {
            "n_of_head": n_of_head,
            "owners": [owners for owners, _, _ in sites],
            "layers": layers,
            "n_tokens": n_tokens,
            "n_chunks": self.n_chunks,
            "chunk_size": self.chunk_size,
            "arrays": [(sums, counts) for _, sums, counts in sites],
        }

    def restore(self, state: dict[str, object]) -> None:
        """Continues from what `state` returned; results are the same bits as without interruption.

        Raises:
            FormatError: it is not such a state.
        """
        try:
            owners, arrays = state["owners"], state["arrays"]
            assert isinstance(owners, list)
            assert isinstance(arrays, list)
            sites = [
                (
                    [([str(n) for n in names], bool(pooled)) for names, pooled in owner],
                    np.ascontiguousarray(sums, np.float64),
                    np.ascontiguousarray(counts, np.uint64),
                )
                for owner, (sums, counts) in zip(owners, arrays, strict=True)
            ]
            layers = [[float(x) for x in layer] for layer in state["layers"]]  # type: ignore[attr-defined]
            n_own = len(sites) - int(state["n_of_head"])  # type: ignore[call-overload]
            self._core.restore(sites[:n_own], layers, int(state["n_tokens"]))  # type: ignore[call-overload]
            self._head.restore(sites[n_own:], [], 0)
            self.n_chunks = int(state["n_chunks"])  # type: ignore[call-overload]
            self.chunk_size = int(state["chunk_size"])  # type: ignore[call-overload]
        except (AssertionError, KeyError, TypeError, ValueError) as e:
            raise FormatError(f"not a state of a collector: {e}") from e
