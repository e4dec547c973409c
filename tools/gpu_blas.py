"""The group `cublas` of `gpu_check.py`: products by cuBLAS, their values, their bits, and how long they take beside tiles."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import SHAPES, matrix, seed, write_model
from numpy.typing import NDArray

import ikq
from ikq import _ikq, cuda
from ikq.speed.cuda_blas import BlasTable, measure_blas

Row = dict[str, Any]

# sums of a thousand terms in floats, some bits of which tensor cores drop: far less than the 2^-9 of an operand
SUMS = 3e-5
# of logits with other roundings of operands, which codes of 8 bits have as large ones
LOGITS = 0.05
TYPES = ("IQ4_KS", "Q4_K", "Q8_0", "IQ2_KT", "BF16")
FACTORS = {"IQ2_KT": 1.05}
LEAST = 65


def bf16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest numbers of eight bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    found: NDArray[np.float32] = (
        ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    )
    return found


def columns(t: ikq.QuantType, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Columns as products read them: rounded, and where weights are quantized, made of codes."""
    if t.family == "float":
        return bf16(x).astype(np.float64)
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    codes = np.rint(blocks * (np.float32(127) / most)).astype(np.float32)
    return bf16(codes * (most / np.float32(127))).reshape(x.shape).astype(np.float64)


def values() -> Iterator[Row]:
    """Rows that are no multiple of a tile, with a bias and a residual; and once more."""
    places, rng = (cuda.places_of_nvrtc(), cuda.places_of_cublas()), np.random.default_rng(seed())
    for name in TYPES:
        t = ikq.QuantType[name]
        for n_rows, n, n_columns in ((130, 512, 70), (1000, 1024, 130)):
            w = matrix(t, n_rows, n, rng)
            x = rng.standard_normal((n_columns, n), dtype=np.float32)
            bias = rng.standard_normal(n_rows, dtype=np.float32)
            residual = rng.standard_normal((n_columns, n_rows), dtype=np.float32)
            raw = np.ascontiguousarray(w.raw).reshape(-1).view(np.uint8)
            want = columns(t, x) @ bf16(w.dequantize()).astype(np.float64).T * FACTORS.get(name, 1.0)
            want += bias.astype(np.float64) + residual
            of = (*places, 0, t.id, raw, n_rows, x, bias, residual, True)
            found, again = _ikq.cuda_blas_product(*of), _ikq.cuda_blas_product(*of)
            error = float(np.linalg.norm(found - want) / np.linalg.norm(want))
            what = f"cuBLAS {name} {n_rows}x{n}, {n_columns} columns"
            yield {"name": what, "ok": error <= SUMS, "error": error}
            yield {"name": f"{what}: the same bits again", "ok": bool(np.array_equal(found, again))}


def timed(emulated: bool) -> Iterator[Row]:
    """Tiles and cuBLAS by turns."""
    types = [ikq.QuantType[name] for name in (TYPES[:1] if emulated else TYPES)]
    shapes, counts = ([(64, 256)], [LEAST]) if emulated else ([(4096, 4096), (14336, 4096)], [128, 512, 2048])
    repeats = 1 if emulated else 10
    table = measure_blas(types, shapes=shapes, columns=counts, turns=3, repeats=repeats)
    for m in table.measured:
        name = f"{m.type} {m.n_rows}x{m.n}, {m.n_columns} columns, tiles"
        row: Row = {"name": name, "ok": True, "us": m.tiles * 1e6, "cublas_us": m.cublas * 1e6}
        yield row | {"why": f"cuBLAS {m.cublas * 1e6:.1f} us, {m.tiles / m.cublas:.2f} times as fast"}


def of_a_model(args: argparse.Namespace) -> Iterator[Row]:
    """A prompt whose attention has products by cuBLAS, and without."""
    s = SHAPES["tiny" if args.emulated else args.shape]
    n = LEAST if args.emulated else 512
    ids = [int(i) for i in np.random.default_rng(seed()).integers(0, s.n_vocab, n)]
    facts = cuda.usable_devices(memory=False)["CUDA0"]
    table = BlasTable(
        device=facts["name"],
        compute_capability=facts["compute_capability"],
        n_multiprocessors=facts["n_multiprocessors"],
        emulated=args.emulated,
        driver=None,
        cuda=None,
        cublas="",
        columns_from={"IQ4_KS": LEAST, "Q8_0": LEAST},
        smallest=(1, 1),
        measured=(),
    )
    places: dict[str, Any] = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": s.n_layer + 1}
    found: dict[str, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "model.gguf"
        write_model(file, s, "IQ4_KS")
        table.write(Path(folder) / "cublas.json")
        for how, named in (("tiles", ""), ("cuBLAS", str(Path(folder) / "cublas.json"))):
            os.environ["IKQ_CUDA_BLAS"] = named
            with ikq.Model.load(file, n_ctx=n, n_ubatch=n, **places) as model:
                before = _ikq.cuda_counts()["blas_products"]
                found[how] = model.logits(ids)
                start = time.perf_counter()
                model.step([(model.new_sequence(), ids, "last")])
                seconds = time.perf_counter() - start
                used = _ikq.cuda_counts()["blas_products"] - before
            yield {
                "name": f"prompt of {n}, {s.n_layer} layers, attention by {how}",
                "ok": (used > 0) == (how == "cuBLAS"),
                "us": seconds * 1e6,
                "tokens_per_s": n / seconds,
            }
        del os.environ["IKQ_CUDA_BLAS"]
    a, b = found["cuBLAS"].astype(np.float64), found["tiles"]
    error = float(np.median(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)))
    yield {"name": "logits by cuBLAS, against tiles", "ok": error <= LOGITS, "error": error}


def cublas(args: argparse.Namespace) -> Iterator[Row]:
    """The group; one row where there is no cuBLAS, which nothing needs."""
    try:
        path, version = _ikq.cuda_blas_version(cuda.places_of_nvrtc(), cuda.places_of_cublas(), 0)
    except ikq.IkqError as e:
        cuda.require()
        yield {"name": "cuBLAS", "ok": True, "why": f"not checked: {e}"}
        return
    yield {"name": f"cuBLAS {version}", "ok": True, "why": str(path)}
    yield from values()
    yield from timed(args.emulated)
    yield from of_a_model(args)
