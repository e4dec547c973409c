"""Products by cuBLAS on a GPU (the stand-ins), against the values that it is given, and the command that times them.

The stand-in multiplies in double precision and rounds once, so results are known to a few roundings.
"""

import json
import shutil

import numpy as np
import pytest
from emulator import CUDA, FULL, needs_gxx
from standin import environment, ikq_command, run
from test_products_on_device import matrix
from weights import TYPES

import ikq
import ikq.cuda
from ikq.speed.cuda_blas import Measured, columns_from

pytestmark = needs_gxx

FACTORS = {"iq2_kt": 1.05, "iq3_kt": 1.01}
# scales, mins, row headers, a factor of products, a scale behind all rows, and floats that are read as they stand
SOME = ["q4_k", "iq4_ks", "iq2_kt", "i2_s", "bf16"]
OTHERS = [name for name in [*TYPES, "bf16"] if name not in SOME]
EPILOGUES = {
    "plain": (False, False, False),
    "bias": (True, False, False),
    "residual": (False, True, False),
    "in place": (False, True, True),
    "both": (True, True, False),
    "both in place": (True, True, True),
}

PROGRAM = """
import json, sys
import numpy as np, ikq
from ikq import _ikq, cuda
work, out = np.load(sys.argv[1]), {}
places = cuda.places_of_nvrtc(), cuda.places_of_cublas()
for name in json.loads(sys.argv[2]):
    t, data, x, n_rows = ikq.QuantType(name), work[name], work["x_" + name], int(work["rows_" + name])
    for how, (bias, residual, in_place) in json.loads(sys.argv[3]).items():
        more = [work["bias"] if bias else None, work["residual"] if residual else None, in_place]
        out[f"{name} {how}"] = _ikq.cuda_blas_product(*places, 0, t.id, data, n_rows, x, *more)
np.savez(sys.argv[4], **out)
"""


