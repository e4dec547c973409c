"""What documents say of the kernels' machine code is what the tools count in it."""

import importlib
import subprocess
import sys

import pytest
from budgets import COMPILER, ROOT, near, needs_machine_code, sass_budget, table
from emulator import FULL
from nvrtc import version

import ikq

mma_budget = importlib.import_module("mma_budget")
tail_model = importlib.import_module("tail_model")

MMA = {row["type"]: row for row in table("cuda_mma.md")}
# scales of 32 elements, with mins, and of 16; codes by bytes, and by a table
SOME = ("iq4_ks", "q4_k", "iq4_k", "mxfp4")
FOUR_BITS = [name for name in MMA if 4.0 <= ikq.QuantType(name).bpw <= 4.5]
# what takes more than two multiply-adds for a result of 32 products
WITH_MINS, OF_16 = {"q4_k"}, {"iq4_k", "nvfp4"}


def widest(row):
    return 64 if row["tile 128"] == "-" else 128


@needs_machine_code
@pytest.mark.parametrize("name", list(MMA) if FULL else SOME)
def test_instructions_of_a_tensor_instruction(name):
    """The table of matrix products."""
    row = MMA[name]
    for columns in (64, 128)[: 1 if widest(row) == 64 else 2]:
        step, multiplying, _ = mma_budget.per_mma(name, 86, columns)
        assert step == near(row[f"tile {columns}"], 1), columns
    assert multiplying == near(row["of them multiplying"], 1)
    assert min(1.0, 16 / step) == near(row["share, sm_86"], 2)
    for architecture, clocks in ((80, 8), (90, 4)) if FULL else ():
        step, multiplying, _ = mma_budget.per_mma(name, architecture, widest(row))
        # the table gives them by the instructions of sm_86, from which these differ by a few
        assert clocks / step == pytest.approx(float(row[f"share, sm_{architecture}"]), rel=0.1)
        assert clocks / multiplying == pytest.approx(float(row[f"multiplying, sm_{architecture}"]), rel=0.1)


@needs_machine_code
def test_types_without_tiles_of_128():
    assert mma_budget.per_mma("iq4_k", 86, 128) is None


def test_four_bits():
    assert set(FOUR_BITS) == {*SOME, "iq4_kss", "iq4_kt", "iq4_xs", "q4_0", "iq4_nl", "nvfp4"}


@needs_machine_code
@pytest.mark.parametrize("name", FOUR_BITS if FULL else SOME)
@pytest.mark.parametrize("architecture", [80, 86, 90, *([89] if FULL else [])])
def test_slots_of_the_inner_loop(name, architecture):
    """At least 0.6 are those of tensor instructions on sm_86 and 89, whatever the type; on sm_80 if scales are of 32 elements and there
    are no mins."""
    found = mma_budget.per_mma(name, architecture, widest(MMA[name]))
    share = mma_budget.CLOCKS[architecture] / found[1]
    if architecture in (86, 89) or (architecture == 80 and name not in WITH_MINS | OF_16):
        assert share >= 0.6
    elif architecture == 80:
        assert share == near(0.45 if name in WITH_MINS else 0.33, 2)
    else:
        assert share == near(0.23 if name in WITH_MINS else 0.16 if name in OF_16 else 0.31, 2)


SASS = {row["type"]: row for row in table("cuda_sass.md")}


@needs_machine_code
@pytest.mark.parametrize("name", list(SASS) if FULL else ["q4_0", "iq4_kt", "iq4_ks", "q6_k"])
def test_instructions_of_a_weight(name):
    """The table of matrix-vector products, and what is said of types of four bits and more."""
    count, registers, classes = sass_budget.per_weight(name, 90, 1)
    row = SASS[name]
    assert count == near(row["instructions per weight"], 2)
    assert sum(classes.values()) == pytest.approx(32 * count)
    budget = sass_budget.H200_PER_BIT * ikq.QuantType(name).bpw
    assert budget == pytest.approx(float(row["budget"]), abs=0.0051)
    over = count > sass_budget.SHARE * budget
    assert row["share"].endswith(" over") == over
    if ikq.QuantType(name).bpw >= 4:
        assert over == (name == "iq4_kt")
    if version() == COMPILER:
        assert registers == int(row["registers"])


@needs_machine_code
@pytest.mark.parametrize("name", tail_model.INSTRUCTIONS if FULL else ["iq4_ks"])
def test_clocks_of_the_model_of_waves(name):
    for tile, instructions in tail_model.INSTRUCTIONS[name].items():
        assert mma_budget.per_mma(name, 86, tile)[0] == near(instructions, 1)
    assert tail_model.BITS[name] == ikq.QuantType(name).bpw


@pytest.mark.parametrize("number", [0, 1])
def test_the_model_of_waves_prints_its_document(number):
    more = [[], ["--card", "H200", "--card", "RTX 3090", "--products", "512"]][number]
    command = [sys.executable, str(ROOT / "tools/tail_model.py"), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = (ROOT / "benches/results/cuda_tail.md").read_text()
    assert done.stdout in document
    assert len(table("cuda_tail.md", number)) == len(done.stdout.splitlines()) - 2
