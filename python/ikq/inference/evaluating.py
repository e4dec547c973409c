"""`EvaluatingModel`: the computations of `Model`: steps, sequences, logits, activation statistics."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq import _ikq
from ikq.errors import FormatError, RefusedError
from ikq.files.gguf import GGUFReader
from ikq.inference import sequence
from ikq.inference.lora import LoraAdapter, Scales
from ikq.inference.sequence import Best, Want, Wanted
from ikq.models import ModelSpec
from ikq.sampling import Candidates
from ikq.sampling.candidates import candidates
from ikq.speculation.mtp import MtpHead
from ikq.statistics.activations import ActivationCollector
from ikq.text.model import TextModel

__all__ = ["EvaluatingModel"]


class EvaluatingModel(TextModel):
    """A model that computes logits for any number of sequences, of which one is its own."""

    def __init__(
        self,
        engine: _ikq.Engine,
        spec: ModelSpec,
        reader: GGUFReader,
        *,
        n_ubatch: int,
        load_head: Callable[[int], tuple[_ikq.Engine, ModelSpec] | None] | None,
    ) -> None:
        super().__init__(reader, n_ubatch)
        self._engine = engine
        # of the head for further tokens; loaded when it is needed
        self._load_head = load_head
        self._mtp: MtpHead | None = None
        self._n_ubatch = n_ubatch
        self._own = sequence.Sequence(engine.new_sequence())
        # a step, and what belongs to it
        self._lock = threading.RLock()
        self._is_closed = False
        self._collector: ActivationCollector | None = None
        self._origin = _ikq.model_origin(reader._opened())
        self.spec: ModelSpec = spec
        """What was made of the file's metadata."""

    def new_sequence(self, *, lora: Iterable[float] | None = None) -> sequence.Sequence:
        """A sequence of no tokens. It takes memory as it grows.

        Args:
            lora: Scales of the model's adapters for all its tokens; `None`: those of `lora_adapters`.

        Raises:
            RefusedError: `lora` is not a finite number for each adapter.
            ValueError: the model is closed.
        """
        self._check_open()
        return sequence.Sequence(self._engine.new_sequence(None if lora is None else list(lora)))

    @property
    def lora_adapters(self) -> tuple[LoraAdapter, ...]:
        """The LoRA adapters that the model was loaded with, and the scales that new sequences have."""
        return tuple(LoraAdapter(*adapter) for adapter in self._engine.adapters)

    def set_lora(self, scales: Iterable[float]) -> None:
        """Sets the scales of the model's adapters, 0 for those that shall have no effect.

        They hold for sequences that are made, and texts that begin, from now on; others keep theirs. The
        model's own sequence is empty afterwards.

        Args:
            scales: One for each of `lora_adapters`, in their order.

        Raises:
            RefusedError: they are not a finite number for each adapter.
            ValueError: the model is closed.
        """
        with self._lock:
            self._check_open()
            self._engine.set_scales(list(scales))
            own, self._own = self._own, sequence.Sequence(self._engine.new_sequence())
            own.close()

    def _lora_scales(self) -> Scales:
        return tuple(scale for _, scale in self._engine.adapters)

    def load_sequence(self, path: str | os.PathLike[str]) -> sequence.Sequence:
        """The sequence that `Sequence.save` wrote, with this file loaded and the same types of the cache.

        Raises:
            OSError: the file cannot be read.
            FormatError: it holds no such sequence, is damaged, or is of another model, form of the cache, or
                adapters.
            RefusedError: memory does not hold it.
            ValueError: the model is closed.
        """
        self._check_open()
        return sequence.Sequence(self._batcher.spared(lambda: self._engine.load_sequence(os.fspath(path))))

    @overload
    def step(
        self, entries: Iterable[tuple[sequence.Sequence, ArrayLike, Want]]
    ) -> list[NDArray[np.float32] | None]: ...

    @overload
    def step(
        self, entries: Iterable[tuple[sequence.Sequence, ArrayLike, Want | Best]]
    ) -> Sequence[Wanted]: ...

    def step(self, entries: Iterable[tuple[sequence.Sequence, ArrayLike, Want | Best]]) -> Sequence[Wanted]:
        """Runs tokens of several sequences at once, each after what its sequence holds.

        Args:
            entries: Sequences of this model, each once; token ids; and what is wanted of them.

        Returns:
            One per entry: for `last` float32 `(1, n_vocab)`, for `all` `(n_tokens, n_vocab)`, for `hidden`
            the states that the output matrix reads, `(n_tokens, n_embd)`; `None` for `none`. For `Best` the
            candidates after the last token or after each: as many of the largest logits, sorted.

        Raises:
            FormatError: a token is not in the vocabulary, or a weight is not finite.
            ShapeError: an entry has no tokens, or more than the context holds.
            RefusedError: memory does not hold the cache.
            ValueError: a sequence is closed, stands twice, or is of another model; the model is closed;
                `Best` wants too many.
                After any error sequences hold what they held before, but recurrent ones may have lost all:
                see `n_past`.

        Examples:
            >>> import ikq
            >>> model = ikq.Model.load("tests/data/tiny-moe-bf16.gguf", n_ctx=64)
            >>> a, b = model.new_sequence(), model.new_sequence()
            >>> found = model.step([(a, [1, 2, 3], "last"), (b, [4, 5], "hidden")])
            >>> [x.shape for x in found], a.n_past
            ([(1, 4096), (2, 256)], 3)
        """
        checked = [(s, _ids(tokens), want) for s, tokens, want in entries]
        with self._lock:
            self._check_open()
            before = [s.n_past for s, _, _ in checked]
            collector = self._collector
            core: list[tuple[_ikq.Sequence, list[int], str | tuple[int, bool], NDArray[np.float32] | None]]
            core = [(s._core, ids, want, None) for s, ids, want in checked]
            try:
                try:
                    found = self._engine.step(core)
                except RefusedError:
                    is_as_before = collector is None and before == [s.n_past for s, _, _ in checked]
                    if not (is_as_before and self._batcher.forget()):
                        raise
                    found = self._engine.step(core)
            except BaseException:
                if collector is not None:
                    collector._failed()
                raise
            finally:
                for s, _, _ in checked:
                    s._version += 1
            if collector is not None:
                collector._evaluated(sum(len(ids) for _, ids, _ in checked))
            return [candidates(*x) if isinstance(x, tuple) else x for x in found]

    @property
    def mtp(self) -> MtpHead | None:
        """The head that predicts further tokens (`nextn`); `None`: the file has none.

        `generate(..., mtp=True)` drafts with it. Loaded when it is first asked for, with the options of the
        model.

        Raises:
            OSError, FormatError, ShapeError, UnsupportedError, RefusedError: as `load`.
            ValueError: the model is closed.
        """
        with self._lock:
            self._check_open()
            if self._mtp is None and self._load_head is not None:
                found = self._load_head(self.n_ctx)
                if found is not None:
                    self._mtp = MtpHead(*found, self._engine)
                    if self._collector is not None:
                        self._mtp.set_collector(self._collector._head)
                self._load_head = None
            return self._mtp

    def _head(self, hidden: NDArray[np.float32], lora: Scales | None = None) -> NDArray[np.float32]:
        with self._lock:
            self._check_open()
            return self._engine.head(np.ascontiguousarray(hidden), None if lora is None else list(lora))

    def _head_best(self, hidden: NDArray[np.float32], n: int, lora: Scales | None = None) -> list[Candidates]:
        scales = None if lora is None else list(lora)
        with self._lock:
            self._check_open()
            return candidates(*self._engine.head_best(np.ascontiguousarray(hidden), n, scales))

    def logits(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Logits after every token of a text.

        Args:
            tokens: Token ids, at least one, at most `n_ctx`.

        Returns:
            float32 `(n_tokens, n_vocab)`. The model's own sequence holds the tokens afterwards.

        Raises:
            FormatError: a token is not in the vocabulary, or a weight is not finite.
            ShapeError: there are no tokens, or more than the context holds.
        """
        self.truncate(0)
        return self.eval(tokens)

    def eval(self, tokens: ArrayLike, *, want: Want = "all") -> NDArray[np.float32]:
        """Runs tokens after those that the model's own sequence holds.

        Args:
            tokens: Token ids.
            want: Logits of all these tokens, of the last one, or none; or hidden states, see `step`.

        Returns:
            float32 `(n, n_vocab)`, n being the number of positions wanted; or `(n_tokens, n_embd)`.

        Raises:
            FormatError: as `logits`; the sequence holds what it held before.
            ShapeError: as `logits`.
        """
        (found,) = self.step([(self._own, tokens, want)])
        return np.zeros((0, self.spec.n_vocab), np.float32) if found is None else found

    @contextmanager
    def collect_activations(
        self,
        *,
        all_experts: bool = False,
        similarity: bool = False,
        output: bool = True,
        choices: bool = False,
        covariance_layers: range | None = None,
    ) -> Iterator[ActivationCollector]:
        """Collects statistics of the inputs of all matrices, while the block runs the model.

        The statistics depend neither on the plan by which an FFN is computed nor on the number of threads.

        Args:
            all_experts: Every token counts for every expert, not only for those that it was routed to. What
                the model computes does not change.
            similarity: Compare the inputs of layers with their outputs as well.
            output: Collect the input of the output matrix at every position, whichever logits are wanted.
            choices: Remember which experts every token was routed to.
            covariance_layers: Layers whose inputs' covariances are collected as well, with all CPUs
                (`ActivationCollector.write_covariances`).

        Raises:
            ValueError: another block collects already.

        Examples:
            >>> import ikq
            >>> model = ikq.Model.load("tests/data/tiny-moe-bf16.gguf", n_ctx=64)
            >>> with model.collect_activations() as collector:
            ...     _ = model.logits([1, 2, 3])
            >>> statistics = collector.statistics("three tokens")
            >>> len(statistics), statistics["blk.0.ffn_up_exps.weight"].counts.sum()
            (33, np.float64(6.0))
        """
        collector = ActivationCollector(
            all_experts=all_experts,
            similarity=similarity,
            output=output,
            choices=choices,
            covariance_layers=covariance_layers,
            origin=self._origin,
        )
        with self._lock:
            if self._collector is not None:
                raise ValueError("this model's activations are being collected already")
            self._engine.set_collector(collector._core)
            if self._mtp is not None:
                self._mtp.set_collector(collector._head)
            self._collector = collector
        try:
            yield collector
        finally:
            with self._lock:
                self._collector = None
                self._engine.set_collector(None)
                if self._mtp is not None:
                    self._mtp.set_collector(None)

    @property
    def n_ctx(self) -> int:
        """The largest number of positions of a sequence."""
        return self._engine.n_ctx

    @property
    def n_past(self) -> int:
        """Positions that the model's own sequence holds."""
        self._check_open()
        return self._own.n_past

    @property
    def n_threads(self) -> int:
        """Threads that the model runs on."""
        return self._engine.n_threads

    @property
    def n_ubatch(self) -> int:
        """The largest number of tokens that are computed at once (ubatch); longer steps are divided."""
        return self._n_ubatch

    def sequence_bytes(self, n: int) -> int:
        """Bytes of the cache that a sequence of `n` positions takes at most."""
        return self._engine.sequence_bytes(n)

    def pages_held(self) -> list[tuple[int | None, int]]:
        """Pages of 256 positions that sequences hold at the moment, what they share counted once.

        Each group of layers with the same attention window has an entry: the window (`None` if there is
        none), and the pages.
        """
        self._check_open()
        return self._engine.pages_held()

    def truncate(self, n: int) -> None:
        """Keeps the first `n` positions of the model's own sequence, for prompts that begin alike.

        Raises:
            UnsupportedError: it cannot go back there, see `Sequence.rewindable`; 0 always works.
        """
        self._check_open()
        self._own.truncate(n)

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Drops positions of the model's own sequence to make room, see `Sequence.shift`.

        Raises:
            UnsupportedError: the model has recurrent layers.
            ShapeError: there are not as many positions.
        """
        self._check_open()
        self._own.shift(n_keep, n_discard)

    def close(self) -> None:
        """Frees weights and cache; its sequences cannot be used any more."""
        self._is_closed = True
        if self._mtp is not None:
            self._mtp.close()
        self._engine.close()
        self._batcher.forget()
        self._own.close()

    def _own_sequences(self) -> tuple[sequence.Sequence, ...]:
        return (self._own,)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the model is closed")


def _ids(tokens: ArrayLike) -> list[int]:
    """Token ids as a list.

    Raises:
        FormatError: they are no flat sequence of integers.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise FormatError(f"tokens are a flat sequence of integers, not {ids.dtype} of shape {ids.shape}")
    found: list[int] = ids.tolist()
    return found
