#!/usr/bin/env python3
"""Checks a GPU in one command: whether kernels are right there, and how fast they are.

    pip install 'ikq[cuda]'      # or, from a file, ikq-*.whl numpy 'nvidia-cuda-nvrtc==13.0.*'; 12.8.* for drivers before 580
    python tools/gpu_check.py [--out gpu_check.json] [--budget-s 480] [--shape small|qwen3-30b-a3b] [--only GROUP,...]

Needs numpy and ikq; no network, no compiler, no other package. Groups run in processes of their own, because an error of
a kernel ends the process's use of the GPU; results are written to one JSON file as they come. The last lines are a table:
what failed first, then what falls farthest behind its target. Clocks and modes of the card are left as they are.

Groups, the most telling first: `environment`; `peaks`, what tensor cores and copies reach on this card, of which others take shares; `compile`, kernels for this GPU; `weights`, every type decoded on the GPU;
`products`, every type multiplied; `recurrent`, a model with recurrent layers, and rotated caches; `latency` of launches; `steps` of many
layers, launched one by one and replayed as graphs; `experts`, groups of tokens of many sizes; `attention` over caches of some types, at a depth; `timings` of products against the
memory's bandwidth, and of many columns against the tensor cores; `prompts`, tokens per second of whole prompts; `model`, a
random mixture of experts, logits against the CPU's, and tokens per second; `hybrid`, prompts with the experts in RAM, and from
how many tokens on they are computed on the GPU; `cublas`, products by cuBLAS where it is installed (`nvidia-cublas`), beside tiles;
`statistics`, an imatrix collected there, and `quality`, perplexity and KL divergence there, beside the CPU's; `features`; `figures`.

    python tools/gpu_check.py --only environment --compare .../llama-bench --shape qwen3-30b-a3b --budget-s 1800

`--compare LLAMA_BENCH` (not among the others otherwise) times a llama-bench of ik_llama.cpp or llama.cpp on the same card and the
same model files, by turns with ikq, and prints a table of both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_attention import attention
from gpu_blas import cublas
from gpu_cards import MEASURED, Sheet, bound
from gpu_features import features
from gpu_figures import figures
from gpu_models import SHAPES, bytes_of_a_token, matrix, products_of_a_token, seed, write_model
from gpu_peaks import peaks
from gpu_quality import quality, statistics
from gpu_whole import compare, compared, hybrid
from numpy.typing import NDArray

import ikq
from ikq import _ikq, cuda

Row = dict[str, Any]

# sums in float32 of integer products, which are exact: a unit per level of the sums
INTEGER_PRODUCTS = 1e-6
# products with these types, on every device, have a factor that decoded weights have not
FACTORS = {"IQ2_KT": 1.05, "IQ3_KT": 1.01}
# layers of a few hundred sums each, whose terms are added in another order
RECURRENT = 1e-4
TARGET = 0.75
TARGET_INT8 = 0.2
MANY = 512  # columns of products, and tokens of prompts, that are timed
TIMED = ("IQ4_KS", "IQ2_XXS", "Q4_K", "Q6_K", "Q8_0", "IQ3_XXS", "MXFP4", "BF16")


def weight_types() -> list[ikq.QuantType]:
    """Types that weights can have and kernels read."""
    out = []
    for t in ikq.QuantType:
        try:
            _ikq.cuda_plan("products", _product_sizes(t, 4, 512, 1))
        except ikq.IkqError:
            continue
        out.append(t)
    return out


def _product_sizes(t: ikq.QuantType, n_rows: int, n: int, n_columns: int) -> dict[str, Any]:
    sizes = {"type": t.id, "n_rows": n_rows, "n": n, "n_columns": n_columns, "stride": n_rows}
    return sizes | {"bias": False, "residual": False}


def codes(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Columns as products read them: codes of 8 bits, a scale per 32."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    rounded = np.rint(blocks * (np.float32(127) / most))
    found: NDArray[np.float64] = (rounded.astype(np.float64) * (most / np.float32(127))).reshape(x.shape)
    return found


def distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Relative; NaN where `a` is not finite."""
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


