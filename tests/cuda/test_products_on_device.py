"""Weights uploaded, brought into device form, decoded and multiplied through the driver, against the CPU.

Everything is the way to a GPU: the planner, NVRTC's calls, the cache of cubins, arenas, launches, graphs. The driver and
the compiler are the stand-ins.
"""

import ctypes
import json

import numpy as np
import pytest
from emulator import FULL, Module, build, needs_gxx
from standin import environment, run
from weights import TYPES, random_rows

import ikq

# of each family, with row headers, mins, halves, and rows that end inside a unit of 256
SOME = [
    "q4_k",
    "q6_k",
    "q8_0",
    "q4_0",
    "iq4_ks",
    "iq2_xxs",
    "iq3_k",
    "mxfp4",
    "iq2_kt",
    "i2_s",
    "f16",
    "f32",
    "bf16",
]
OTHERS = [name for name in TYPES if name not in SOME]

PROGRAM = """
import json, sys
import numpy as np
from ikq import _ikq, cuda
import ikq
work = np.load(sys.argv[1])
out = {}
for name in json.loads(sys.argv[2]):
    t, data, x = ikq.QuantType(name), work[name], work["x_" + name]
    n_rows, n = int(work["rows_" + name]), x.shape[1]
    places = cuda.places_of_nvrtc()
    if t.family != "float":
        out["w_" + name] = _ikq.cuda_dequantize(places, 0, t.id, data, n_rows, n)
    for replays in (0, 2):
        out[f"y{replays}_" + name] = _ikq.cuda_product(places, 0, t.id, data, n_rows, x, replays)
np.savez(sys.argv[3], **out)
"""


def matrix(name: str, n_rows: int, n: int, rng) -> np.ndarray:
    if ikq.QuantType(name).family != "float":
        return random_rows(name, n_rows, n, rng)
    w = rng.normal(size=(n_rows, n)).astype(np.float32)
    halves = {"f32": w, "f16": w.astype(np.float16), "bf16": (w.view(np.uint32) >> 16).astype(np.uint16)}
    return np.ascontiguousarray(halves[name]).view(np.uint8).reshape(-1)


def quantized(x: np.ndarray) -> np.ndarray:
    """Columns as products read them: codes of 8 bits, a scale per 32."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    codes = np.rint(blocks * (np.float32(127) / most))
    return (codes.astype(np.float64) * (most / np.float32(127))).reshape(x.shape)


def computed(names, work, env, tmp_path):
    np.savez(tmp_path / "in.npz", **work)
    run(PROGRAM, env, str(tmp_path / "in.npz"), json.dumps(names), str(tmp_path / "out.npz"))
    return np.load(tmp_path / "out.npz")


@needs_gxx
@pytest.mark.parametrize("name", SOME + OTHERS if FULL else SOME)
def test_decoding_and_products(name, tmp_path):
    rng = np.random.default_rng(5)
    # ten columns: a launch of eight and one of two
    n_rows, n, n_columns = 13, 512 if name == "i2_s" else 768, 10
    x = rng.normal(size=(n_columns, n)).astype(np.float32)
    data = matrix(name, n_rows, n, rng)
    out = computed([name], {name: data, "x_" + name: x, "rows_" + name: n_rows}, environment(), tmp_path)
    w = ikq.dequantize(data, name, n).reshape(n_rows, n)
    is_float = ikq.QuantType(name).family == "float"
    if not is_float:
        assert np.array_equal(out["w_" + name], w), "decoding is exact"
    # the CPU's products apply a factor that decoding does not
    w = w.astype(np.float64) * {"iq2_kt": 1.05, "iq3_kt": 1.01}.get(name, 1)
    exact = (x if is_float else quantized(x)).astype(np.float64) @ w.T
    y = out["y0_" + name]
    # float32 sums of n terms, in any order; mins add as much again
    bound = 2.0**-24 * (n // 32 + 24) * (np.abs(x) @ (np.abs(w) + 4 * np.abs(w).max(1, keepdims=True)).T)
    assert (np.abs(y - exact) <= bound + 1e-30).all(), np.abs(y - exact).max()
    assert np.array_equal(y, out["y2_" + name]), "a graph gives the same bits"
    cpu = ikq._ikq.product(ikq.QuantType(name).id, data, n_rows, x, "auto", None)
    # both round columns to 8 bits, the CPU's scale may differ: half a step for each, added at random
    steps = np.sqrt(
        np.square(np.repeat(np.abs(x.reshape(n_columns, -1, 32)).max(-1), 32, -1) / 127) @ np.square(w.T)
    )
    assert (np.abs(y - cpu) <= (bound if is_float else bound + 4 * steps)).all()


@needs_gxx
def test_interleaved_types_are_taken_apart(tmp_path):
    rng = np.random.default_rng(6)
    data = random_rows("q4_k", 8, 512, rng)
    x = rng.normal(size=(1, 512)).astype(np.float32)
    work = {}
    for name, rows in (("q4_k", data), ("q4_k_r4", ikq.repack(data, "q4_k", "q4_k_r4", 512))):
        work |= {name: np.asarray(rows).reshape(-1), "x_" + name: x, "rows_" + name: 8}
    out = computed(["q4_k", "q4_k_r4"], work, environment(), tmp_path)
    assert np.array_equal(out["y0_q4_k"], out["y0_q4_k_r4"])
    assert np.array_equal(out["w_q4_k"], out["w_q4_k_r4"])


@needs_gxx
def test_memory_that_is_not_there_is_told(tmp_path):
    code = """
