"""What steps take besides products of weights: attention, work on activations, waiting for threads.

Measured in the engine with small models of random weights: layers that do little, layers of wide activations,
layers of many weights, layers of many heads. The difference between models of few and of more layers is free
of all that is not a layer's. All models are loaded at once and run by turns, and the best time of each
counts: what disturbs a machine for some seconds disturbs all of them, or none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ikq.arrays.quant_types import QuantType
from ikq.arrays.tensor import QTensor
from ikq.files.gguf import GGUFWriter, Metadata, Typed
from ikq.inference.model import Model
from ikq.models import ModelSpec
from ikq.models.spec import Gqa, Linear, Mla, Moe
from ikq.speed.measure import Workload, bench
from ikq.speed.type_speeds import TypeSpeed, damaged, keep_entries, kept_entries, kept_file

__all__ = ["PROBE_TYPE", "LayerWork", "StepSpeeds", "kept_step_speeds", "layers_work", "measure_step_speeds"]

PROBE_TYPE = QuantType.Q8_0
"""Type of the small models' matrices; its speed is to be measured before."""

WIDE = 512
"""Tokens of the wide steps."""

_DEPTH = 1024
_HEAD_DIM = 64
_UNIT = 256
"""Elements that kernels take at a time."""
_TURNS = 8
_REPETITIONS = {1: 10, WIDE: 1}
"""Steps of each model in a turn, of one token and of many."""

_FEW, _MANY = 2, 10
"""Layers of the two models of a shape."""


@dataclass(frozen=True)
class LayerWork:
    """What a token makes a layer do besides products.

    Attributes:
        elements: Activations that are normed, quantized, gated or added.
        heads: Elements of all heads' queries: multiply-adds with each position before are twice as many.
    """

    elements: float
    heads: float


@dataclass(frozen=True)
class StepSpeeds:
    """Seconds of what steps do besides products, for steps of one token and of many.

    Attributes:
        step: A step without layers: the call, the token's row, the last norm, logits that are handed over.
        layer: A layer that does nothing, of one token.
        one_element: An activation, in steps of one token.
        element: The same in steps of many.
        score: An element of a query that meets a position, in steps of many.
    """

    step: float
    layer: float
    one_element: float
    element: float
    score: float

    def layer_seconds(self, work: LayerWork, n_tokens: int) -> float:
        """Of a step of so many tokens of an empty sequence."""
        if n_tokens == 1:
            return self.layer + work.elements * self.one_element
        return self.layer + n_tokens * (work.elements * self.element + work.heads * n_tokens / 2 * self.score)


