"""Ways through loops of machine code, and what the model of each kernel's bounds says by them."""

import importlib

import pytest
from budgets import near, needs_machine_code, table
from emulator import FULL

kernel_model = importlib.import_module("kernel_model")
sass_flow = importlib.import_module("sass_flow")

LOOP = """
    MOV R1, R2
.L_x_0:
    ISETP.GE.AND P0, PT, R1, R4, PT
    @P0 BRA `(.L_x_1)
    LDG.E.128 R4, [R2]
    LDG.E.128 R8, [R2+0x10]
    BRA `(.L_x_3)
.L_x_1:
    MOV R4, RZ
.L_x_3:
    HMMA.16816.F32 R12, R4, R8, R12
    @P3 BRA `(.L_x_4)
.L_x_2:
    FFMA R1, R2, R3, R1
    @P1 BRA `(.L_x_2)
    NOP
    @!P2 BRA `(.L_x_0)
    EXIT
.L_x_4:
    FMUL R1, R1, R2
    BRA `(.L_x_2)
""".strip().splitlines()
LOOP = [line.strip() for line in LOOP]


@pytest.mark.parametrize(
    ("does", "count"), [("HMMA", 1 + 1 + 1 + 2 + 6 + 1), ("HMMA|LDG", 1 + 1 + 3 + 2 + 6 + 1)]
)
def test_a_way_does_most_and_is_short(does, count):
    """Past what is not wanted, with the inner loop's turns, without NOPs and what stands behind the end."""
    way = sass_flow.turn_of(LOOP, does, lambda turn: 3)
    assert way.count() == count
    assert way.count("FFMA") == 3
    assert way.count("FMUL") == 0
    assert way.classes()["HMMA"] == 1


def test_loops_are_whole():
    """What stands behind the end belongs to the loop to which it goes back."""
    blocks = sass_flow.blocks_of(LOOP)
    inner, outer = sass_flow.loops_of(blocks)
    assert [x for i in inner.body for x in blocks[i].issued] == ["FFMA R1, R2, R3, R1", "@P1 BRA `(.L_x_2)"]
    issued = [x for i in outer.body for x in blocks[i].issued]
    assert len(issued) == sum(not line.endswith(":") for line in LOOP) - 2  # all but the first and EXIT


ROWS = table("cuda_kernels.md")
CARD_NAMES = {name: architecture for architecture, (name, _) in kernel_model.CARDS.items()}
# the order of the document
ORDER = [(kernel, architecture) for kernel in kernel_model.KERNELS for architecture in kernel_model.CARDS]
QUICK = [
    ("mmq", 86),
    ("mmq_upgate", 86),
    ("mmf_bf16", 90),
    ("attend_tiles_prompt_f16", 80),
    ("attend_tiles_token_f16", 90),
    ("attend_token_f16", 90),
]


def test_the_document_has_all():
    assert [CARD_NAMES[row["card"]] for row in ROWS] == [architecture for _, architecture in ORDER]
    for row in ROWS:
        times = {what: row[f"{what}, us"] for what in ("memory", "tensor", "issue")}
        times = {what: float(us) for what, us in times.items() if us != "-"}
        assert times[row["bound"]] == max(times.values())


@needs_machine_code
@pytest.mark.parametrize(("kernel", "architecture"), ORDER if FULL else QUICK)
def test_the_table(kernel, architecture):
    row = ROWS[ORDER.index((kernel, architecture))]
    found = kernel_model.KERNELS[kernel](architecture, 512, 4096, "iq4_ks")
    assert (row["kernel"], row["launch"]) == (found.kernel, found.what)
    assert int(row["tiles"]) == found.n_tiles
    assert found.tile_bytes / 1024 == pytest.approx(float(row["KiB of a tile"]), abs=0.51)
    assert found.each == near(row["instructions per mma"], 1)
    if found.share is not None:
        assert found.tile_mma == float(row["mma of a tile"])
        assert found.share == near(row["share"], 2)
    assert row["bound"] == found.bound


@needs_machine_code
def test_operations_of_a_launch():
    """All tiles' tensor instructions are the operations of the product, and of scores and sums of values."""
    found = kernel_model.KERNELS["mmq"](86, 512, 4096, "iq4_ks")
    assert found.n_tiles * found.tile_mma * 16 * 8 * 32 == 4096 * 2048 * 512
    found = kernel_model.KERNELS["mmf_bf16"](86, 512, 4096, "iq4_ks")
    assert found.n_tiles * found.tile_mma * 16 * 8 * 8 == 2 * 4096 * 2048 * 512
    # with one more column for the sum of weights
    found = kernel_model.KERNELS["attend_tiles_prompt_f16"](80, 512, 4096, "iq4_ks")
    seen, slots = 4096 + 256, 4 * 108 * 1.41e9
    n_mma = found.us["tensor"] * 1e-6 * slots / 8
    assert n_mma * 16 * 8 * 16 == pytest.approx(512 * 32 * seen * (128 + 128 + 8))
