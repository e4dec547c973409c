"""Running models: `Model`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq import _ikq
from ikq.activations import ActivationCollector
from ikq.errors import FormatError
from ikq.gguf import GGUFReader
from ikq.models import ModelSpec, model_spec
from ikq.quant_types import QuantType
from ikq.text import TextModel

__all__ = ["Explanation", "FfnPlan", "Memory", "Model"]


class FfnPlan(NamedTuple):
    """How a layer's FFN is computed.

    Attributes:
        layer: Index of the layer.
        role: `dense`, `experts` or `shared`.
        plan: `fused`, `merged` or `separate`.
        why: The reason.
        gate, up, down: Types of the weights.
    """

    layer: int
    role: str
    plan: str
    why: str
    gate: QuantType
    up: QuantType
    down: QuantType


class Memory(NamedTuple):
    """Bytes that a model takes.

    Attributes:
        mapped: Weights read from the mapped files.
        copied: Weights copied to memory of this process.
        cache: Keys, values and recurrent states of all positions.
    """

    mapped: int
    copied: int
    cache: int


class Explanation(NamedTuple):
    """What `Model.explain` tells.

    Attributes:
        architecture: Name of the architecture.
        ffn: One plan per FFN, in order of layers.
        memory: Where the weights are.
        why_memory: Why they were copied or not.
        loaded_by: Programs that know every tensor type of the file.
        notes: What was assumed because the file does not say it.
    """

    architecture: str
    ffn: tuple[FfnPlan, ...]
    memory: Memory
    why_memory: str
    loaded_by: tuple[str, ...]
    notes: tuple[str, ...]


class Model(TextModel):
    """A model that runs. A context manager; `close` frees its memory.

    One call runs at a time; calls from other threads wait. The interpreter is released meanwhile.
    `generate` and `chat` give text, `logits` and `eval` what it is made from.

    Examples:
        >>> import ikq
        >>> with ikq.Model.load("tests/data/tiny-moe-bf16.gguf", n_ctx=64) as model:
        ...     model.logits([1, 2, 3]).shape
        (3, 4096)
    """

    def __init__(
        self, engine: _ikq.Engine, spec: ModelSpec, reader: GGUFReader, *, n_ubatch: int = 512
    ) -> None:
        super().__init__(reader, n_ubatch)
        self._engine = engine
        self._collector: ActivationCollector | None = None
        self._types = frozenset(t.type for t in reader.tensors.values())
        self.spec: ModelSpec = spec
        """What was made of the file's metadata."""

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_ubatch: int = 512,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        compute: Literal["auto", "f32"] = "auto",
        fused_up_gate: bool = True,
        fused_moe: bool = True,
        merge_up_gate_experts: bool = False,
        expert_reduction: tuple[int, float] | None = None,
        mmap: Literal["auto", "on", "off"] = "auto",
        repack: bool = False,
        yarn_truncate: bool = True,
        override_kv: Mapping[str, bool | int | float | str] | None = None,
    ) -> Model:
        """Loads a GGUF file, or the split set that it belongs to.

        Args:
            path: The file, or any shard.
            n_ctx: Positions of the cache. `None`: the trained context, or the largest half, quarter, ... of
                it whose cache takes at most a quarter of the free memory.
            n_threads: Threads; `None`: one per CPU.
            n_ubatch: Most tokens that are computed at once.
            cache_type_k: Type of cached keys: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl or q6_0.
            cache_type_v: Type of cached values.
            compute: `auto`: activations are quantized to 8 bits for products with block types; `f32`: float32
                products of the decoded weights, exact and slow.
            fused_up_gate: Compute gate, up and activation of an FFN in one pass.
            fused_moe: The same for experts.
            merge_up_gate_experts: Treat gate and up experts as one matrix; a view, nothing is copied.
            expert_reduction: `(k, t)`: of the chosen experts those after the first k are dropped whose
                weight is below t times the largest (`-ser k,t`).
            mmap: `auto` copies weights to huge pages when memory allows and keeps the mapping where it does
                not; `on` keeps it, `off` copies.
            repack: Join rows to groups of their interleaved types while loading, as some engines do. It
                gains nothing here and changes no result; it is there to compare. Copies, whatever `mmap`
                says.
            yarn_truncate: Bounds of YaRN's ramp are integers, as in GGUF engines (gpt-oss was published
                without).
            override_kv: Metadata to be read instead of the file's.

        Raises:
            OSError: the file cannot be read.
            FormatError: it is not GGUF, is damaged, or its metadata and tensors do not fit together.
            ShapeError: a tensor does not have the shape that the model needs.
            UnsupportedError: the architecture, a tensor type or a cache type is not supported.
            RefusedError: memory does not hold the weights or the cache.
        """
        reader = GGUFReader(path)
        reader.metadata.update(override_kv or {})
        spec = model_spec(reader, yarn_truncate=yarn_truncate)
        if expert_reduction is not None:
            k, t = expert_reduction
            if k < 1 or not 0 <= t <= 1:
                raise ValueError(f"expert_reduction={expert_reduction}: at least 1 expert, a share of 0 to 1")
            expert_reduction = (int(k), float(t))
        engine = _ikq.Engine.load(
            reader._opened(),
            spec.to_json(),
            n_ctx=n_ctx,
            n_threads=n_threads,
            n_ubatch=n_ubatch,
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            compute=compute,
            fused_up_gate=fused_up_gate,
            fused_moe=fused_moe,
            merge_up_gate_experts=merge_up_gate_experts,
            expert_reduction=expert_reduction,
            mmap=mmap,
            repack=repack,
            isa_name=None,
        )
        model = cls(engine, spec, reader, n_ubatch=n_ubatch)
        reader.close()  # its metadata stay
        return model

    def logits(self, tokens: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Logits after every token, from an empty cache.

        Args:
            tokens: Token ids, at least one, at most `n_ctx`.

        Returns:
            float32 `(n_tokens, n_vocab)`. The cache holds the tokens afterwards.

        Raises:
            FormatError: a token is not in the vocabulary, or a weight is not finite.
            ShapeError: there are no tokens, or more than the context holds.
        """
        self.truncate(0)
        return self.eval(tokens)

    def eval(self, tokens: ArrayLike, *, want: Literal["all", "last", "none"] = "all") -> NDArray[np.float32]:
        """Runs tokens after those that the cache holds.

        Args:
            tokens: Token ids.
            want: Logits of all these tokens, of the last one, or none.

        Returns:
            float32 `(n, n_vocab)`, n being the number of positions wanted.

        Raises:
            FormatError: as `logits`; the cache holds what it held before.
            ShapeError: as `logits`.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise FormatError(f"tokens are a flat sequence of integers, not {ids.dtype} of shape {ids.shape}")
        with self._lock:
            collector = self._collector
            try:
                logits = self._engine.eval(ids.tolist(), want)
            except BaseException:
                if collector is not None:
                    collector._failed()
                raise
            finally:
                self._changed(self._cached + ids.tolist())
            if collector is not None:
                collector._evaluated(len(ids))
            return logits

    @contextmanager
    def collect_activations(
        self,
        *,
        all_experts: bool = False,
        similarity: bool = False,
        output: bool = True,
        choices: bool = False,
    ) -> Iterator[ActivationCollector]:
        """Collects statistics of what every matrix is multiplied with, while the block runs the model.

        They are the same whichever plan computes an FFN, and do not depend on threads.

        Args:
            all_experts: Every token counts for every expert, not only for those that it was routed to. What
                the model computes does not change.
            similarity: Compare the inputs of layers with their outputs as well.
            output: Collect the input of the output matrix at every position, whichever logits are wanted.
            choices: Remember which experts every token was routed to.

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
            all_experts=all_experts, similarity=similarity, output=output, choices=choices
        )
        with self._lock:
            if self._collector is not None:
                raise ValueError("this model's activations are being collected already")
            self._engine.set_collector(collector._core)
            self._collector = collector
        try:
            yield collector
        finally:
            with self._lock:
                self._collector = None
                self._engine.set_collector(None)

    @property
    def n_ctx(self) -> int:
        """Positions that the cache can hold."""
        return self._engine.n_ctx

    @property
    def n_past(self) -> int:
        """Positions that the cache holds."""
        return self._engine.n_past

    @property
    def n_threads(self) -> int:
        """Threads that the model runs on."""
        return self._engine.n_threads

    @property
    def memory(self) -> Memory:
        """Bytes that the model takes."""
        return Memory(*self._engine.memory)

    def truncate(self, n: int) -> None:
        """Keeps the first `n` positions of the cache, for prompts that begin alike.

        Raises:
            UnsupportedError: the model has recurrent layers, whose state cannot go back; 0 always works.
        """
        with self._lock:
            self._engine.truncate(n)
            self._changed(self._cached[:n])

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Makes room: forgets `n_discard` positions after the first `n_keep`; the later ones move down.

        Raises:
            UnsupportedError: the model has recurrent layers.
        """
        with self._lock:
            self._engine.shift(n_keep, n_discard)
            self._changed(self._cached[:n_keep] + self._cached[n_keep + n_discard :])

    def explain(self) -> Explanation:
        """How each FFN is computed and why, where the weights are, and who else can load the file."""
        plans = tuple(
            FfnPlan(layer, role, plan, why, *(QuantType[t] for t in types))
            for layer, role, plan, why, types in self._engine.plans()
        )
        # nobody is known to know a type that ikq does not
        known = [set(t.known_to) if isinstance(t, QuantType) else set() for t in self._types]
        programs = sorted(set.intersection(*known))
        why = self._engine.why_memory
        return Explanation(self.spec.architecture, plans, self.memory, why, tuple(programs), self.spec.notes)

    def close(self) -> None:
        """Frees weights and cache."""
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