def layers_work(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[LayerWork]:
    """Of each layer of a model. States of recurrent layers are not counted.

    Args:
        spec: The model.
        shapes: Of its tensors, as numpy has them.
    """
    out = []
    for layer in spec.layers:
        a, f = layer.attention, layer.ffn
        if isinstance(a, Gqa):
            heads = a.n_head * a.head_dim
        elif isinstance(a, Mla):
            heads = a.n_head * a.kv_rank
        else:
            heads = 0
        # two norms and sums of the stream, queries, hidden units, and what experts give
        elements = 2 * spec.n_embd + _row_length(a.output, shapes)
        if isinstance(f, Moe):
            elements += f.routing.n_used * (_row_length(f.down, shapes) + spec.n_embd)
            elements += 0 if f.shared is None else _row_length(f.shared.down, shapes)
        else:
            elements += _row_length(f.down, shapes)
        out.append(LayerWork(elements, heads))
    return out


def _row_length(linear: Linear, shapes: Mapping[str, tuple[int, ...]]) -> int:
    name = linear.weight if isinstance(linear.weight, str) else linear.weight[0]
    return shapes[name][-1]


def kept_step_speeds(n_threads: int | None = None, path: Path | None = None) -> StepSpeeds | None:
    """What was measured on this machine; `None` if nothing was.

    Raises:
        ikq.errors.FormatError: The file is damaged.
    """
    found = kept_entries(None, n_threads, path).get("steps")
    if found is None or (isinstance(found, dict) and "step" not in found):
        # nothing, or from before steps were measured
        return None
    try:
        return StepSpeeds(**{k: float(v) for k, v in found.items()})
    except (ValueError, TypeError, AttributeError) as e:
        raise damaged(kept_file(path), e) from None


def measure_step_speeds(
    product: TypeSpeed, *, n_threads: int | None = None, again: bool = False, path: Path | None = None
) -> StepSpeeds:
    """Measures what steps do besides products, and keeps it; what is kept is not measured again.

    Args:
        product: Speed of `PROBE_TYPE` with as many threads.
        n_threads: Threads; `None` is one per CPU.
        again: Measure in any case.
        path: The file; `None`: as for `ikq.speed.type_speeds.kept_type_speeds`.

    Raises:
        ikq.errors.FormatError: The file is damaged.
    """
    known = kept_step_speeds(n_threads, path)
    if known is not None and not again:
        return known
    times = _times(n_threads)
    small, wide = times[_SMALL, 1, 0], times[_WIDE, 1, 0]
    layer, one_element = _one_token(product, small.layer, wide.layer)
    deep, flat = times[_HEADS, WIDE, _DEPTH], times[_HEADS, WIDE, 0]
    score = max(0.0, deep.layer - flat.layer) / (_HEADS.heads * WIDE * _DEPTH)
    of_wide = {s: times[s, WIDE, 0].layer - _scores(s, WIDE) * score for s in (_SMALL, _WIDE, _HEAVY)}
    element = _per_element(of_wide) / WIDE
    found = StepSpeeds(small.step, layer, one_element, element, score)
    keep_entries(None, n_threads, path, {"steps": asdict(found)})
    return found


def _one_token(product: TypeSpeed, small: float, wide: float) -> tuple[float, float]:
    """Seconds of a layer without activations, and per element, for one token: from layers of two shapes."""
    few, many = (
        max(0.0, seconds - shape.n_weights * product.per_weight(1))
        for shape, seconds in ((_SMALL, small), (_WIDE, wide))
    )
    slope = max(0.0, many - few) / (_WIDE.elements - _SMALL.elements)
    return max(0.0, few - slope * _SMALL.elements), slope


def _per_element(seconds: Mapping[_Shape, float]) -> float:
    """Seconds per element, from those of layers of three shapes for many tokens.

    What a weight takes is found along with it. Had it been measured another time, or as another kind of mean,
    what is left after taking it off would be mostly the difference of the two.
    """
    factors = np.array([(1.0, shape.n_weights, shape.elements) for shape in seconds])
    scale = factors.max(axis=0)
    found = np.linalg.solve(factors / scale, np.array(list(seconds.values()))) / scale
    return max(0.0, float(found[2]))


@dataclass(frozen=True)
class _Shape:
    """A layer of a small model."""

    n_embd: int
    n_head: int
    n_ff: int

    @property
    def heads(self) -> int:
        return self.n_head * _HEAD_DIM

    @property
    def elements(self) -> int:
        return 2 * self.n_embd + self.heads + self.n_ff

    @property
    def n_weights(self) -> int:
        """Weights that products take time for: of rows that end inside a unit, all of the unit's."""
        heads, n_ff = (-(-n // _UNIT) * _UNIT for n in (self.heads, self.n_ff))
        return self.n_embd * (3 * self.heads + heads + 2 * self.n_ff + n_ff)


def _scores(shape: _Shape, n_tokens: int) -> float:
    """Elements of queries times positions that they meet, in a step of an empty sequence."""
    return shape.heads * n_tokens * n_tokens / 2 if n_tokens > 1 else 0.0


_SMALL, _WIDE, _HEAVY, _HEADS = (
    _Shape(256, 4, 256),
    _Shape(4096, 1, 32),
    _Shape(2048, 1, 1024),
    _Shape(256, 16, 256),
)
_RUNS = (
    (_SMALL, 1, 0),
    (_WIDE, 1, 0),
    (_SMALL, WIDE, 0),
    (_WIDE, WIDE, 0),
    (_HEAVY, WIDE, 0),
    (_HEADS, WIDE, 0),
    (_HEADS, WIDE, _DEPTH),
)
"""What is measured: a shape, tokens of a step, and tokens before them."""


@dataclass(frozen=True)
class _Times:
    """Seconds of a layer in a step, and of the step without layers."""

    layer: float
    step: float


def _times(n_threads: int | None) -> dict[tuple[_Shape, int, int], _Times]:
    """Of `_RUNS`, from the best of all turns."""
    best: dict[tuple[_Shape, int, int, int], float] = {}
    with tempfile.TemporaryDirectory(prefix="ikq-speeds-") as folder, ExitStack() as stack:
        models: dict[tuple[_Shape, int], Model] = {}
        for shape in dict.fromkeys(shape for shape, *_ in _RUNS):
            for n_layers in (_FEW, _MANY):
                file = Path(folder) / f"{len(models)}.gguf"
                _write_model(file, shape, n_layers)
                model = Model.load(file, n_ctx=WIDE + _DEPTH, n_threads=n_threads)
                models[shape, n_layers] = stack.enter_context(model)
        for turn in range(_TURNS):
            for shape, n_tokens, depth in _RUNS:
                for n_layers in (_FEW, _MANY):
                    seconds = bench(
                        models[shape, n_layers],
                        Workload(n_tokens, 0, depth),
                        repetitions=_REPETITIONS[n_tokens],
                        warm_up=turn == 0,
                    ).seconds
                    key = (shape, n_tokens, depth, n_layers)
                    best[key] = min(best.get(key, np.inf), *seconds)
    out = {}
    for shape, n_tokens, depth in _RUNS:
        few, many = (best[shape, n_tokens, depth, n_layers] for n_layers in (_FEW, _MANY))
        of_layer = max(0.0, many - few) / (_MANY - _FEW)
        out[shape, n_tokens, depth] = _Times(of_layer, max(0.0, few - _FEW * of_layer))
    return out


def _write_model(file: Path, shape: _Shape, n_layers: int) -> None:
    """A dense model of random weights."""
    rng = np.random.default_rng(0)

    def matrix(n_rows: int, n: int) -> QTensor:
        x = rng.standard_normal((n_rows, n), dtype=np.float32) / np.float32(np.sqrt(n))
        return QTensor.quantize(x, PROBE_TYPE)

    e, h, f = shape.n_embd, shape.heads, shape.n_ff
    a = "llama"
    metadata = Metadata(
        {
            "general.architecture": a,
            "tokenizer.ggml.model": "no_vocab",
            f"{a}.vocab_size": 64,
            f"{a}.context_length": 4096,
            f"{a}.embedding_length": e,
            f"{a}.block_count": n_layers,
            f"{a}.feed_forward_length": f,
            f"{a}.attention.head_count": shape.n_head,
            f"{a}.attention.head_count_kv": shape.n_head,
            f"{a}.attention.key_length": _HEAD_DIM,
            f"{a}.attention.value_length": _HEAD_DIM,
            f"{a}.attention.layer_norm_rms_epsilon": Typed(1e-6, "float32"),
            f"{a}.rope.dimension_count": _HEAD_DIM,
        }
    )
    ones = np.ones(e, np.float32)
    shapes = {"attn_q": (h, e), "attn_k": (h, e), "attn_v": (h, e), "attn_output": (e, h)}
    shapes |= {"ffn_gate": (f, e), "ffn_up": (f, e), "ffn_down": (e, f)}
    matrices = {name: matrix(*of) for name, of in shapes.items()}
    tokens = matrix(64, e)
    with GGUFWriter(file, metadata) as writer:
        for name in ("token_embd", "output"):
            writer.add_tensor(f"{name}.weight", tokens)
        writer.add_tensor("output_norm.weight", ones)
        for layer in range(n_layers):
            for name in ("attn_norm", "ffn_norm"):
                writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
            for name, stored in matrices.items():
                writer.add_tensor(f"blk.{layer}.{name}.weight", stored)