def usual_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The median of the relative distances of rows; NaN where one is not finite."""
    apart = np.linalg.norm(a.astype(np.float64) - b, axis=1) / np.linalg.norm(b, axis=1)
    return float(np.median(apart))


def environment(_: argparse.Namespace) -> Iterator[Row]:
    """What there is."""
    found = cuda.status()
    libc = " ".join(platform.libc_ver())
    yield {
        "name": "environment",
        "ok": found["usable"],
        "why": found["reason"] or "",
        "ikq": ikq.__version__,
        "python": platform.python_version(),
        "libc": libc,
        "machine": platform.machine(),
        **json.loads(json.dumps(found, default=str)),
    }
    try:
        query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        smi = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        yield {"name": "nvidia-smi", "ok": True, "says": smi.stdout.strip()}
    except (OSError, subprocess.SubprocessError) as e:
        yield {"name": "nvidia-smi", "ok": True, "why": f"not asked: {e}"}


def compile_(_: argparse.Namespace) -> Iterator[Row]:
    """Every specialisation that models with a type need, for this GPU."""
    (arch, *_others) = cuda.architectures()
    for t in weight_types():
        start = time.perf_counter()
        try:
            made = cuda.warm([t.id], arch)
        except ikq.IkqError as e:
            yield {"name": f"compile {t}", "ok": False, "why": str(e)[:2000]}
            continue
        seconds = time.perf_counter() - start
        n_new = sum(not was_there for _, was_there in made)
        yield {"name": f"compile {t}", "ok": True, "seconds": round(seconds, 3), "compiled": n_new}


def weights(_: argparse.Namespace) -> Iterator[Row]:
    """Rows decoded on the GPU from its own form: bit for bit the CPU's, but for the sign of zeros."""
    places, rng = cuda.places_of_nvrtc(), np.random.default_rng(seed())
    for t in weight_types():
        if t.family == "float":
            continue
        for n_rows, n in ((5, 512), (3, 2048)):
            w = matrix(t, n_rows, n, rng)
            raw = np.ascontiguousarray(w.raw).reshape(-1)
            found = _ikq.cuda_dequantize(places, 0, t.id, raw, n_rows, n)
            ok = np.array_equal(found, w.dequantize())
            yield {"name": f"weights {t} {n_rows}x{n}", "ok": ok}


def products(_: argparse.Namespace) -> Iterator[Row]:
    """Products of one to eight columns and more, rows that are no multiple of the tile, launched and replayed."""
    places, rng = cuda.places_of_nvrtc(), np.random.default_rng(seed())
    for t in weight_types():
        for n_rows, n, n_columns in ((37, 512, 1), (13, 1024, 3), (5, 512, 13), (130, 512, 70)):
            w = matrix(t, n_rows, n, rng)
            x = rng.standard_normal((n_columns, n), dtype=np.float32)
            raw = np.ascontiguousarray(w.raw).reshape(-1)
            read = x.astype(np.float64) if t.family == "float" else codes(x)
            want = read @ w.dequantize().astype(np.float64).T * FACTORS.get(t.name, 1.0)
            for replays in (0, 2):
                found = _ikq.cuda_product(places, 0, t.id, raw, n_rows, x, replays)
                error = distance(found, want)
                name = f"products {t} {n_rows}x{n}, {n_columns} columns" + (", replayed" if replays else "")
                yield {"name": name, "ok": error <= INTEGER_PRODUCTS, "error": error}


def _per_replay(t: ikq.QuantType, w: ikq.QTensor, x: NDArray[np.float32], n: int) -> float:
    """Seconds of a replay of a product, its quantizing included: the median of differences between more and fewer."""
    places = cuda.places_of_nvrtc()
    raw, n_rows = np.ascontiguousarray(w.raw).reshape(-1), w.shape[0]

    def seconds(replays: int) -> float:
        start = time.perf_counter()
        _ikq.cuda_product(places, 0, t.id, raw, n_rows, x, replays)
        return time.perf_counter() - start

    seconds(1)
    return float(np.median([(seconds(11 * n) - seconds(n)) / (10 * n) for _ in range(5)]))


def latency(args: argparse.Namespace) -> Iterator[Row]:
    """A graph of two tiny kernels, and a fill: what any launch costs."""
    t, rng = ikq.QuantType.Q8_0, np.random.default_rng(seed())
    x = rng.standard_normal((1, 256), dtype=np.float32)
    seconds = _per_replay(t, matrix(t, 4, 256, rng), x, 3 if args.emulated else 1000)
    yield {"name": "latency of a graph", "ok": True, "us": seconds * 1e6, "bound_us": 5.0, "target": 1.0}