def bf16(x: np.ndarray) -> np.ndarray:
    """The nearest numbers of eight bits, of two equally near the even one."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def columns(name: str, x: np.ndarray) -> np.ndarray:
    """What the product reads: of floats themselves where weights are floats, else of codes and their scales."""
    if name == "bf16":
        return bf16(x)
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    codes = np.rint(blocks * (np.float32(127) / most)).astype(np.float32)
    return bf16(codes * (most / np.float32(127))).reshape(x.shape)


class Case:
    """A matrix of a type and columns, with what is added to the product; and the product."""

    def __init__(self, name: str, n_rows: int = 37, n_columns: int = 11, seed: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.name, n = name, 512
        data = matrix(name, n_rows, n, rng)
        self.x = rng.normal(size=(n_columns, n)).astype(np.float32)
        self.bias = rng.normal(size=n_rows).astype(np.float32)
        self.residual = rng.normal(size=(n_columns, n_rows)).astype(np.float32)
        self.work = {name: data, f"x_{name}": self.x, f"rows_{name}": n_rows, "bias": self.bias}
        self.work["residual"] = self.residual
        w = bf16(ikq.dequantize(data, name, n).reshape(n_rows, n)).astype(np.float64)
        self.product = columns(name, self.x).astype(np.float64) @ w.T * FACTORS.get(name, 1.0)

    def error(self, found: np.ndarray, bias: bool, residual: bool) -> float:
        """The largest error in units of what two roundings to floats allow, of the sum and of what it begins with."""
        begins = self.bias * bias + self.residual.astype(np.float64) * residual
        allowed = 2.0**-24 * (np.abs(begins) + np.abs(self.product + begins)) * 1.001 + 1e-30
        # a factor is a float, too
        allowed += 2.0**-23 * np.abs(self.product) * (self.name in FACTORS)
        apart = np.abs(found - (self.product + begins))
        return float(np.nanmax(apart / allowed)) if np.isfinite(found).all() else float("inf")


def errors(case: Case, tmp_path, epilogues=EPILOGUES, **env) -> dict[str, float]:
    np.savez(tmp_path / "in.npz", **case.work)
    arguments = (json.dumps([case.name]), json.dumps(epilogues), str(tmp_path / "out.npz"))
    run(PROGRAM, environment(**env), str(tmp_path / "in.npz"), *arguments)
    with np.load(tmp_path / "out.npz") as f:
        return {how: case.error(f[f"{case.name} {how}"], *epilogues[how][:2]) for how in epilogues}


@pytest.mark.parametrize("name", SOME + OTHERS if FULL else SOME)
def test_values(name, tmp_path):
    """With every epilogue, whole and in pieces of two rows."""
    for kib in (None, "2"):
        found = errors(Case(name), tmp_path, IKQ_CUDA_BLAS_KIB=kib)
        assert max(found.values()) <= 1, found


@pytest.mark.parametrize("planted", ["short", "now", "fresh"])
def test_planted_errors_of_the_library_are_seen(planted, tmp_path):
    """An element left out; a product before its operands are there; sums that begin with nothing."""
    found = errors(Case("q4_k"), tmp_path, IKQ_STANDIN_CUBLAS=planted)
    wrong = {how for how, error in found.items() if error > 1}
    assert wrong == (set(EPILOGUES) - {"plain"} if planted == "fresh" else set(EPILOGUES)), found


@pytest.mark.parametrize(
    ("text", "planted"),
    [
        ("f2bf(float(x[i]) * ds[i >> 5].x)", "uint16_t(__float_as_int(float(x[i]) * ds[i >> 5].x) >> 16)"),
        ("bias[row] + (residual", "bias[0] + (residual"),
    ],
)
def test_planted_errors_of_kernels_are_seen(text, planted, tmp_path):
    shutil.copytree(CUDA, tmp_path / "cuda", ignore=shutil.ignore_patterns("standin"))
    source = tmp_path / "cuda/blas.cu"
    assert text in source.read_text()
    source.write_text(source.read_text().replace(text, planted))
    env = {"IKQ_CUDA_SRC": str(tmp_path / "cuda"), "IKQ_CACHE_DIR": str(tmp_path / "cache")}
    found = errors(Case("q8_0"), tmp_path, **env)
    assert found["both in place"] > 10, found


def test_bf16_is_no_worse_than_codes():
    """Of columns: its error is at most that of codes of 8 bits, which tiles multiply, and a third of it on average."""
    x = np.random.default_rng(3).normal(size=(64, 4096)).astype(np.float32)
    blocks = np.abs(x.reshape(64, -1, 32)).max(-1, keepdims=True)
    steps = np.broadcast_to(blocks / 254, (64, 128, 32)).reshape(x.shape)
    rounded = np.abs(bf16(x).astype(np.float64) - x)
    assert (rounded <= steps * 1.0001).all()
    assert np.sqrt(np.square(rounded).mean()) < np.sqrt(np.square(steps).mean() / 3) / 3


# The command


BENCH = ("bench", "cuda", "--columns", "70,65", "--shapes", "64x256,32x512", "-r", "1")


def test_a_table_is_written(tmp_path):
    file = tmp_path / "cublas.json"
    done = ikq_command(environment(), *BENCH, "--types", "q8_0,bf16", "-o", file)
    assert done.returncode == 0, done.stderr
    assert "stand-in for a GPU: these times mean nothing" in done.stdout
    assert f"IKQ_CUDA_BLAS={file}" in done.stdout
    table = json.loads(file.read_text())
    assert (table["device"], table["compute_capability"], table["n_multiprocessors"]) == (
        "ikq emulator 0",
        "9.0",
        4,
    )
    assert (table["cublas"], table["smallest"], set(table["from"])) == ("13.1.2", [32, 256], {"Q8_0", "BF16"})
    rows = [(m["type"], m["n_rows"], m["n"], m["n_columns"]) for m in table["measured"]]
    shapes = [(64, 256), (32, 512)]
    assert rows == [(t, *s, n) for t in ("Q8_0", "BF16") for s in shapes for n in (65, 70)]
    assert all(m["tiles"] > 0 and m["cublas"] > 0 for m in table["measured"])
    for t, n in table["from"].items():
        assert n == columns_from(Measured(**m) for m in table["measured"] if m["type"] == t)


def test_where_it_is_quicker():
    def found(*quicker: list[bool]) -> int | None:
        """A row for each shape, a number for each number of columns: 10, 20, ..."""
        rows = [(i, 10 * (k + 1), q) for i, row in enumerate(quicker) for k, q in enumerate(row)]
        return columns_from(Measured("Q4_K", i, 1, n, 2.0, 1.0 if q else 2.0) for i, n, q in rows)

    assert found([True, True, True]) == 10
    assert found([True, False, True], [True, True, True]) == 30
    assert found([False, True, True], [False, False, True]) == 30
    assert found([True, True, False]) is None
    assert found() is None


@pytest.mark.parametrize(
    ("env", "arguments", "words"),
    [
        ({"IKQ_CUBLAS": "/nowhere"}, (), "no cuBLAS of CUDA 13 or older: `pip install ikq[cublas]`"),
        ({"IKQ_STANDIN_CUBLAS_VERSION": "14.0.0"}, (), "needs a driver of CUDA 14"),
        ({"IKQ_STANDIN_SM": "75"}, (), "need compute capability 8.0"),
        ({"IKQ_CUDA": "0"}, (), "no GPU is usable: GPUs are switched off"),
        ({}, ("-dev", "CUDA4"), "there is no GPU CUDA4; there are CUDA0"),
        ({}, ("--columns", "64"), "in steps of 65 tokens and more only"),
        ({}, ("--shapes", "64"), "expected rows and elements"),
        ({}, ("--types", "f16"), "F16"),
    ],
)
def test_what_is_missing_is_told(env, arguments, words):
    done = ikq_command(environment(**env), *BENCH, "--types", "q8_0", *arguments)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert words in done.stderr


def test_a_library_that_is_not_cublas(tmp_path):
    (tmp_path / "libcublas.so.13").write_text("no library")
    done = ikq_command(environment(IKQ_CUBLAS=str(tmp_path)), *BENCH, "--types", "q8_0")
    assert done.returncode == 1
    assert f"found, but not usable: {tmp_path}/libcublas.so.13: " in done.stderr


def test_a_real_cublas_is_opened():
    """Needs NVIDIA's package, but no GPU: all functions are found, and what it says of a driver that is none is told."""
    there = [p for p in ikq.cuda.places_of_cublas() if list(p.glob("libcublas.so.*"))]
    if not there:
        pytest.skip("cuBLAS is not installed (`pip install ikq[cublas]`)")
    done = ikq_command(environment(IKQ_CUBLAS=str(there[0])), *BENCH, "--types", "q8_0")
    assert done.returncode == 1
    assert f"cuBLAS at {there[0]}/libcublas.so" in done.stderr
    assert "not initialized" in done.stderr
