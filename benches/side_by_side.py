"""What benches beside ik_llama.cpp share: its settings, the machine's name, models of random weights, bounds."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from synthetic_models import SHAPES

SETTINGS = {
    "default": ["-fa", "1"],
    "huge pages": ["-fa", "1", "-thp", "1", "-mmp", "0"],
    "repacked": ["-fa", "1", "-rtr", "1"],
}
"""Ways to run ik_llama.cpp of which the best one counts, in the options of its llama-bench."""


def machine() -> str:
    """The processor's name, what it is called by its maker, and its cores."""
    facts = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    first = {key.strip(): value.strip() for key, _, value in reversed(facts)}
    family = f"family {first.get('cpu family', '?')} model {first.get('model', '?')}"
    return f"{first.get('model name', 'unknown processor')} ({family}), {os.cpu_count()} cores"


def add_model_options(parser: argparse.ArgumentParser, *, shape: str, layers: int, types: list[str]) -> None:
    """Which models are made, and where they are kept."""
    parser.add_argument("--types", nargs="+", default=types, help="type of all block matrices")
    parser.add_argument("--shape", choices=SHAPES, default=shape)
    parser.add_argument("--layers", type=int, nargs="+", default=[layers])
    parser.add_argument("--models", type=Path, help="folder where models are kept between runs")


@contextmanager
def synthetic_model(shape: str, n_layers: int, type_name: str, folder: Path | None) -> Iterator[Path]:
    """A model of random weights; it stays if there is a folder for it, and is not made again."""
    with TemporaryDirectory() as scratch:
        path = (folder or Path(scratch)).resolve() / f"{shape}-{n_layers}-{type_name}.gguf"
        if not path.exists():
            maker = Path(__file__).with_name("synthetic_models.py")
            words = [sys.executable, str(maker), shape, "--layers", str(n_layers), "--type", type_name]
            subprocess.run([*words, "-o", str(path)], check=True, stdout=subprocess.DEVNULL)
        yield path


def isa_environment(isa: str | None) -> dict[str, str]:
    """The environment of a process of ikq that is to use an instruction set."""
    return os.environ | ({"IKQ_ISA": isa} if isa else {})


def absolute(path: str) -> Path:
    """An option's path, for programs that run in a folder of their own: some leave a log file there."""
    return Path(path).resolve()


def table_row(cells: list[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def table_head(left: list[str], right: list[str]) -> str:
    """The two lines above a table: columns of words, then columns of figures."""
    return f"{table_row(left + right)}\n{table_row(['---'] * len(left) + ['--:'] * len(right))}"


def figure(value: float, digits: int = 1) -> str:
    """A number, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def exit_code(ratios: list[float], least: float) -> int:
    """1 if a ratio is below the bound, or there is a bound and nothing that it holds for."""
    known = [r for r in ratios if not math.isnan(r)]
    return int(least > 0 and min(known, default=0.0) < least)


def geometric_mean(values: list[float]) -> float:
    """Of those that are numbers; none: not a number."""
    logs = [math.log(v) for v in values if not math.isnan(v)]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