import numpy as np, ikq
from ikq import _ikq, cuda
try:
    _ikq.cuda_product(cuda.places_of_nvrtc(), 0, 0, np.zeros(4 * 512 * 512, np.uint8), 512, np.zeros((1, 512), np.float32), 0)
except ikq.DeviceError as e:
    print(e)
try:
    _ikq.cuda_product(cuda.places_of_nvrtc(), 3, 0, np.zeros(16, np.uint8), 1, np.zeros((1, 4), np.float32), 0)
except ikq.DeviceError as e:
    print(e)
"""
    memory, device = run(code, environment(IKQ_STANDIN_MEMORY="1000000")).splitlines()
    assert "CUDA0: 10" in memory
    assert memory.endswith("and 1000000 are free")
    assert device == "there is no device CUDA3; there are CPU, CUDA0"


@needs_gxx
def test_a_kernel_that_does_not_compile_is_told(tmp_path):
    (tmp_path / "mmv.cu").write_text('#include "nothing.cuh"\n')
    code = """
import numpy as np, ikq
from ikq import _ikq, cuda
try:
    _ikq.cuda_product(cuda.places_of_nvrtc(), 0, 0, np.zeros(16, np.uint8), 1, np.zeros((1, 4), np.float32), 0)
except ikq.DeviceError as e:
    print(e)
"""
    text = run(code, environment(tmp_path / "cache", IKQ_CUDA_SRC=str(tmp_path)))
    assert text.startswith("NVRTC does not compile mmv.cu for sm_90")
    assert "nothing.cuh" in text


def test_plans():
    """One place says how kernels are launched; what does not fit is an error."""
    shape = {
        "type": ikq.QuantType("q4_k").id,
        "n_rows": 10,
        "n": 256,
        "n_columns": 3,
        "stride": 12,
        "bias": True,
        "residual": False,
    }
    plan = ikq._ikq.cuda_plan("products", shape)
    assert (plan["file"], plan["defines"], plan["kernel"]) == (
        "mmv.cu",
        [("IKQ_TYPE", "q4_k")],
        "mmv_q4_k_c4",
    )
    assert (plan["grid"], plan["block"], plan["shared_bytes"]) == ([3, 1, 1], [128, 1, 1], 0)
    arguments = dict(plan["arguments"])
    assert arguments["bias"] is None
    assert (arguments["residual"], arguments["y_stride"]) == (0, 12)
    with pytest.raises(ikq.IkqError, match="9 columns"):
        ikq._ikq.cuda_plan("products", shape | {"n_columns": 9})
    with pytest.raises(ValueError, match="no kernel"):
        ikq._ikq.cuda_plan("nothing", {})


@needs_gxx
def test_plans_have_the_arguments_of_kernels():
    """Names are for people; number and sizes must be those of the compiled kernel."""
    ty = ikq.QuantType("q4_k").id
    shapes = {
        "repack": {"type": ty, "n_rows": 4, "n": 256},
        "dequantize": {"type": ty, "to": "f16", "n_rows": 4, "n": 256, "chosen": True},
        "quantize": {"n": 64},
        "products": {
            "type": ty,
            "n_rows": 4,
            "n": 256,
            "n_columns": 1,
            "stride": 4,
            "bias": False,
            "residual": False,
        },
    }
    products = shapes["products"]
    experts = {"n_pairs": 6, "k": 2, "n_experts": 3}
    shapes["mmq"] = products | experts | {"tile": 32}
    up_gate = products | {
        "up": ty,
        "gate": ty,
        "act": "silu",
        "bias_up": False,
        "bias_gate": True,
        "codes": False,
    }
    shapes["mmq_upgate"] = up_gate | experts | {"tile": 64}
    shapes["to_bf16"] = {"n": 64, "codes": True}
    shapes["begin_sums"] = {"n_rows": 4, "n_columns": 2, "residual": True}
    shapes["sort"] = {"n_pairs": 6, "n_experts": 3}
    shapes["sum_slots"] = {"n_rows": 4, "n_tokens": 3, "k": 2, "residual": True}
    for kernel, shape in shapes.items():
        plan = ikq._ikq.cuda_plan(kernel, shape)
        defines = "".join(f"#define {name} {value}\n" for name, value in plan["defines"])
        text = f'{defines}#include "{plan["file"]}"\n'
        library = Module(build(text)).library
        found = library.ikq_emu_find(plan["kernel"].encode())
        assert found, plan["kernel"]
        assert library.ikq_emu_n_args(found) == len(plan["arguments"]), kernel
        threads = int(np.prod(plan["block"]))
        library.ikq_emu_max_threads.argtypes = [ctypes.c_void_p]
        assert library.ikq_emu_max_threads(found) >= threads
