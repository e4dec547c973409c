"""The committed plots are what the scripts make of the committed figures, byte for byte."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHES = Path(__file__).parent.parent / "benches"
RESULTS = BENCHES / "results"
# for each plot: what makes it, and of what
PLOTS = {
    "size_divergence.svg": (
        "size_plot.py",
        ["quality_table.jsonl", "recipe_quality.jsonl", "error_feedback.jsonl"],
    ),
    "type_speed.svg": ("speed_plot.py", sorted(p.name for p in RESULTS.glob("type_speed_*.json"))),
}


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_of_its_figures(name: str, tmp_path: Path) -> None:
    script, figures = PLOTS[name]
    image = tmp_path / name
    words = [sys.executable, str(BENCHES / script), *(str(RESULTS / f) for f in figures), str(image)]
    subprocess.run(words, check=True)
    assert image.read_bytes() == (RESULTS / name).read_bytes()
    ElementTree.parse(image)


def test_markers_stand_where_their_figures_are() -> None:
    """Read back from the drawing: equal factors of divergence are equally far apart, and no marker leaves the panel."""
    drawing = (RESULTS / "size_divergence.svg").read_text()
    found = re.findall(r'cy="([\d.]+)" r="3.5" class="[^"]*"><title>[^<]*: (0\.\d+) at', drawing)
    points = {float(value): float(y) for y, value in found}
    high, low = max(points), min(points)
    assert 40 <= points[high] < points[low] <= 466
    # 0.3 at 40, 0.0003 at 466: three powers of ten; places are rounded to 0.05, values to 0.000005
    for value, y in points.items():
        slope = 426 / 6.907755
        assert y == pytest.approx(40 + slope * math.log(0.3 / value), abs=0.06 + slope * 0.000005 / value)


def test_figures_of_recipes_are_those_of_the_table() -> None:
    table = (RESULTS / "recipe_quality.md").read_text()
    for row in map(json.loads, (RESULTS / "recipe_quality.jsonl").read_text().splitlines()):
        start = f"| {row['size_of']} | {row['bytes']} | {row['mix_kld']:.5f} | {row['recipe_kld']:.5f} |"
        assert start in table


def test_every_type_and_set_is_drawn() -> None:
    drawing = (RESULTS / "type_speed.svg").read_text()
    for figures in RESULTS.glob("type_speed_*.json"):
        isa = figures.stem.removeprefix("type_speed_")
        for row in json.loads(figures.read_text()):
            if row["n"] in (1, 512):
                title = f"<title>{row['type']}, {isa}, n = {row['n']}: {row['gmacs']:g}</title>"
                assert drawing.count(title) == 1
