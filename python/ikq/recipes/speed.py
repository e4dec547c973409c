"""Speeds of types on this machine, measured and stored, and what they say about a mix.

A small model is made for every type, whose layers have that type, and timed in the engine with one and with
three layers; the difference is the time of layers' products, free of all that does not depend on the type.
A token alone tells what generation takes per weight (mostly a matter of bytes), steps of many tokens what
prompts take. What a step takes besides products (norms, attention, waiting for threads) is measured with a
model of small matrices.

A mixture of experts computes each expert for a share of the tokens: times of a step are interpolated
between the widths that were measured.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ikq.arrays import isa, quantize
from ikq.errors import FormatError
from ikq.gguf import GGUFReader, GGUFWriter, Metadata, Typed
from ikq.measure import Workload, bench
from ikq.model import Model
from ikq.quant_types import QuantType, as_type
from ikq.recipes.problem import Problem
from ikq.tensor import QTensor
from ikq.whole_file import whole_file

__all__ = ["SpeedModel", "TypeSpeeds", "load_type_speeds", "measure_type_speeds", "speed_model"]

WIDTHS = (1, 8, 32, 256)
"""Tokens of a step at which products are timed."""

_N_EMBD, _N_FF = 2048, 8192
_SMALL = 256
_TILE = 64
_REPETITIONS = {1: 40, 8: 20, 32: 10, 256: 5}


@dataclass(frozen=True)
class TypeSpeeds:
    """What products take on a machine.

    Attributes:
        machine: The machine, its instruction set and the number of threads.
        seconds: By type: seconds per weight of a step of each width of `WIDTHS`.
        layer_seconds: Of a layer besides products, for a step of each width.
    """

    machine: str
    seconds: Mapping[QuantType, tuple[float, ...]]
    layer_seconds: tuple[float, ...]

    def per_weight(self, type: QuantType | int, width: float) -> float:
        """Seconds per weight of a step in which each weight meets so many tokens.

        Raises:
            KeyError: The type was not measured.
        """
        return float(np.interp(width, WIDTHS, self.seconds[as_type(type)]))


@dataclass(frozen=True)
class SpeedModel:
    """Predicted times of a model, by tensor and choice.

    Attributes:
        tg: Tensors x choices: seconds of a token of generation.
        pp: The same of a token of a prompt, in steps of `n_ubatch`.
        tg_base: Seconds of a token besides.
        pp_base: The same for prompts.
    """

    tg: NDArray[np.float64]
    pp: NDArray[np.float64]
    tg_base: float
    pp_base: float

    def speeds(self, index: NDArray[np.int64]) -> tuple[float, float]:
        """Tokens per second of prompts, and of generation."""
        rows = np.arange(len(index))
        return (
            1 / (self.pp_base + float(self.pp[rows, index].sum())),
            1 / (self.tg_base + float(self.tg[rows, index].sum())),
        )


def _machine(n_threads: int | None) -> str:
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {isa()}, {n_threads or os.cpu_count()} threads"


def _stored(path: Path | None) -> Path:
    if path is not None:
        return path
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "ikq" / "type-speeds.json"


def load_type_speeds(n_threads: int | None = None, path: Path | None = None) -> TypeSpeeds | None:
    """What was measured on this machine with so many threads; None if nothing was.

    Args:
        n_threads: Threads; None is one per CPU.
        path: The file; None: `ikq/type-speeds.json` in the user's cache.

    Raises:
        ikq.errors.FormatError: The file is damaged.
    """
    file = _stored(path)
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get(_machine(n_threads))
        if found is None:
            return None
        seconds = {as_type(name): tuple(map(float, row)) for name, row in found["seconds"].items()}
        return TypeSpeeds(_machine(n_threads), seconds, tuple(map(float, found["layer_seconds"])))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise FormatError(f"{file} is damaged ({e}); remove it, and speeds are measured again") from None


def measure_type_speeds(
    types: Iterable[QuantType],
    *,
    n_threads: int | None = None,
    path: Path | None = None,
    progress: Callable[[QuantType], None] | None = None,
) -> TypeSpeeds:
    """Measures types and stores them beside those that were measured before.

    Args:
        types: The types; those that are stored are not measured again.
        n_threads: Threads; None is one per CPU.
        path: As for `load_type_speeds`.
        progress: Called after each type.
    """
    known = load_type_speeds(n_threads, path)
    seconds = {} if known is None else dict(known.seconds)
    missing = [t for t in dict.fromkeys(types) if t not in seconds]
    if known is not None and not missing:
        return known
    with tempfile.TemporaryDirectory(prefix="ikq-speeds-") as folder:
        scratch = Path(folder) / "model.gguf"
        base = known.layer_seconds if known is not None else _layer_seconds(scratch, n_threads)
        for t in missing:
            weights = 2 * (4 * _N_EMBD**2 + 3 * _N_EMBD * _N_FF)
            one, three = (_step_seconds(scratch, t, n, _N_EMBD, _N_FF, n_threads) for n in (1, 3))
            seconds[t] = tuple(
                max(b - a - 2 * c, 0.1 * (b - a)) / weights for a, b, c in zip(one, three, base, strict=True)
            )
            if progress is not None:
                progress(t)
    found = TypeSpeeds(_machine(n_threads), seconds, base)
    _store(found, _stored(path))
    return found


def _store(speeds: TypeSpeeds, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    everything[speeds.machine] = {
        "seconds": {t.name: row for t, row in speeds.seconds.items()},
        "layer_seconds": speeds.layer_seconds,
    }
    with whole_file(file) as f:
        f.write(json.dumps(everything, indent=1).encode())


def _layer_seconds(scratch: Path, n_threads: int | None) -> tuple[float, ...]:
    few, many = (_step_seconds(scratch, QuantType.Q8_0, n, _SMALL, _SMALL, n_threads) for n in (2, 18))
    return tuple(max(0.0, b - a) / 16 for a, b in zip(few, many, strict=True))


def _step_seconds(
    scratch: Path, type: QuantType, n_layers: int, n_embd: int, n_ff: int, n_threads: int | None
) -> list[float]:
    """Seconds of a step of each width, the best of some: what disturbs a measurement only adds to it."""
    _write_model(scratch, type, n_layers, n_embd, n_ff)
    with Model.load(scratch, n_ctx=max(WIDTHS), n_threads=n_threads) as model:
        out = []
        for width in WIDTHS:
            out.append(min(bench(model, Workload(width, 0), repetitions=_REPETITIONS[width]).seconds))
        return out


def _write_model(path: Path, type: QuantType, n_layers: int, n_embd: int, n_ff: int) -> None:
    """A dense model of random weights, whose rows repeat: values do not matter for speed."""
    rng = np.random.default_rng(0)
    tiles: dict[int, NDArray[np.uint8]] = {}

    def matrix(n_rows: int, n: int) -> QTensor:
        if n not in tiles:
            x = rng.standard_normal((_TILE, n), dtype=np.float32) / np.float32(np.sqrt(n))
            tiles[n] = quantize(x, type, n_threads=1)
        rows = np.tile(tiles[n], (-(-n_rows // _TILE), 1))[:n_rows]
        return QTensor(rows.reshape(-1), type, (n_rows, n))

    head_dim = 64
    a = "llama"
    metadata = Metadata(
        {
            "general.architecture": a,
            "tokenizer.ggml.model": "no_vocab",
            f"{a}.vocab_size": 64,
            f"{a}.context_length": 4096,
            f"{a}.embedding_length": n_embd,
            f"{a}.block_count": n_layers,
            f"{a}.feed_forward_length": n_ff,
            f"{a}.attention.head_count": n_embd // head_dim,
            f"{a}.attention.head_count_kv": n_embd // head_dim,
            f"{a}.attention.layer_norm_rms_epsilon": Typed(1e-6, "float32"),
            f"{a}.rope.dimension_count": head_dim,
        }
    )
    ones = np.ones(n_embd, np.float32)
    tokens = QTensor.quantize(rng.standard_normal((64, n_embd), dtype=np.float32), "Q8_0")
    with GGUFWriter(path, metadata) as writer:
        for name in ("token_embd", "output"):
            writer.add_tensor(f"{name}.weight", tokens)
        writer.add_tensor("output_norm.weight", ones)
        for layer in range(n_layers):
            for norm in ("attn_norm", "ffn_norm"):
                writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(n_embd, n_embd))
            for name, shape in (
                ("ffn_gate", (n_ff, n_embd)), ("ffn_up", (n_ff, n_embd)), ("ffn_down", (n_embd, n_ff))
            ):  # fmt: skip
                writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(*shape))


def speed_model(
    problem: Problem,
    speeds: TypeSpeeds,
    *,
    n_ubatch: int = 512,
    memories: NDArray[np.int64] | None = None,
    vram_bandwidth: float | None = None,
) -> SpeedModel:
    """Times of a model's tensors.

    Args:
        problem: The model and its choices; all its types were measured.
        speeds: Of this machine.
        n_ubatch: Tokens of a step of a prompt.
        memories: 1 for tensors on a second device.
        vram_bandwidth: Bytes per second that it reads; a token of generation reads its weights once, a
            prompt's products there count as nothing beside the CPU's.
    """
    with GGUFReader(problem.source) as reader:
        a = str(reader.metadata["general.architecture"])
        n_used = int(str(reader.metadata.get(f"{a}.expert_used_count", 1)))
    width = max(len(t.types) for t in problem.tensors)
    tg, pp = np.zeros((len(problem.tensors), width)), np.zeros((len(problem.tensors), width))
    has_output = any(t.kind == "output" for t in problem.tensors)
    n_layers = 1 + max((t.layer for t in problem.tensors if t.layer is not None), default=-1)
    for i, t in enumerate(problem.tensors):
        is_output = t.kind == "output" or (t.kind == "token_embd" and not has_output)
        if t.layer is None and not is_output:
            continue
        share = n_used / t.shape[0] if len(t.shape) > 2 else 1.0
        for k, to in enumerate(t.types):
            if memories is not None and memories[i]:
                tg[i, k] = 0.0 if vram_bandwidth is None else int(t.bytes[k]) * share / vram_bandwidth
                continue
            tg[i, k] = t.n_weights * share * speeds.per_weight(to, 1)
            if not is_output:
                # of a step's tokens each expert sees a share; only the last token has logits
                columns = max(1.0, n_ubatch * share)
                at = min(columns, WIDTHS[-1])
                pp[i, k] = t.n_weights * speeds.per_weight(to, at) * (columns / at) / n_ubatch
    last = WIDTHS[-1]
    return SpeedModel(
        tg,
        pp,
        n_layers * speeds.layer_seconds[0],
        n_layers * speeds.layer_seconds[-1] / last,
    )
