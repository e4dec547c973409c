"""Time and memory of `ikq recipe` for a model with the tensors of a large one.

    python benches/recipe_time.py --layers 48 --vocabulary 151936 --models /var/tmp --threads 2

The source is a bf16 file of Qwen3-30B-A3B's shape, 61 GB for 48 layers and 151936 tokens, and sparse: random weights stand
in the rows that recipes sample, and in embedding, output and routers; the rest is a hole that takes no room. Statistics
are random. Printed: seconds, processor time and peak memory of `ikq recipe`, run as a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from side_by_side import machine

import ikq
from ikq import _ikq
from ikq.recipes.errors import ROWS, sample_rows

EMBD, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, USED, FF = 2048, 32, 4, 128, 128, 8, 768
NORMS = ("attn_norm", "ffn_norm")


def shapes(n_layers: int, n_vocab: int) -> dict[str, tuple[int, ...]]:
    """Matrices by name, as numpy has them."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, EMBD), "output.weight": (n_vocab, EMBD)}
    for i in range(n_layers):
        b = f"blk.{i}."
        out |= {
            b + "attn_q.weight": (q, EMBD),
            b + "attn_k.weight": (kv, EMBD),
            b + "attn_v.weight": (kv, EMBD),
            b + "attn_output.weight": (EMBD, q),
            b + "ffn_gate_inp.weight": (EXPERTS, EMBD),
            b + "ffn_gate_exps.weight": (EXPERTS, FF, EMBD),
            b + "ffn_up_exps.weight": (EXPERTS, FF, EMBD),
            b + "ffn_down_exps.weight": (EXPERTS, EMBD, FF),
        }
    return out


class Recorder:
    """A tensor that only remembers which rows are asked for."""

    type = ikq.QuantType.BF16

    def __init__(self, name: str, shape: tuple[int, ...], rows: set[int], first: int = 0) -> None:
        self.name, self.shape, self.ndim, self._rows, self._first = name, shape, len(shape), rows, first

    def __getitem__(self, index: int | slice) -> Recorder:
        if isinstance(index, slice):
            self._rows |= set(range(self._first + index.start, self._first + index.stop))
            shape = (index.stop - index.start, self.shape[-1])
            return Recorder(self.name, shape, self._rows, self._first + index.start)
        return Recorder(self.name, self.shape[1:], self._rows, self._first + index * self.shape[1])

    def dequantize(self, *, n_threads: int | None = None) -> np.ndarray:
        return np.zeros(self.shape, np.float32)


def sampled(name: str, shape: tuple[int, ...]) -> Iterator[int]:
    """Rows that a recipe reads."""
    if len(shape) == 2 and ("blk" not in name or "gate_inp" in name):
        yield from range(shape[0])
        return
    rows: set[int] = set()
    for n in (ROWS, 64):
        for together in (1, 4):
            sample_rows(Recorder(name, shape, rows), n, together)  # type: ignore[arg-type]
    yield from sorted(rows)


def text(s: str) -> bytes:
    """A string as GGUF has it."""
    return struct.pack("<Q", len(s)) + s.encode()


def pair_value(value: str | int | float) -> bytes:
    """A metadata value with its type: string, float32 or uint32."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def write_source(path: Path, n_layers: int, n_vocab: int) -> None:
    """The model; only rows that are sampled take room."""
    a = "qwen3moe"
    metadata: dict[str, str | int | float] = {
        "general.architecture": a,
        "tokenizer.ggml.model": "no_vocab",
        f"{a}.vocab_size": n_vocab,
        f"{a}.context_length": 32768,
        f"{a}.embedding_length": EMBD,
        f"{a}.block_count": n_layers,
        f"{a}.feed_forward_length": 6144,
        f"{a}.attention.head_count": HEADS,
        f"{a}.attention.head_count_kv": KV_HEADS,
        f"{a}.attention.key_length": HEAD_DIM,
        f"{a}.attention.value_length": HEAD_DIM,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{a}.rope.freq_base": 1e6,
        f"{a}.expert_count": EXPERTS,
        f"{a}.expert_used_count": USED,
        f"{a}.expert_feed_forward_length": FF,
    }
    matrices = shapes(n_layers, n_vocab)
    vectors = {"output_norm.weight": EMBD}
    for i in range(n_layers):
        vectors |= {f"blk.{i}.{norm}.weight": EMBD for norm in NORMS}
        vectors |= {f"blk.{i}.attn_{x}_norm.weight": HEAD_DIM for x in "qk"}
    infos: list[tuple[str, tuple[int, ...], int]] = [
        *((n, (k,), int(ikq.QuantType.F32)) for n, k in vectors.items()),
        *((n, s, int(ikq.QuantType.BF16)) for n, s in matrices.items()),
    ]
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(metadata)))
    for key, value in metadata.items():
        out += text(key) + pair_value(value)
    offset, places = 0, {}
    for name, shape, type_id in infos:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), type_id, offset)
        places[name] = offset
        offset += -(-ikq.tensor_bytes(type_id, shape) // 32) * 32
    out += bytes(-len(out) % 32)
    rng = np.random.default_rng(1)
    pool = rng.standard_normal(1 << 22, dtype=np.float32)
    with path.open("wb") as f:
        f.write(out)
        f.truncate(len(out) + offset)
        for name, k in vectors.items():
            f.seek(len(out) + places[name])
            f.write(np.ones(k, np.float32).tobytes())
        for name, shape in matrices.items():
            k = shape[-1]
            for row in sampled(name, shape):
                start = int(rng.integers(0, len(pool) - k))
                x = pool[start : start + k] / np.float32(np.sqrt(k))
                f.seek(len(out) + places[name] + 2 * k * row)
                f.write((x.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def write_statistics(path: Path, n_layers: int) -> None:
    """Random statistics for all matrices of layers, and for the output."""
    rng = np.random.default_rng(2)
    entries = []
    for name, shape in shapes(n_layers, 1).items():
        if name != "token_embd.weight":
            n = shape[0] if len(shape) == 3 else 1
            values = np.exp(rng.standard_normal((n, shape[-1]), dtype=np.float32)).astype(np.float64)
            entries.append((name, 1000 * values, np.full(n, 1000, np.float32)))
    _ikq.write_statistics(
        path, "gguf", entries, datasets=["random"], n_chunks=100, chunk_size=512, all_experts=False
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--models", type=Path, help="folder for the source, on a disk with sparse files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bpw", type=float, default=3.4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.models) as folder:
        source, statistics = Path(folder) / "m.gguf", Path(folder) / "m.imatrix.gguf"
        write_source(source, args.layers, args.vocabulary)
        write_statistics(statistics, args.layers)
        size, held = source.stat().st_size / 1e9, source.stat().st_blocks * 512 / 1e9
        print(f"{machine()}, {args.threads} threads")
        print(f"source: {size:.1f} GB, {held:.1f} GB of it on the disk", flush=True)
        words = ["recipe", str(source), "--imatrix", str(statistics), "--bpw", str(args.bpw)]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "ikq", *words, "-t", str(args.threads), "-o", str(Path(folder) / "r.txt")],
            env=os.environ,
        )
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{args.layers} layers: {seconds:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time, "
        f"peak resident memory {used.ru_maxrss / 1e6:.2f} GB, exit code {done.returncode}"
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
