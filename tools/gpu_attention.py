"""Attention on a GPU: values against the CPU's, bits, and time against the card's ceilings. A group of `gpu_check.py`."""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpu_cards import bound
from gpu_models import seed
from numpy.typing import NDArray

import ikq

Row = dict[str, Any]

TARGET_PROMPT, TARGET_TOKEN = 0.35, 0.6
CACHES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Types of the cache, and bytes of an element."""


class Shape(NamedTuple):
    """A model that has little besides attention."""

    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_prompt: int  # tokens of a piece of a prompt
    depth: int  # tokens before it


SHAPES = {"emulated": Shape(1, 8, 2, 64, 12, 40), "card": Shape(4, 32, 4, 128, 2048, 16384)}
"""The heads of `card` are Qwen3-30B-A3B's."""


def write_model(path: Path, s: Shape, n_vocab: int = 512) -> None:
    """Random weights of narrow layers."""
    rng = np.random.default_rng(seed())
    a, e, q, kv = "qwen3", 256, s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    sizes = {
        "vocab_size": n_vocab, "context_length": 1 << 16, "embedding_length": e, "block_count": s.n_layer,
        "feed_forward_length": e, "attention.head_count": s.n_head, "attention.head_count_kv": s.n_head_kv,
        "attention.key_length": s.head_dim, "attention.value_length": s.head_dim, "rope.dimension_count": s.head_dim,
    }  # fmt: skip
    metadata = ikq.Metadata(
        {"general.architecture": a, "tokenizer.ggml.model": "no_vocab"}
        | {f"{a}.{k}": v for k, v in sizes.items()}
        | {f"{a}.attention.layer_norm_rms_epsilon": 1e-6}
    )

    def some(n_rows: int, n: int) -> ikq.QTensor:
        values = rng.standard_normal((n_rows, n), dtype=np.float32) / np.float32(np.sqrt(n))
        return ikq.QTensor.quantize(values, ikq.QuantType.Q8_0)

    ones = np.ones(e, np.float32)
    # scores of three or so: weights that differ
    sharp = np.full(s.head_dim, np.sqrt(3), np.float32)
    with ikq.GGUFWriter(path, metadata) as writer:
        writer.add_tensor("token_embd.weight", some(n_vocab, e))
        writer.add_tensor("output.weight", some(n_vocab, e))
        writer.add_tensor("output_norm.weight", ones)
        for i in range(s.n_layer):
            tensors: dict[str, ikq.QTensor | NDArray[np.float32]] = {
                "attn_norm": ones,
                "ffn_norm": ones,
                "attn_q_norm": sharp,
                "attn_k_norm": sharp,
                "attn_q": some(q, e),
                "attn_k": some(kv, e),
                "attn_v": some(kv, e),
                "attn_output": some(e, q),
                "ffn_gate": some(e, e),
                "ffn_up": some(e, e),
                "ffn_down": some(e, e),
            }
            for name, tensor in tensors.items():
                writer.add_tensor(f"blk.{i}.{name}.weight", tensor)


def usual_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The median of the relative distances of rows; NaN where one is not finite."""
    apart = np.linalg.norm(a.astype(np.float64) - b, axis=1) / np.linalg.norm(b, axis=1)
    return float(np.median(apart))


def values(file: Path, ids: list[int], places: dict[str, Any], cache: str) -> Iterator[Row]:
    """Logits of a prompt, of pieces of it, and token by token."""
    types: dict[str, Any] = {"n_ctx": 512, "cache_type_k": cache, "cache_type_v": cache}
    with ikq.Model.load(file, n_ctx=512, compute="f32", cache_type_k="f32", cache_type_v="f32") as exact:
        want = exact.logits(ids)
    with ikq.Model.load(file, **types) as cpu:
        rounded = usual_distance(cpu.logits(ids), want)
    for how, first in (("", None), (", all in tiles", "1")):
        if first:
            os.environ["IKQ_CUDA_MMQ_FROM"] = first
        with ikq.Model.load(file, **types, **places) as on_gpu:
            whole, sequence = on_gpu.logits(ids), on_gpu.new_sequence()
            cuts = [0, len(ids) // 2, len(ids) - 6, *range(len(ids) - 5, len(ids) + 1)]
            parts = [on_gpu.step([(sequence, ids[a:b], "all")])[0] for a, b in itertools.pairwise(cuts)]
        pieces = np.concatenate([p for p in parts if p is not None])
        for name, found in (("a prompt", whole), ("pieces and tokens", pieces)):
            error = usual_distance(found, want)
            yield {"name": f"attention {cache}, {name}{how}", "ok": error <= 2 * rounded, "error": error}
        if first:
            del os.environ["IKQ_CUDA_MMQ_FROM"]
            yield {"name": f"attention {cache}, the same bits in pieces", "ok": np.array_equal(whole, pieces)}


def median(times: int, run: Callable[[], None]) -> float:
    """Seconds of a run, without the first, which compiles and loads kernels."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def timings(
    file: Path, s: Shape, ids: list[int], places: dict[str, Any], cache: str, times: int
) -> Iterator[Row]:
    """What a depth of `s.depth` tokens adds to a piece of a prompt, and to a token."""
    n_ctx = s.depth + 2 * s.n_prompt
    types: dict[str, Any] = {"cache_type_k": cache, "cache_type_v": cache, "n_ubatch": s.n_prompt}
    with ikq.Model.load(file, n_ctx=n_ctx, **types, **places) as on_gpu:
        sequence = on_gpu.new_sequence()

        def seconds(depth: int, n: int) -> float:
            for at in range(sequence.n_past, depth, s.n_prompt):
                on_gpu.step(
                    [(sequence, [ids[i % len(ids)] for i in range(min(s.n_prompt, depth - at))], "none")]
                )

            def run() -> None:
                sequence.truncate(depth)
                on_gpu.step([(sequence, [ids[i % len(ids)] for i in range(n)], "last")])

            return median(times, run)

        shallow = [seconds(s.n_prompt, n) for n in (s.n_prompt, 1)]
        deep = [seconds(s.depth, n) for n in (s.n_prompt, 1)]
    prompt, token = (b - a for a, b in zip(shallow, deep, strict=True))
    more = s.depth - s.n_prompt
    operations = 4.0 * s.n_layer * s.n_prompt * more * s.n_head * s.head_dim
    n_bytes = 2.0 * s.n_layer * more * s.n_head_kv * s.head_dim * CACHES[cache]
    for name, took, what, work, target in (
        (f"prompt of {s.n_prompt}", prompt, "f16", operations, TARGET_PROMPT),
        ("token", token, "bandwidth", n_bytes, TARGET_TOKEN),
    ):
        row: Row = {"name": f"attention {cache}, {more} more positions, {name}", "ok": True, "us": took * 1e6}
        row["per_s"] = work / took if took > 0 else 0.0
        yield row | bound(what, work, target)


def attention(args: argparse.Namespace) -> Iterator[Row]:
    """Attention over caches of some types: prompts and single tokens."""
    s = SHAPES["emulated" if args.emulated else "card"]
    rng = np.random.default_rng(seed())
    ids = [int(i) for i in rng.integers(0, 512, 40 if args.emulated else 300)]
    places: dict[str, Any] = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": 99}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "model.gguf"
        write_model(file, s)
        for cache in list(CACHES)[: 1 if args.emulated else None]:
            yield from values(file, ids, places, cache)
            yield from timings(file, s, ids, places, cache, 1 if args.emulated else 5)
