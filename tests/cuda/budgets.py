"""Tools that count instructions in machine code, and the tables of `benches/results` that they printed."""

import importlib
import sys
from pathlib import Path

import pytest
from nvrtc import library, version

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))
sass_budget = importlib.import_module("sass_budget")

needs_machine_code = pytest.mark.skipif(
    library() is None or sass_budget.found_nvdisasm() is None,
    reason="NVRTC or nvdisasm is not installed (pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm)",
)
# figures of documents are of this compiler; others order and choose instructions in another way
COMPILER = (13, 0)


def near(told: str | float, digits: int):
    """What a document says in so many digits behind the point."""
    share = 0.0 if version() == COMPILER else 0.15
    # a half in the last place, which binary fractions may exceed by a little
    return pytest.approx(float(told), rel=share, abs=0.51 * 10.0**-digits)


def table(file: str, number: int = 0) -> list[dict[str, str]]:
    """A table of a document, by the names of its columns."""
    tables: list[list[list[str]]] = []
    before = ""
    for line in (ROOT / "benches/results" / file).read_text().splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    names, _, *rows = tables[number]
    return [dict(zip(names, row, strict=True)) for row in rows]