def steps(args: argparse.Namespace) -> Iterator[Row]:
    """Steps of one text and of eight: replayed as graphs, and with every kernel launched; the bits are the same."""
    s = SHAPES["tiny" if args.emulated else "deep"]
    n_steps, ids = (2, [1, 2, 3]) if args.emulated else (64, list(range(1, 33)))
    places: dict[str, Any] = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": s.n_layer + 1}
    found: dict[tuple[int, str], list[NDArray[np.float32] | None]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "model.gguf"
        write_model(file, s, "IQ4_KS")
        for how, setting in (("replayed", "1"), ("launched", "0")):
            os.environ["IKQ_CUDA_GRAPHS"] = setting
            for n in (1, 8):
                with ikq.Model.load(file, n_ctx=256, **places) as model:
                    texts = [model.new_sequence() for _ in range(n)]
                    model.step([(text, ids[: 2 + i % 2], "none") for i, text in enumerate(texts)])
                    # kernels are loaded by the first step, and recorded in the second
                    for _ in range(2):
                        model.step([(text, ids[:1], "last") for text in texts])
                    before, start = _ikq.cuda_counts(), time.perf_counter()
                    for i in range(n_steps):
                        last = model.step([(text, [ids[i % len(ids)]], "last") for text in texts])
                    seconds = (time.perf_counter() - start) / n_steps
                    counts = {k: (v - before[k]) / n_steps for k, v in _ikq.cuda_counts().items()}
                found[n, how] = last
                name = f"step of {n}, {s.n_layer} layers, {how}"
                done = (counts["replays"] > 0) == (setting == "1") and counts["recorded"] == 0
                yield {"name": name, "ok": done, "us": seconds * 1e6, **counts}
    del os.environ["IKQ_CUDA_GRAPHS"]
    for n in (1, 8):
        pairs = zip(found[n, "replayed"], found[n, "launched"], strict=True)
        same = all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)
        yield {"name": f"replayed steps of {n}: the same bits", "ok": same}


