"""Running models: `Model`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ikq import _ikq
from ikq.arrays.quant_types import QuantType
from ikq.files.gguf import GGUFReader
from ikq.inference.beside import Beside
from ikq.inference.devices import chosen_devices, count, layer_count, shares
from ikq.inference.drafts import SHARED, DraftOptions, last_device
from ikq.inference.evaluating import EvaluatingModel
from ikq.inference.explaining import (
    CacheRooms,
    Explanation,
    FfnPlan,
    Filled,
    Fitted,
    LoadingPlan,
    Memory,
    Placed,
)
from ikq.inference.fitting import MARGIN, FitOptions
from ikq.inference.fitting import fit as fitted_to
from ikq.inference.loading import (
    PLANNED,
    Drafts,
    FileOptions,
    LoadingOptions,
    PlacementOptions,
    rules,
    share_of_experts,
)
from ikq.inference.lora import Adapters, adapters_of
from ikq.inference.planning import plan as plan_loading
from ikq.models import ModelSpec
from ikq.speculation.draft_model import DraftModels

__all__ = [
    "PLANNED",
    "Explanation",
    "FfnPlan",
    "Filled",
    "Fitted",
    "LoadingPlan",
    "Memory",
    "Model",
    "Placed",
]

_REPACK = "repack=True has no effect: weights are re-arranged while loading in any case"


class Model(EvaluatingModel):
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
        draft_options: DraftOptions | None = None,
    ) -> None:
        super().__init__(engine, spec, reader, n_ubatch=n_ubatch, load_head=load_head)
        self._draft_models = DraftModels(draft_options or DraftOptions())
        self._types = frozenset(t.type for t in reader.tensors.values())
        self._notes = tuple(notes)

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
        devices: Sequence[str] | str | None = None,
        n_gpu_layers: int | None = None,
        tensor_split: Sequence[float] = (),
        override_tensor: str | Sequence[str] = (),
        cpu_moe: bool = False,
        n_cpu_moe: int = 0,
        kv_offload: bool = True,
        fit: bool = False,
        fit_margin: int = MARGIN,
        fit_sequences: int = 1,
        yarn_truncate: bool = True,
        override_kv: Mapping[str, bool | int | float | str] | None = None,
        lora: Adapters = (),
        mtp: bool = False,
        draft_model: str | os.PathLike[str] | None = None,
        draft_options: Mapping[str, Any] | None = None,
    ) -> Model:
        """Loads a GGUF file, or the split set that it belongs to.

        Args:
            path: The file, or any shard.
            n_ctx: The largest number of positions of a sequence, which takes memory as it grows. `None`: the
                trained context, or the largest half, quarter, ... of it whose cache takes at most a quarter
                of the free memory of each device (RAM for the CPU) that has a part of it.
            n_threads: Threads; `None`: one per CPU.
            n_ubatch: The largest number of tokens that are computed at once.
            cache_type_k: Type of cached keys: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl or q6_0.
            cache_type_v: Type of cached values.
            cache_rotation: Rotate keys and values that are cached with 6 bits or less by a Hadamard matrix,
                which makes them far more exact.
            swa_full: Keep keys and values that sliding windows have left behind, so that sequences can go
                back to any position. This takes the memory of a full context.
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
            devices: What computes beside the CPU, in order: `CUDA0`, `CUDA1`, ... are GPUs (see `ikq.cuda`),
                `CPU1`, `CPU2`, ... are the CPU again with memory of their own, to see what a placement does.
                The CPU need not be named; `CPU` or `none` alone is the CPU alone. `None`: all GPUs that can
                be used where `n_gpu_layers` is given, else the CPU. Letters of either case mean the same.
            n_gpu_layers: This many layers, the last ones, go to the devices beside the CPU; with a larger
                number than there are layers, the output does, too, and -1 means all of these. `None`: all
                where `devices` names any beside the CPU, else none.
            tensor_split: In which proportions these layers are divided over the devices beside the CPU: a
                number for each, in their order. Unless given, with several devices, the MiB of their memory
                that are free.
            override_tensor: Rules `REGEX=DEVICE`, several joined by commas or in a list: tensors in whose
                names the expression is found go to that device. The first rule that fits holds, before all
                others. A device that only rules name gets nothing else.
            cpu_moe: Experts of all layers stay on the CPU.
            n_cpu_moe: Experts of this many layers, the first ones that have any, stay on the CPU.
            kv_offload: Where it is false, the cache is in RAM, and the CPU computes attention over it;
                matrices are where the other options say. Latent attention and recurrent layers stay on the
                CPU as a whole, unless `override_tensor` names their tensors.
            fit: Put as much on the GPUs that `devices` names (all that can be used, where it names none) as
                their free memory holds with the cache and the buffers of a step; each is filled before the
                next one. Experts of the last layers stay on the CPU first, then those of all layers, then
                the first layers as a whole; `n_gpu_layers` but 0 is the most layers that go to GPUs. Not
                with other options that say what goes where. Where `n_ctx` is `None` the context is the
                trained one, or the largest half, quarter, ... of it whose cache takes at most a quarter of
                the memory that is free.
            fit_margin: MiB of each GPU's free memory that stay free. Compiled kernels take some of them, and
                what other programs begin to use there meanwhile.
            fit_sequences: Texts of full length for whose cache there is to be room.
            yarn_truncate: Round the bounds of YaRN's ramp to integers, as GGUF engines do (gpt-oss was
                published without that).
            override_kv: Metadata to be read instead of the file's.
            lora: LoRA adapters (`LoraAdapter`, or only a file), which are added to the model's products; its
                weights stay as they are. What they change is computed on the CPU. The head for further
                tokens drafts without them.
            mtp: The head for further tokens is to draft: `fit` leaves room for it.
            draft_model: The file of a model that is to draft, for which `fit` leaves room. Who drafts a text
                is said when it is generated.
            draft_options: Keywords of this method, but `fit`, for draft models of which only the file is
                given. Positions, threads, types of the cache, `n_ubatch`, `compute` and `mmap` are those of
                this model unless they are among them; without `devices` and `n_gpu_layers` a draft model goes
                as a whole to the device that has the last of this model's layers.

        Raises:
            OSError: the file cannot be read.
            FormatError: it is not GGUF, is damaged, or its metadata and tensors do not fit together; an
                adapter is none, or is for another model.
            ShapeError: a tensor does not have the shape that the model needs.
            UnsupportedError: the architecture, a tensor type, a cache type or a kind of adapter is not
                supported.
            RefusedError: memory does not hold the weights or the cache; a name or a rule is no device;
                `tensor_split` is not a proportion of each device; `fit` comes with other options that say
                what goes where; an adapter changes what is on a GPU.
            DeviceError: a GPU is named, wanted or to be filled and there is none, or it does not compute its
                part.
            DeviceMemoryError: the memory of a GPU does not hold its part. It is a `RefusedError`, too.
            ValueError: `n_gpu_layers` or `n_cpu_moe` is no number of layers.
        """
        adapters = adapters_of(lora)
        for name, value in (("n_ctx", n_ctx), ("n_ubatch", n_ubatch), ("n_threads", n_threads)):
            count(name, value, least=0)
        placing = rules(override_tensor)
        chosen = chosen_devices(devices, n_gpu_layers, placing, fit=fit)
        file_options = FileOptions(yarn_truncate, override_kv)
        reader = file_options.open(path)
        spec = file_options.spec(reader)
        options = LoadingOptions(
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
            expert_reduction=share_of_experts(expert_reduction),
            mmap=mmap,
            devices=chosen.names,
            n_gpu_layers=chosen.n_gpu_layers,
            tensor_split=shares([] if chosen.fit else chosen.names, chosen.n_gpu_layers, tensor_split),
            override_tensor=placing,
            cpu_moe=cpu_moe,
            n_cpu_moe=layer_count("n_cpu_moe", n_cpu_moe),
            kv_offload=kv_offload,
        )
        rooms = CacheRooms()
        if chosen.fit:
            beside = Beside.of(reader, file_options, Drafts(mtp, draft_model, draft_options))
            room = FitOptions(fit_margin, fit_sequences, n_ubatch)
            found = fitted_to(reader, spec, n_ctx, options, room, beside)
            n_ctx, options, rooms = found.n_ctx, replace(options, **found.placement), found.rooms
        engine = options.engine(reader, spec, n_ctx, adapters)
        if rooms.model:
            _ikq.limit_caches(engine, list(rooms.model))
        shared = {name: getattr(options, name) for name in SHARED}
        shared |= {"n_ctx": engine.n_ctx, "n_threads": engine.n_threads}
        model = cls(
            engine,
            spec,
            reader,
            n_ubatch=n_ubatch,
            notes=[_REPACK] if repack else [],
            load_head=partial(options.head_engine, Path(path).absolute(), file_options, rooms.mtp),
            draft_options=DraftOptions(
                shared,
                last_device(p[1] for p in engine.placement()),
                draft_options or {},
                rooms.draft_model,
            ),
        )
        reader.close()  # its metadata stay
        return model

    def exchange(self, reader: GGUFReader) -> Model:
        """Loads another file with the same metadata in place of this model, which is closed.

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
        return Model(
            engine,
            self.spec,
            reader,
            n_ubatch=self._n_ubatch,
            notes=self._notes,
            draft_options=self._draft_models.options,
        )

    @staticmethod
    def plan(
        path: str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        cache_rotation: bool = True,
        swa_full: bool = False,
        fused_up_gate: bool = True,
        fused_moe: bool = True,
        merge_up_gate_experts: bool = False,
        devices: Sequence[str] | str | None = None,
        n_gpu_layers: int | None = None,
        tensor_split: Sequence[float] = (),
        override_tensor: str | Sequence[str] = (),
        cpu_moe: bool = False,
        n_cpu_moe: int = 0,
        kv_offload: bool = True,
        fit: bool = False,
        fit_margin: int = MARGIN,
        fit_sequences: int = 1,
        n_ubatch: int = 512,
        yarn_truncate: bool = True,
        override_kv: Mapping[str, bool | int | float | str] | None = None,
        mtp: bool = False,
        draft_model: str | os.PathLike[str] | None = None,
        draft_options: Mapping[str, Any] | None = None,
    ) -> LoadingPlan:
        """Where `load` with these options would place what, and the memory it would take; loads nothing.

        GPUs that are named need not be there if this machine has none that can be used: the plan is then that
        of a GPU with memory for everything, and `LoadingPlan.assumed` names it.

        Args:
            path: As for `load`, which has the other options, too.
            n_ctx: `None`: the trained context, though memory may hold less.
            cache_type_k: See there, as for all that follows.
            cache_type_v: See there.
            cache_rotation: See there.
            swa_full: See there.
            fused_up_gate: See there; the buffers of a step depend on it.
            fused_moe: See there.
            merge_up_gate_experts: See there.
            devices: See there.
            n_gpu_layers: See there.
            tensor_split: See there.
            override_tensor: See there.
            cpu_moe: See there.
            n_cpu_moe: See there.
            kv_offload: See there.
            fit: See there; `LoadingPlan.fitted` tells what was found.
            fit_margin: See there.
            fit_sequences: See there.
            n_ubatch: See there; the buffers of a step depend on it.
            yarn_truncate: See there.
            override_kv: See there.
            mtp: The head for further tokens is to draft: `LoadingPlan.mtp` tells what it takes.
            draft_model: The file of a model that is to draft: `LoadingPlan.draft_model` tells what it takes.
            draft_options: See there.

        Raises:
            OSError: as `load`, like all other errors but those of memory.
        """
        count("n_ctx", n_ctx)
        count("n_ubatch", n_ubatch, least=0)
        placing = rules(override_tensor)
        chosen = chosen_devices(devices, n_gpu_layers, placing, fit=fit, is_plan=True)
        options = PlacementOptions(
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            cache_rotation=cache_rotation,
            swa_full=swa_full,
            fused_up_gate=fused_up_gate,
            fused_moe=fused_moe,
            merge_up_gate_experts=merge_up_gate_experts,
            devices=chosen.names,
            n_gpu_layers=chosen.n_gpu_layers,
            tensor_split=shares([] if chosen.fit else chosen.names, chosen.n_gpu_layers, tensor_split),
            override_tensor=placing,
            cpu_moe=cpu_moe,
            n_cpu_moe=layer_count("n_cpu_moe", n_cpu_moe),
            kv_offload=kv_offload,
        )
        room = FitOptions(fit_margin, fit_sequences, n_ubatch) if chosen.fit else None
        drafts = Drafts(mtp, draft_model, draft_options)
        file_options = FileOptions(yarn_truncate, override_kv)
        return plan_loading(path, n_ctx, n_ubatch, file_options, options, room, drafts, chosen.assumed)

    @property
    def memory(self) -> Memory:
        """Bytes that the model takes."""
        self._check_open()
        parts = [self._engine.memory, *([] if self._mtp is None else [self._mtp.memory])]
        return Memory(*(sum(sizes) for sizes in zip(*parts, strict=True)))

    def explain(self) -> Explanation:
        """Where, how and why everything is computed, where weights are, and who else can load the file."""
        self._check_open()
        plans = tuple(
            FfnPlan(layer, role, plan, why, *(QuantType[t] for t in types))
            for layer, role, plan, why, types in self._engine.plans()
        )
        adapters = [f"LoRA adapter {a.path}, scale {a.scale:g}" for a in self.lora_adapters]
        # nobody is known to know a type that ikq does not
        known = [set(t.known_to) if isinstance(t, QuantType) else set() for t in self._types]
        return Explanation(
            architecture=self.spec.architecture,
            ffn=plans,
            placement=tuple(Placed(*p) for p in self._engine.placement()),
            memory=self.memory,
            why_memory=self._engine.why_memory,
            loaded_by=tuple(sorted(set.intersection(*known))),
            notes=(*self.spec.notes, *self._notes, *adapters),
            mtp=() if self._mtp is None else tuple(Placed(*p) for p in self._mtp.placement()),
            draft_models=tuple(model.explain() for model in self._draft_models.loaded),
        )

    def draft_model(self, path: str | os.PathLike[str]) -> Model:
        """The draft model of a file, which is loaded once and closed with this one.

        Texts are drafted by it when they are generated with the same path.

        Args:
            path: Its file, which is loaded as `draft_options` says.

        Raises:
            RefusedError: it has another vocabulary.
            OSError, FormatError, ShapeError, UnsupportedError, DeviceError: as `load`.
        """
        return self._draft_models.get(path, self)

    def close(self) -> None:
        """Frees weights and cache; its sequences cannot be used any more."""
        self._draft_models.close()
        super().close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
