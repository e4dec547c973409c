"""What `gpu_check.py` measures of a card, and what it knows of cards by name."""

import importlib
import json

import pytest
from budgets import needs_machine_code, sass_budget
from emulator import needs_gxx
from nvrtc import ARCHITECTURES, compile_
from standin import environment
from test_gpu_check import CHECK, check, planted

gpu_cards = importlib.import_module("gpu_cards")
gpu_peaks = importlib.import_module("gpu_peaks")
gpu_check = importlib.import_module("gpu_check")

SOURCE = str(CHECK.parent / "gpu_peaks.cu")


@needs_machine_code
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loops_have_nothing_but_products(architecture):
    """As many tensor instructions as the operations are reckoned from, and hardly anything else."""
    kernels, cubin = compile_((SOURCE, ()), architecture)
    assert {k.name for k in kernels} == {"peak_s8", "peak_f16", "peak_copy", "peak_read"}
    assert all((k.stack, k.spills) == (0, 0) for k in kernels)
    for name, instruction, smaller in (("peak_s8", "IMMA", 4), ("peak_f16", "HMMA", 2)):
        found = sass_budget.loops(sass_budget.machine_code(cubin, name))
        (loop,) = (loop for loop in found if any(instruction in line for line in loop))
        products = gpu_peaks.CHAINS * gpu_peaks.REPEATS * (smaller if architecture < 80 else 1)
        count = sum(instruction in line for line in loop)
        assert count == products
        others = [line for line in loop if instruction not in line and not line.startswith("NOP")]
        assert len(others) <= 0.2 * count, others


@needs_gxx
def test_peaks_on_the_stand_in(tmp_path):
    done, rows = check(environment(), tmp_path / "out.json", "--only", "peaks")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["name"] for row in rows] == ["peak int8 mma", "peak f16 mma", "peak copy", "peak read"]
    assert all("no data sheet is known here" in row["why"] for row in rows)
    assert set(gpu_check.measured_in(rows)) == set(gpu_cards.Sheet._fields)


@needs_gxx
def test_wrong_products_are_no_measure(tmp_path):
    """Sums that forget what was there before."""
    env = planted(tmp_path, environment(), "ikq_dev.cuh", "{ emu::mma_s8<32>(d, a, b, c); }", "{ const int none[4] = {}; emu::mma_s8<32>(d, a, b, none); }")  # fmt: skip
    done, rows = check(env, tmp_path / "out.json", "--only", "peaks")
    assert done.returncode == 1
    assert [row["name"] for row in rows if not row["ok"]] == ["peak int8 mma"]
    assert set(gpu_check.measured_in(rows)) == {"f16", "bandwidth"}


@needs_gxx
def test_bounds_are_what_was_measured(tmp_path):
    """Groups with bounds have them measured first, and it is said that this card is not known."""
    done, rows = check(environment(), tmp_path / "out.json", "--only", "timings")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    product, copy = found["product Q8_0 64x512"], found["peak copy"]
    assert product["ceiling"] == "measured"
    assert product["bound_us"] == pytest.approx(64 * 512 * 34 / 32 / copy["bandwidth"] * 1e6)
    assert not any("sheet_us" in row for row in rows)
    lines = done.stdout.splitlines()
    assert "Bounds: what this card's own kernels reached (group peaks)." in lines
    assert any(line.startswith("No data sheet of this card is known here") for line in lines)


@pytest.mark.parametrize(
    ("name", "int8"),
    [
        ("NVIDIA H200", 1979e12),
        ("NVIDIA H100 80GB HBM3", 1979e12),
        ("NVIDIA H100 PCIe", 1513e12),
        ("NVIDIA GeForce RTX 4090", 660e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB", 624e12),
    ],
)
def test_names_of_cards(name, int8, monkeypatch):
    devices = [{"name": name, "usable": True}]
    monkeypatch.setattr(gpu_cards.cuda, "require", lambda memory: {"devices": devices})
    monkeypatch.delenv(gpu_cards.MEASURED, raising=False)
    assert gpu_cards.sheet("int8") == int8
    found = gpu_cards.bound("int8", 1e12, 0.2)
    if int8 is None:
        assert found == {}
        (said, of_sheet) = gpu_check.ceilings([{"group": "timings"}])
        assert said.startswith("Neither was anything measured")
        assert of_sheet.startswith("No data sheet")
    else:
        in_us = pytest.approx(1e18 / int8)
        assert found == {"bound_us": in_us, "sheet_us": in_us, "target": 0.2, "ceiling": "data sheet"}
        (said, _) = gpu_check.ceilings([{"group": "timings"} | found])
        assert said.startswith("Bounds: the data sheet's")
    monkeypatch.setenv(gpu_cards.MEASURED, json.dumps({"int8": 500e12}))
    found = gpu_cards.bound("int8", 1e12, 0.2)
    assert (found["ceiling"], found["bound_us"]) == ("measured", 2000)
    assert ("sheet_us" in found) == (int8 is not None)
