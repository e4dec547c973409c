"""NVRTC accepts every kernel for every architecture, without spilled registers and within a number of them."""

import re

import pytest
from emulator import FULL
from nvrtc import ARCHITECTURES, FLOATS, compile_, kernels_of, library, specialisations
from weights import TOGETHER

pytestmark = pytest.mark.skipif(
    library() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)"
)

# the most registers of a thread: what lets as many blocks run side by side as a kernel's speed needs
CAPS = {
    "bf16_of": 32, "begin_sums": 32, "quantize_act": 32, "glu_act": 32, "add_to": 32, "sigmoid_of": 32, "router": 64, "moe_sort": 40,
    # three blocks of a multiprocessor, and two
    "attend_tiles_f16_f16": 168, "attend_tiles": 255,
    "rms_norm": 40, "rope_table": 64, "cap_logits": 32, "argmax": 32, "top_k": 32, "heads": 80, "attend": 128, "repack": 80, "dequant": 128, "down": 128,
    "delta_chunks": 160, "delta": 96, "turn_rows": 40,
    "mmq": 128, "mmf": 168, "sum_slots": 64, "rows_of_bands": 64,
}  # fmt: skip
# Products hold sums and columns: the more columns, the more. A multiprocessor has 65536 registers, so these let five,
# four, four and two blocks of `mmv` run side by side, and two, two, one and one of `upgate`, which are twice as large.
# With one column, that is 20 and 16 warps, and each lane has two loads of weights under way: what memory needs.
MMV = {"c1": 96, "c2": 128, "c4": 128, "c8": 255}
UPGATE = {"c1": 128, "c2": 128, "c4": 255, "c8": 255}
# Where rows are computed together, a lane has eight loads of sixteen bytes under way and eight more in registers: two blocks
# of `mmv` and `down`, and one of `upgate`.
OF_ROWS_TOGETHER = 255


def together(name: str) -> bool:
    """Whether a kernel of products computes rows of a single column together."""
    types = f"({'|'.join(TOGETHER)})"
    return re.fullmatch(f"mmv_{types}_c1|down_{types}|upgate_{types}_{types}_c1", name) is not None


def cap(name: str) -> int:
    if name.startswith(("mmv", "upgate", "down")) and name.split("_")[1] in FLOATS:
        return 200  # their loops are unrolled for more loads at a time
    if name.startswith(("mmv", "upgate", "down")) and together(name):
        return OF_ROWS_TOGETHER
    if name.startswith(("mmv", "upgate")):
        return (MMV if name.startswith("mmv") else UPGATE)[name.rsplit("_", 1)[1]]
    return next(n for start, n in CAPS.items() if name.startswith(start))


def check(special, architecture):
    kernels, cubin = compile_(special, architecture)
    assert kernels
    assert cubin[:4] == b"\x7fELF"
    for k in kernels:
        assert (k.stack, k.spills) == (0, 0), (k, architecture)
        assert k.registers <= cap(k.name), (k, architecture)


QUICK = [
    ("mmv.cu", ("IKQ_TYPE=iq4_ks",)),
    ("upgate.cu", ("IKQ_TYPE=q4_k", "IKQ_GATE=q6_k")),
    ("attention.cu", ("IKQ_TYPE=f16", "IKQ_VALUES=q8_0")),
    ("attention_tiles.cu", ("IKQ_TYPE=q4_0", "IKQ_VALUES=f16")),
    ("norm.cu", ()),
    ("delta.cu", ()),
    ("turn.cu", ()),
    ("mmq.cu", ("IKQ_TYPE=q4_k", "IKQ_TILE=64")),
]


@pytest.mark.parametrize(
    ("special", "architecture"), [(s, a) for s in QUICK for a in (75, 90)][:: 1 if FULL else 3]
)
def test_some_kernels_compile(special, architecture):
    check(special, architecture)


@pytest.mark.skipif(not FULL, reason="a part of `make test-cuda`")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles(architecture):
    for special in specialisations():
        check(special, architecture)


def test_the_log_is_understood():
    log = (
        "ptxas info    : Compiling entry function 'a' for 'sm_90'\nptxas info    : Function properties for a\n"
        "    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 31 registers, used 0 barriers\n"
    )
    (kernel,) = kernels_of(log)
    assert (kernel.name, kernel.stack, kernel.spills, kernel.registers) == ("a", 8, 16, 31)