def tall(t: ikq.QuantType, n_rows: int, n: int, rng: np.random.Generator) -> ikq.QTensor:
    """A matrix of random rows that come again and again."""
    some = np.asarray(matrix(t, min(n_rows, 1024), n, rng).raw).reshape(min(n_rows, 1024), -1)
    return ikq.QTensor(np.tile(some, (n_rows // len(some), 1)), t, (n_rows, n))


def timings(args: argparse.Namespace) -> Iterator[Row]:
    """Products with matrices that no cache holds, of one column; and of many columns."""
    rng = np.random.default_rng(seed())
    n_rows, n = (64, 512) if args.emulated else (65536, 8192)
    for name in TIMED:
        t = ikq.QuantType[name]
        w = tall(t, n_rows, n, rng)
        x = rng.standard_normal((1, n), dtype=np.float32)
        seconds = _per_replay(t, w, x, 1 if args.emulated else 20)
        row: Row = {"name": f"product {t} {n_rows}x{n}", "ok": True, "us": seconds * 1e6}
        row |= {"gb_per_s": w.nbytes / seconds / 1e9, "weights_per_s": n_rows * n / seconds}
        yield row | bound("bandwidth", w.nbytes, TARGET)
    n_rows, n, n_columns = (128, 512, 64) if args.emulated else (16384, 4096, MANY)
    for name in TIMED[: 1 if args.emulated else None]:
        if (t := ikq.QuantType[name]).family == "float":
            continue
        x = rng.standard_normal((n_columns, n), dtype=np.float32)
        seconds = _per_replay(t, tall(t, n_rows, n, rng), x, 1 if args.emulated else 20)
        operations = 2.0 * n_rows * n * n_columns
        row = {"name": f"product {t} {n_rows}x{n}, {n_columns} columns", "ok": True, "us": seconds * 1e6}
        row |= {"tops": operations / seconds / 1e12}
        yield row | bound("int8", operations, TARGET_INT8)


def model(args: argparse.Namespace) -> Iterator[Row]:
    """Logits of a whole model against the CPU's, and tokens per second."""
    s = SHAPES["tiny" if args.emulated else args.shape]
    n_prompt, n_decoded = (6, 2) if args.emulated else (64, 64)
    ids = list(np.random.default_rng(seed()).integers(0, s.n_vocab, n_prompt))
    for type_name in ("IQ4_KS", "IQ2_XXS"):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            file = Path(folder) / "model.gguf"
            write_model(file, s, type_name)
            active = bytes_of_a_token(file, s)
            places: dict[str, Any] = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": s.n_layer + 1}
            with ikq.Model.load(file, n_ctx=512, **places) as on_gpu:
                found = on_gpu.logits(ids)
                sequence = on_gpu.new_sequence()
                on_gpu.step([(sequence, ids, "none")])
                on_gpu.step([(sequence, ids[:1], "last")])
                start = time.perf_counter()
                for i in range(n_decoded):
                    on_gpu.step([(sequence, [ids[i % n_prompt]], "last")])
                seconds = (time.perf_counter() - start) / n_decoded
            rows: list[Row] = []
            if s.n_layer <= 2:
                with (
                    ikq.Model.load(file, n_ctx=512, compute="f32") as exact,
                    ikq.Model.load(file, n_ctx=512) as cpu,
                ):
                    want, rounded = exact.logits(ids), distance(cpu.logits(ids), exact.logits(ids))
                error = distance(found, want)
                rows.append({"name": f"logits {type_name}", "ok": error <= 2 * rounded, "error": error})
            row: Row = {
                "name": f"decode {type_name}, {s.n_layer} layers",
                "ok": bool(np.isfinite(found).all()),
            }
            row |= {"us": seconds * 1e6, "tokens_per_s": 1 / seconds}
            yield from [*rows, row | bound("bandwidth", active, 0.5)]


GROUP_SIZES = (0, 1, 7, 8, 9, 127, 128, 129, 300)  # tokens of each expert in the group `experts`


def write_chosen(path: Path, up: str, gate: str, down: str) -> None:
    """A layer whose attention adds nothing and whose expert e gets the tokens of id e alone."""
    rng = np.random.default_rng(seed())
    a, e, n = "qwen3moe", 256, len(GROUP_SIZES)
    sizes = {
        "vocab_size": n, "context_length": 1024, "embedding_length": e, "block_count": 1, "feed_forward_length": e,
        "attention.head_count": 1, "attention.head_count_kv": 1, "attention.key_length": 32,
        "attention.value_length": 32, "rope.dimension_count": 32, "expert_count": n, "expert_used_count": 1,
        "expert_feed_forward_length": e,
    }  # fmt: skip
    metadata = ikq.Metadata(
        {"general.architecture": a, "tokenizer.ggml.model": "no_vocab"}
        | {f"{a}.{k}": v for k, v in sizes.items()}
        | {f"{a}.attention.layer_norm_rms_epsilon": 1e-6}
    )
    tokens = rng.standard_normal((n, e), dtype=np.float32)

    def some(of: str, n_rows: int, n_in: int, n_experts: int = 1) -> ikq.QTensor:
        all_rows = matrix(ikq.QuantType[of], n_experts * n_rows, n_in, rng)
        raw = np.asarray(all_rows.raw).reshape(n_experts, -1)
        return ikq.QTensor(raw, of, (n_experts, n_rows, n_in) if n_experts > 1 else (n_rows, n_in))

    tensors: dict[str, ikq.QTensor | NDArray[np.float32]] = {
        "token_embd": tokens,
        "output": rng.standard_normal((n, e), dtype=np.float32),
        "output_norm": np.ones(e, np.float32),
        "blk.0.attn_norm": np.ones(e, np.float32),
        "blk.0.ffn_norm": np.ones(e, np.float32),
        "blk.0.attn_q_norm": np.ones(32, np.float32),
        "blk.0.attn_k_norm": np.ones(32, np.float32),
        "blk.0.attn_q": some("Q8_0", 32, e),
        "blk.0.attn_k": some("Q8_0", 32, e),
        "blk.0.attn_v": some("Q8_0", 32, e),
        "blk.0.attn_output": np.zeros((e, 32), np.float32),
        # random directions of 256 numbers have a cosine of a sixteenth or so
        "blk.0.ffn_gate_inp": tokens,
        "blk.0.ffn_up_exps": some(up, e, e, n),
        "blk.0.ffn_gate_exps": some(gate, e, e, n),
        "blk.0.ffn_down_exps": some(down, e, e, n),
    }
    with ikq.GGUFWriter(path, metadata) as writer:
        for name, tensor in tensors.items():
            writer.add_tensor(f"{name}.weight", tensor)


def experts(args: argparse.Namespace) -> Iterator[Row]:
    """Groups of many sizes in one launch: the bits of a token hang on no other one, and are near a vector product's."""
    rng = np.random.default_rng(seed())
    ids = rng.permutation(np.repeat(np.arange(len(GROUP_SIZES)), GROUP_SIZES))
    cases = [("IQ4_KS", "Q6_K", "Q4_0"), ("Q4_K", "Q4_K", "Q6_K"), ("IQ2_XXS", "IQ2_XXS", "IQ4_XS")]
    for types in cases[: 1 if args.emulated else None]:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            file = Path(folder) / "model.gguf"
            write_chosen(file, *types)
            alone: dict[str, NDArray[np.float32]] = {}
            places: dict[str, Any] = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": 99, "n_ubatch": 1024}
            for how, first in (("vectors", "1000000"), ("tiles", "1")):
                os.environ["IKQ_CUDA_MMQ_FROM"] = first
                with ikq.Model.load(file, n_ctx=1024, **places) as on_gpu:
                    alone[how] = np.concatenate([on_gpu.logits([i]) for i in range(len(GROUP_SIZES))])
                    together = on_gpu.logits(ids.tolist()) if how == "tiles" else None
            del os.environ["IKQ_CUDA_MMQ_FROM"]
            name = f"experts {'/'.join(types)}"
            same = together is not None and np.array_equal(together, alone["tiles"][ids])
            yield {"name": f"{name}, the bits of single tokens", "ok": same}
            # codes of activations are the same but where a number lies between two
            error = usual_distance(alone["tiles"], alone["vectors"])
            yield {"name": f"{name}, against vectors", "ok": error <= INTEGER_PRODUCTS, "error": error}


def prompts(args: argparse.Namespace) -> Iterator[Row]:
    """Tokens per second of prompts, by the operations of their products."""
    s = SHAPES["tiny" if args.emulated else args.shape]
    n = 40 if args.emulated else MANY
    ids = [int(i) for i in np.random.default_rng(seed()).integers(0, s.n_vocab, n)]
    for type_name in ("IQ4_KS", "Q4_K")[: 1 if args.emulated else None]:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            file = Path(folder) / "model.gguf"
            write_model(file, s, type_name)
            operations = n * products_of_a_token(file, s)
            for how, options in (("fused", {}), ("separate", {"fused_up_gate": False}))[
                : 1 if args.emulated else 2
            ]:
                places: dict[str, Any] = {
                    "devices": ["CPU", "CUDA0"],
                    "n_gpu_layers": s.n_layer + 1,
                    **options,
                }
                with ikq.Model.load(file, n_ctx=n, n_ubatch=n, **places) as on_gpu:
                    seconds = []
                    for _ in range(2 if args.emulated else 6):
                        sequence, start = on_gpu.new_sequence(), time.perf_counter()
                        (last,) = on_gpu.step([(sequence, ids, "last")])
                        seconds.append(time.perf_counter() - start)
                        sequence.close()
                took = float(np.median(seconds[1:]))
                row: Row = {
                    "name": f"prompt of {n}, {type_name}, {s.n_layer} layers, {how}",
                    "us": took * 1e6,
                }
                row |= {"ok": last is not None and bool(np.isfinite(last).all()), "tokens_per_s": n / took}
                yield row | bound("int8", operations, TARGET_INT8)


def write_recurrent(path: Path, head: int) -> None:
    """A model of a recurrent layer and one with attention, with heads of so many elements and weights of floats."""
    rng = np.random.default_rng(seed())
    a, e, n_vocab, n_k, n_v, n_ff, n_expert = "qwen3next", 8 * head, 512, 2, 4, 64, 4
    channels = (2 * n_k + n_v) * head
    metadata = ikq.Metadata(
        {
            "general.architecture": a,
            "tokenizer.ggml.model": "no_vocab",
            f"{a}.vocab_size": n_vocab,
            f"{a}.context_length": 1024,
            f"{a}.embedding_length": e,
            f"{a}.block_count": 2,
            f"{a}.full_attention_interval": 2,
            f"{a}.feed_forward_length": n_ff,
            f"{a}.attention.head_count": 4,
            f"{a}.attention.head_count_kv": 2,
            f"{a}.attention.key_length": head,
            f"{a}.attention.value_length": head,
            f"{a}.attention.layer_norm_rms_epsilon": 1e-6,
            f"{a}.rope.dimension_count": head // 4,
            f"{a}.expert_count": n_expert,
            f"{a}.expert_used_count": 2,
            f"{a}.expert_feed_forward_length": n_ff,
            f"{a}.expert_shared_feed_forward_length": n_ff,
            f"{a}.ssm.conv_kernel": 4,
            f"{a}.ssm.state_size": head,
            f"{a}.ssm.group_count": n_k,
            f"{a}.ssm.time_step_rank": n_v,
            f"{a}.ssm.inner_size": n_v * head,
        }
    )

    def some(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))

    ffn = {
        "attn_norm.weight": np.ones(e, np.float32),
        "post_attention_norm.weight": np.ones(e, np.float32),
        "ffn_gate_inp.weight": some(n_expert, e),
        "ffn_gate_exps.weight": some(n_expert, n_ff, e),
        "ffn_up_exps.weight": some(n_expert, n_ff, e),
        "ffn_down_exps.weight": some(n_expert, e, n_ff),
        "ffn_gate_inp_shexp.weight": some(1, e),
        "ffn_gate_shexp.weight": some(n_ff, e),
        "ffn_up_shexp.weight": some(n_ff, e),
        "ffn_down_shexp.weight": some(e, n_ff),
    }
    recurrent = {
        "ssm_a": -np.abs(rng.standard_normal(n_v, dtype=np.float32)),
        "ssm_conv1d.weight": some(channels, 4),
        "ssm_dt.bias": rng.standard_normal(n_v, dtype=np.float32),
        "ssm_ba.weight": some(2 * n_v, e),
        "attn_qkv.weight": some(channels, e),
        "attn_gate.weight": some(n_v * head, e),
        "ssm_norm.weight": np.ones(head, np.float32),
        "ssm_out.weight": some(e, n_v * head),
    }
    full = {
        "attn_q.weight": some(8 * head, e),
        "attn_k.weight": some(2 * head, e),
        "attn_v.weight": some(2 * head, e),
        "attn_q_norm.weight": np.ones(head, np.float32),
        "attn_k_norm.weight": np.ones(head, np.float32),
        "attn_output.weight": some(e, 4 * head),
    }
    with ikq.GGUFWriter(path, metadata) as writer:
        writer.add_tensor("token_embd.weight", some(n_vocab, e))
        writer.add_tensor("output.weight", some(n_vocab, e))
        writer.add_tensor("output_norm.weight", np.ones(e, np.float32))
        for i, layer in enumerate((recurrent | ffn, full | ffn)):
            for name, tensor in layer.items():
                writer.add_tensor(f"blk.{i}.{name}", tensor)


def recurrent(args: argparse.Namespace) -> Iterator[Row]:
    """Logits of a model with a recurrent layer against the CPU's, whole and in pieces; and with rotated caches."""
    ids = [int(i) for i in np.random.default_rng(seed()).integers(0, 512, 40 if args.emulated else 200)]
    places: dict[str, Any] = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": 99}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "model.gguf"
        write_recurrent(file, 32 if args.emulated else 128)

        def logits(**options: Any) -> NDArray[np.float32]:
            with ikq.Model.load(file, n_ctx=256, **options) as model:
                return model.logits(ids)

        floats: dict[str, Any] = {"cache_type_k": "f32", "cache_type_v": "f32"}
        exact = logits(compute="f32", **floats)
        # products of all steps in tiles: else steps of up to eight tokens have sums in another order
        os.environ["IKQ_CUDA_MMQ_FROM"] = "1"
        with ikq.Model.load(file, n_ctx=256, **floats, **places) as on_gpu:
            whole, sequence = on_gpu.logits(ids), on_gpu.new_sequence()
            cuts = (0, 1, 7, 31, 34, len(ids))
            parts = [on_gpu.step([(sequence, ids[a:b], "all")])[0] for a, b in itertools.pairwise(cuts)]
        del os.environ["IKQ_CUDA_MMQ_FROM"]
        error = distance(whole, exact)
        yield {"name": "logits with a recurrent layer", "ok": error <= RECURRENT, "error": error}
        same = np.array_equal(np.concatenate([p for p in parts if p is not None]), whole)
        yield {"name": "the same bits in pieces", "ok": same}
        for t in ("q6_0", "q4_0", "iq4_nl"):
            types: dict[str, Any] = {"cache_type_k": t, "cache_type_v": t}
            # two draws of the same roundings; of a few tokens in hundreds either may be far off
            here, there = logits(**types), logits(**types, **places)
            rounded, error = usual_distance(here, exact), usual_distance(there, exact)
            yield {"name": f"logits with rotated {t} caches", "ok": error <= 2 * rounded, "error": error}


GROUPS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "environment": environment,
    "peaks": peaks,
    "compile": compile_,
    "weights": weights,
    "products": products,
    "recurrent": recurrent,
    "latency": latency,
    "steps": steps,
    "experts": experts,
    "attention": attention,
    "timings": timings,
    "prompts": prompts,
    "model": model,
    "hybrid": hybrid,
    "cublas": cublas,
    "statistics": statistics,
    "quality": quality,
    "features": features,
    "figures": figures,
    "compare": compare,
}


def behind(row: Row) -> float:
    """How far a row is from its target: failures first, then what reaches the least of it."""
    if not row["ok"]:
        return float("inf")
    if "bound_us" not in row:
        return -1.0
    return float(row["target"] - row["bound_us"] / row["us"])


def reason(row: Row) -> str:
    """Why a row failed, in a line: what an error of Python ends with."""
    said = [line.strip() for line in str(row.get("why", "")).splitlines() if line.strip()]
    return said[-1] if said else ""


def table(rows: list[Row]) -> list[str]:
    """At most 60 lines."""
    lines = [f"{'':4} {'what':50} {'us':>12} {'of bound':>9} {'of sheet':>9} {'target':>7}  error"]
    for row in sorted(rows, key=behind, reverse=True)[:57]:
        reached = " ".join(
            f"{row[k] / row['us']:9.2f}" if k in row else " " * 9 for k in ("bound_us", "sheet_us")
        )
        us, target = (
            f"{row[k]:{w}}" if k in row else " " * len(w) for k, w in (("us", "12.1f"), ("target", "7.2f"))
        )
        error = f"{row['error']:.1e}" if "error" in row else reason(row)
        if "usual_us" in row:
            error = f"{row['us'] / row['usual_us']:.2f} of what it takes else"
        if "launches" in row:
            error = f"{row['launches']:.0f} launches, {row['replays']:.0f} graphs, {row['copies']:.0f} copies"
        lines.append(
            f"{'ok' if row['ok'] else 'FAIL':4} {row['name'][:50]:50} {us:>12} {reached} {target:>7}  {error}"
        )
    failed = sum(not row["ok"] for row in rows)
    return [*lines, *ceilings(rows), f"{len(rows)} rows, {failed} failed"]


BOUNDED = ("attention", "timings", "prompts", "model", "figures")
"""Groups with times beside what the card could do at most."""


def ceilings(rows: list[Row]) -> list[str]:
    """What `of bound` and `of sheet` are shares of."""
    if not any(row.get("group") in BOUNDED for row in rows):
        return []
    bounds = {row["ceiling"] for row in rows if "ceiling" in row}
    said = {
        frozenset(): "Neither was anything measured, nor is a data sheet of this card known here: no row has a bound.",
        frozenset({"measured"}): "Bounds: what this card's own kernels reached (group peaks).",
        frozenset({"data sheet"}): "Bounds: the data sheet's figures, as nothing was measured (group peaks).",
    }.get(
        frozenset(bounds),
        "Bounds: what was measured (group peaks), and where nothing was, the data sheet's figures.",
    )
    if not any("sheet_us" in row for row in rows):
        return [
            said,
            "No data sheet of this card is known here (tools/gpu_cards.py), so there are no shares of one.",
        ]
    return [said, "Of sheet: shares of its data sheet's rates, which on Hopper are those of wgmma."]


def measured_in(rows: list[Row]) -> dict[str, float]:
    """What was measured of the card, by the names of a data sheet."""
    return {what: row[what] for row in rows if row["ok"] for what in Sheet._fields if what in row}


def run_group(args: argparse.Namespace) -> None:
    """A group, in this process; a line of JSON per row."""
    args.emulated = cuda.status()["emulated"]
    for row in GROUPS[args.group](args):
        print(json.dumps({"group": args.group, **row}), flush=True)


def check(args: argparse.Namespace) -> int:
    """All groups, each in a process of its own, within the budget."""
    drawn = os.environ.setdefault("IKQ_CHECK_SEED", str(int(time.time()) % 100_000))
    rows: list[Row] = []
    end = time.monotonic() + args.budget_s
    named = [group.strip() for group in (args.only or "").split(",")]
    wanted = [g for g in GROUPS if g != "compare"] if args.only is None else named
    wanted += ["compare"] if args.compare and "compare" not in wanted else []
    # what others are bounded by
    if "peaks" not in wanted and any(group in BOUNDED for group in wanted):
        wanted.insert(wanted.index("environment") + 1 if "environment" in wanted else 0, "peaks")
    if unknown := [group for group in wanted if group not in GROUPS]:
        print(f"--only {','.join(unknown)}: no such group; there are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    # what would only be found when minutes of a GPU are spent
    try:
        with Path(args.out).open("a"):
            pass
    except OSError as e:
        print(f"--out {args.out}: {e.strerror}", file=sys.stderr)
        return 2
    if args.compare and shutil.which(args.compare) is None:
        print(f"--compare {args.compare}: there is no such program", file=sys.stderr)
        return 2
    for group in wanted:
        left = end - time.monotonic()
        command = [sys.executable, __file__, "--group", group, "--shape", args.shape]
        command += ["--layers", str(args.layers)]
        command += ["--folder", args.folder] if args.folder else []
        command += ["--compare", args.compare] if args.compare else []
        command += [f"--compare-args={args.compare_args}", "--compare-types", args.compare_types]
        lines, why = "", ""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, left))
            # a process that is killed says nothing
            died = "" if done.returncode == 0 else done.stderr[-2000:].strip() or f"status {done.returncode}"
            lines, why = done.stdout, died
        except subprocess.TimeoutExpired as e:
            output = e.stdout or b""
            lines = output.decode() if isinstance(output, bytes) else output
            why = "no time was left"
        rows += [
            json.loads(line) for line in lines.splitlines() if line.startswith("{") and line.endswith("}")
        ]
        if group == "peaks":
            os.environ[MEASURED] = json.dumps(measured_in(rows))
        if why:
            rows.append({"group": group, "name": f"group {group}", "ok": False, "why": why})
        Path(args.out).write_text(json.dumps({"seed": drawn, "rows": rows}, indent=1))
        if any(row["name"] == "environment" and not row["ok"] for row in rows):
            rest = wanted[wanted.index(group) + 1 :]
            print(f"Not started, as no GPU can be used: {', '.join(rest) or 'nothing else'}.")
            break
    print("\n".join([*table(rows), *compared(rows)]))
    return int(any(not row["ok"] for row in rows))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="gpu_check.json", help="file of results")
    parser.add_argument("--budget-s", type=float, default=480.0, help="seconds for all of it")
    parser.add_argument("--shape", choices=list(SHAPES), default="small", help="shape of the model")
    parser.add_argument(
        "--layers", type=int, default=4, help="of the models of `figures`; 0: all that the real ones have"
    )
    parser.add_argument("--only", help="groups, joined by commas")
    parser.add_argument("--folder", help="where the model is written")
    parser.add_argument("--compare", metavar="LLAMA_BENCH", help="also time this program on the same models")
    parser.add_argument("--compare-args", default="-fa 1", help="further options of that program")
    parser.add_argument(
        "--compare-types", default="IQ4_KS,Q4_K", help="types of the models that both are timed with"
    )
    parser.add_argument("--group", choices=list(GROUPS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.group:
        run_group(args)
        return 0
    return check(args)


if __name__ == "__main__":
    raise SystemExit(main())
