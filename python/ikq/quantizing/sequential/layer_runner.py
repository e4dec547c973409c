"""One layer of a model, from hidden states to hidden states: `LayerRunner`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.errors import UnsupportedError
from ikq.files.gguf import GGUFReader
from ikq.models import ModelSpec
from ikq.models.spec import Gqa

__all__ = ["LayerRunner"]


class LayerRunner:
    """A layer that runs by itself; a context manager.

    Args:
        path: A file with the layer's tensors: a model, or what `only_layer` makes of one.
        spec: The whole model.
        layer: Index of the layer.
        n_ctx: Tokens of a text.
        n_threads: Threads; `None`: one per CPU.
        instead: Another file, and tensors that are taken from it.

    Raises:
        OSError: The file cannot be read.
        FormatError, ShapeError, UnsupportedError: As `Model.load`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: ModelSpec,
        layer: int,
        *,
        n_ctx: int,
        n_threads: int | None = None,
        instead: tuple[str | os.PathLike[str], Sequence[str]] | None = None,
    ) -> None:
        attentions = [each.attention for each in spec.layers]
        share = any(isinstance(a, Gqa) and a.shares is not None for a in attentions)
        if spec.per_layer is not None or share:
            raise UnsupportedError(
                f"architecture `{spec.architecture}`: layers with embeddings of their own, or with the keys "
                "and values of others, are not run one at a time; quantize this model without --sequential"
            )
        part = replace(spec, layers=(spec.layers[layer],), is_part=True, output=None, nextn=None)
        with ExitStack() as opened:
            reader = opened.enter_context(GGUFReader(path))
            if instead is not None:
                other, names = instead
                reader = reader.with_tensors_of(opened.enter_context(GGUFReader(other)), names)
            self._engine = _ikq.Engine.load(
                reader._opened(),
                part.to_json(),
                n_ctx=n_ctx,
                n_threads=n_threads,
                n_ubatch=n_ctx,
                cache_type_k="f16",
                cache_type_v="f16",
                cache_rotation=True,
                swa_full=False,
                compute="auto",
                fused_up_gate=True,
                fused_moe=True,
                merge_up_gate_experts=False,
                expert_reduction=None,
                mmap="auto",
                devices=["CPU"],
                n_gpu_layers=0,
                tensor_split=[],
                override_tensor=[],
                cpu_moe=False,
                n_cpu_moe=0,
                kv_offload=True,
                isa_name=None,
            )

    def set_collector(self, collector: _ikq.StatisticsCollector) -> None:
        """Lets a collector see what the layer's matrices are multiplied with."""
        self._engine.set_collector(collector)

    def run(self, tokens: NDArray[np.int32], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """The hidden states `(n, n_embd)` behind the layer of a text whose states before it are `hidden`.

        Raises:
            FormatError: They are not finite.
        """
        sequence = self._engine.new_sequence()
        try:
            text: list[int] = tokens.tolist()
            (found,) = self._engine.step([(sequence, text, "hidden", hidden)])
        finally:
            sequence.close()
        assert found is not None
        return found

    def __enter__(self) -> LayerRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._engine.close()
