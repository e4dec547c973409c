"""Running models: `Model`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq import _ikq, cuda, sequence
from ikq.activations import ActivationCollector
from ikq.errors import FormatError, RefusedError
from ikq.gguf import GGUFReader
from ikq.models import ModelSpec, model_spec, mtp_spec
from ikq.quant_types import QuantType
from ikq.sequence import Want
from ikq.speculation.draft_model import DraftModels
from ikq.speculation.mtp import MtpHead
from ikq.text import TextModel

__all__ = ["PLANNED", "Explanation", "FfnPlan", "LoadingPlan", "Memory", "Model", "Placed"]

PLANNED = (
    "n_ctx",
    "cache_type_k",
    "cache_type_v",
    "cache_rotation",
    "swa_full",
    "devices",
    "n_gpu_layers",
    "override_tensor",
    "cpu_moe",
    "n_cpu_moe",
    "override_kv",
)
"""Options of `Model.load` that command lines hand to `Model.plan` as well: they decide what goes where."""

_REPACK = "repack=True has no effect: weights are re-arranged while loading in any case"


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


class Placed(NamedTuple):
    """Where a part of the model is computed.

    Attributes:
        stage: The part: `embedding`, `layer 3, attention`, `layer 3, experts`, ..., `output`.
        device: Name of the device.
        bytes: Bytes of its matrices in the file.
        why: The reason.
    """

    stage: str
    device: str
    bytes: int
    why: str


class Memory(NamedTuple):
    """Bytes that a model takes.

    Attributes:
        mapped: Weights read from the mapped files.
        copied: Weights copied to memory of this process, or of GPUs.
        cache: Keys, values and recurrent states that sequences hold at the moment, what they share counted
            once. Those that the model keeps for texts that begin alike are among them.
    """

    mapped: int
    copied: int
    cache: int


class LoadingPlan(NamedTuple):
    """What loading would take, from `Model.plan`.

    Attributes:
        placement: Where every stage of every layer would be computed, in order.
        weights: Bytes of weights by device, but for those of the embedding, which stay mapped.
        cache: Bytes of the cache of one text of `n_ctx` tokens.
        n_ctx: As asked for, or the trained context.
    """

    placement: tuple[Placed, ...]
    weights: dict[str, int]
    cache: int
    n_ctx: int


class Explanation(NamedTuple):
    """What `Model.explain` tells.

    Attributes:
        architecture: Name of the architecture.
        ffn: One plan per FFN, in order of layers.
        placement: Where every stage of every layer is computed, in order.
        memory: Where the weights are.
        why_memory: Why they were copied or not.
        loaded_by: Programs that know every tensor type of the file.
        notes: What was assumed because the file does not say it, and options that have no effect.
    """

    architecture: str
    ffn: tuple[FfnPlan, ...]
    placement: tuple[Placed, ...]
    memory: Memory
    why_memory: str
    loaded_by: tuple[str, ...]
    notes: tuple[str, ...]


class Model(TextModel):
    """A model that runs. A context manager; `close` frees its memory.

    `generate` and `chat` give text, `logits` and `eval` what it is made from. `new_sequence` and `step` are
    for loops of your own, over any number of texts at once. One step runs at a time; calls from other threads
    wait. The interpreter is released meanwhile.

    What a sequence gives does not depend on what is computed beside it, on how its tokens are cut into steps,
    nor on the number of threads: it is the same bits.

    Examples:
        >>> import ikq
        >>> with ikq.Model.load("tests/data/tiny-moe-bf16.gguf", n_ctx=64) as model:
        ...     model.logits([1, 2, 3]).shape
        (3, 4096)
    """

    def __init__(
        self,
        engine: _ikq.Engine,
        spec: ModelSpec,
        reader: GGUFReader,
        *,
        n_ubatch: int = 512,
        notes: Iterable[str] = (),
        load_head: Callable[[int], tuple[_ikq.Engine, ModelSpec] | None] | None = None,
    ) -> None:
        super().__init__(reader, n_ubatch)
        self._engine = engine
        # of the head for further tokens; loaded when it is needed
        self._load_head = load_head
        self._mtp: MtpHead | None = None
        self._draft_models = DraftModels()
        self._n_ubatch = n_ubatch
        self._own = sequence.Sequence(engine.new_sequence())
        # a step, and what belongs to it
        self._lock = threading.RLock()
        self._is_closed = False
        self._collector: ActivationCollector | None = None
        self._origin = _ikq.model_origin(reader._opened())
        self._types = frozenset(t.type for t in reader.tensors.values())
        self._notes = tuple(notes)
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
        cache_rotation: bool = True,
        swa_full: bool = False,
        compute: Literal["auto", "f32"] = "auto",
        fused_up_gate: bool = True,
        fused_moe: bool = True,
        merge_up_gate_experts: bool = False,
        expert_reduction: tuple[int, float] | None = None,
        mmap: Literal["auto", "on", "off"] = "auto",
        repack: bool = False,
        devices: Sequence[str] = ("CPU",),
        n_gpu_layers: int = 0,
        override_tensor: str | Sequence[str] = (),
        cpu_moe: bool = False,
        n_cpu_moe: int = 0,
        yarn_truncate: bool = True,
        override_kv: Mapping[str, bool | int | float | str] | None = None,
    ) -> Model:
        """Loads a GGUF file, or the split set that it belongs to.

        Args:
            path: The file, or any shard.
            n_ctx: Most positions of a sequence, which takes memory as it grows. `None`: the trained context,
                or the largest half, quarter, ... of it that takes at most a quarter of the free memory.
            n_threads: Threads; `None`: one per CPU.
            n_ubatch: Most tokens that are computed at once.
            cache_type_k: Type of cached keys: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl or q6_0.
            cache_type_v: Type of cached values.
            cache_rotation: Rotate what is cached with 6 bits or less by a Hadamard matrix, which makes it far
                more exact.
            swa_full: Keep keys and values behind sliding windows, so that sequences can go back to any
                position, for the memory of full contexts.
            compute: `auto`: activations are quantized to 8 bits for products with block types; `f32`: float32
                products of the decoded weights, exact and slow.
            fused_up_gate: Compute gate, up and activation of an FFN in one pass.
            fused_moe: The same for experts.
            merge_up_gate_experts: Treat gate and up experts as one matrix; a view, nothing is copied.
            expert_reduction: `(k, t)`: of the chosen experts those after the first k are dropped whose
                weight is below t times the largest (`-ser k,t`).
            mmap: `auto` copies weights to huge pages when memory allows and keeps the mapping where it does
                not; `on` keeps it, `off` copies.
            repack: No effect: weights are re-arranged while loading in any case.
            devices: What computes, the CPU first. `CUDA0`, `CUDA1`, ... are GPUs (see `ikq.cuda`), which so
                far compute all but recurrent layers; `CPU1`, `CPU2`, ... are the CPU again with memory of
                their own, to see what a placement does.
            n_gpu_layers: The last so many layers go to the first device that is not the CPU; more than there
                are: the output too.
            override_tensor: Rules `REGEX=DEVICE`, several joined by commas or in a list: tensors in whose
                names the expression is found go to that device. The first rule that fits holds, before all
                others.
            cpu_moe: Experts of all layers stay on the CPU.
            n_cpu_moe: Experts of the first so many layers that have any stay there.
            yarn_truncate: Bounds of YaRN's ramp are integers, as in GGUF engines (gpt-oss was published
                without).
            override_kv: Metadata to be read instead of the file's.

        Raises:
            OSError: the file cannot be read.
            FormatError: it is not GGUF, is damaged, or its metadata and tensors do not fit together.
            ShapeError: a tensor does not have the shape that the model needs.
            UnsupportedError: the architecture, a tensor type or a cache type is not supported.
            RefusedError: memory does not hold the weights or the cache; a rule names no device.
            DeviceError: a GPU is named and none is usable, does not hold its part, or does not compute it.
        """
        _look_for_gpus(devices)
        reader = GGUFReader(path)
        reader.metadata.update(override_kv or {})
        spec = model_spec(reader, yarn_truncate=yarn_truncate)
        if expert_reduction is not None:
            k, t = expert_reduction
            if k < 1 or not 0 <= t <= 1:
                raise ValueError(f"expert_reduction={expert_reduction}: at least 1 expert, a share of 0 to 1")
            expert_reduction = (int(k), float(t))

        def load(reader: GGUFReader, spec: ModelSpec, n_ctx: int | None) -> _ikq.Engine:
            return _ikq.Engine.load(
                reader._opened(),
                spec.to_json(),
                n_ctx=n_ctx,
                n_threads=n_threads,
                n_ubatch=n_ubatch,
                cache_type_k=cache_type_k,
                cache_type_v=cache_type_v,
                cache_rotation=cache_rotation,
                swa_full=swa_full,
                compute=compute,
                fused_up_gate=fused_up_gate,
                fused_moe=fused_moe,
                merge_up_gate_experts=merge_up_gate_experts,
                expert_reduction=expert_reduction,
                mmap=mmap,
                devices=list(devices),
                n_gpu_layers=n_gpu_layers,
                override_tensor=_rules(override_tensor),
                cpu_moe=cpu_moe,
                n_cpu_moe=n_cpu_moe,
                isa_name=None,
            )

        file = Path(path).absolute()

        def load_head(n_ctx: int) -> tuple[_ikq.Engine, ModelSpec] | None:
            with GGUFReader(file) as reader:
                reader.metadata.update(override_kv or {})
                spec = mtp_spec(reader, yarn_truncate=yarn_truncate)
                return None if spec is None else (load(reader, spec, n_ctx), spec)

        model = cls(
            load(reader, spec, n_ctx),
            spec,
            reader,
            n_ubatch=n_ubatch,
            notes=[_REPACK] if repack else [],
            load_head=load_head,
        )
        reader.close()  # its metadata stay
        return model

    def exchange(self, reader: GGUFReader) -> Model:
        """The model of another file of the same metadata, on the memory of this one, which is closed.

        Tensors that both have in common are not loaded again: readers that `GGUFReader.with_tensors_of` makes
        of the same files share them. The options are those that this model was loaded with. There is no head
        for further tokens.

        Args:
            reader: The file; it can be closed afterwards.

        Raises:
            FormatError, ShapeError, UnsupportedError, RefusedError: as `load`.
            ValueError: the model is closed, or its activations are being collected.
        """
        with self._lock:
            self._check_open()
            if self._collector is not None:
                raise ValueError("this model's activations are being collected")
            try:
                engine = self._engine.exchange(reader._opened())
            finally:
                self.close()
        return Model(engine, self.spec, reader, n_ubatch=self._n_ubatch, notes=self._notes)

    @staticmethod
    def plan(
        path: str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        cache_rotation: bool = True,
        swa_full: bool = False,
        devices: Sequence[str] = ("CPU",),
        n_gpu_layers: int = 0,
        override_tensor: str | Sequence[str] = (),
        cpu_moe: bool = False,
        n_cpu_moe: int = 0,
        yarn_truncate: bool = True,
        override_kv: Mapping[str, bool | int | float | str] | None = None,
    ) -> LoadingPlan:
        """What `load` with these options would place where and take; nothing is loaded.

        Args:
            path: As for `load`, which has the other options, too.
            n_ctx: `None`: the trained context, though memory may hold less.
            cache_type_k: See there, as for all that follows.
            cache_type_v: See there.
            cache_rotation: See there.
            swa_full: See there.
            devices: See there.
            n_gpu_layers: See there.
            override_tensor: See there.
            cpu_moe: See there.
            n_cpu_moe: See there.
            yarn_truncate: See there.
            override_kv: See there.

        Raises:
            OSError: as `load`, like all other errors but those of memory.
        """
        with GGUFReader(path) as reader:
            reader.metadata.update(override_kv or {})
            spec = model_spec(reader, yarn_truncate=yarn_truncate)
            n_ctx = spec.n_ctx_train if n_ctx is None else n_ctx
            placement, weights, cache = _ikq.Engine.plan(
                reader._opened(),
                spec.to_json(),
                n_ctx=n_ctx,
                cache_type_k=cache_type_k,
                cache_type_v=cache_type_v,
                cache_rotation=cache_rotation,
                swa_full=swa_full,
                devices=list(devices),
                n_gpu_layers=n_gpu_layers,
                override_tensor=_rules(override_tensor),
                cpu_moe=cpu_moe,
                n_cpu_moe=n_cpu_moe,
            )
        return LoadingPlan(tuple(Placed(*p) for p in placement), dict(weights), cache, n_ctx)

    def new_sequence(self) -> sequence.Sequence:
        """A sequence of no tokens. It takes memory as it grows.

        Raises:
            ValueError: the model is closed.
        """
        self._check_open()
        return sequence.Sequence(self._engine.new_sequence())

    def load_sequence(self, path: str | os.PathLike[str]) -> sequence.Sequence:
        """The sequence that `Sequence.save` wrote, with this file loaded and the same types of the cache.

        Raises:
            OSError: the file cannot be read.
            FormatError: it holds no such sequence, is damaged, or is of another model or form of the cache.
            RefusedError: memory does not hold it.
            ValueError: the model is closed.
        """
        self._check_open()
        return sequence.Sequence(self._batcher.spared(lambda: self._engine.load_sequence(os.fspath(path))))

    def step(
        self, entries: Iterable[tuple[sequence.Sequence, ArrayLike, Want]]
    ) -> list[NDArray[np.float32] | None]:
        """Runs tokens of several sequences at once, each after what its sequence holds.

        Args:
            entries: Sequences of this model, each once; token ids; and what is wanted of them.

        Returns:
            One per entry: for `last` float32 `(1, n_vocab)`, for `all` `(n_tokens, n_vocab)`, for `hidden`
            the states that the output matrix reads, `(n_tokens, n_embd)`; `None` for `none`.

        Raises:
            FormatError: a token is not in the vocabulary, or a weight is not finite.
            ShapeError: an entry has no tokens, or more than the context holds.
            RefusedError: memory does not hold the cache.
            ValueError: a sequence is closed, stands twice, or is of another model; the model is closed.
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
            core: list[tuple[_ikq.Sequence, list[int], str, NDArray[np.float32] | None]]
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
            return found

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

    def _head(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock:
            self._check_open()
            return self._engine.head(np.ascontiguousarray(hidden))

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
        """Collects statistics of what every matrix is multiplied with, while the block runs the model.

        They are the same whichever plan computes an FFN, and do not depend on threads.

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
        """Most positions of a sequence."""
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
        """Most tokens that are computed at once; longer steps are cut."""
        return self._n_ubatch

    @property
    def memory(self) -> Memory:
        """Bytes that the model takes."""
        self._check_open()
        parts = [self._engine.memory, *([] if self._mtp is None else [self._mtp.memory])]
        return Memory(*(sum(sizes) for sizes in zip(*parts, strict=True)))

    def sequence_bytes(self, n: int) -> int:
        """Bytes of the cache that a sequence of `n` positions takes at most."""
        return self._engine.sequence_bytes(n)

    def pages_held(self) -> list[tuple[int | None, int]]:
        """Pages of 256 positions that sequences hold at the moment, what they share counted once.

        Per group of layers that see equally far: how far (`None`: all), and pages.
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
        """Makes room in the model's own sequence, see `Sequence.shift`.

        Raises:
            UnsupportedError: the model has recurrent layers.
            ShapeError: there are not as many positions.
        """
        self._check_open()
        self._own.shift(n_keep, n_discard)

    def explain(self) -> Explanation:
        """What is computed where, how and why, where the weights are, and who else can load the file."""
        self._check_open()
        plans = tuple(
            FfnPlan(layer, role, plan, why, *(QuantType[t] for t in types))
            for layer, role, plan, why, types in self._engine.plans()
        )
        # nobody is known to know a type that ikq does not
        known = [set(t.known_to) if isinstance(t, QuantType) else set() for t in self._types]
        return Explanation(
            architecture=self.spec.architecture,
            ffn=plans,
            placement=tuple(Placed(*p) for p in self._engine.placement()),
            memory=self.memory,
            why_memory=self._engine.why_memory,
            loaded_by=tuple(sorted(set.intersection(*known))),
            notes=(*self.spec.notes, *self._notes),
        )

    def close(self) -> None:
        """Frees weights and cache; its sequences cannot be used any more."""
        self._is_closed = True
        self._draft_models.close()
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

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _look_for_gpus(devices: Sequence[str]) -> None:
    """Has GPUs looked for where one is named.

    Raises:
        DeviceError: none is usable.
    """
    if any(name.upper().startswith("CUDA") for name in devices):
        cuda.require()


def _rules(override_tensor: str | Sequence[str]) -> list[str]:
    return [override_tensor] if isinstance(override_tensor, str) else list(override_tensor)


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
