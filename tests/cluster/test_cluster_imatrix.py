"""`ikq imatrix --cluster`: the file that one machine writes, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_nodes import add_node, cluster

import ikq
from ikq.cluster.collecting import added
from ikq.statistics.calibrate import chunks_of, run_chunks

__all__ = ["cluster"]

pytestmark = pytest.mark.filterwarnings("ignore")

MODEL = Path(__file__).parents[1] / "data" / "tiny-moe-bf16.gguf"
TEXT = "".join(f"def number_{i}(x):\n    return x * {i * i} + {i}\n\n" for i in range(300))
N_CHUNKS = 12


def words(out: Path, *more: object) -> list[str]:
    given = (
        "-m",
        MODEL,
        "-f",
        out.with_name("text.txt"),
        "-o",
        out,
        "-c",
        64,
        "--chunks",
        N_CHUNKS,
        "-lsim",
        "-t",
        1,
    )
    return [sys.executable, "-m", "ikq", "imatrix", *map(str, (*given, *more))]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def alone(tmp_path: Path) -> tuple[bytes, str]:
    """The file, and the lines of the perplexity."""
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "m.imatrix.gguf"
    done = run(words(out))
    content = out.read_bytes()
    out.unlink()
    return content, done.stdout


def test_the_bytes_of_one_machine(cluster: Any, tmp_path: Path, alone: tuple[bytes, str]) -> None:
    out = tmp_path / "m.imatrix.gguf"
    done = run(words(out, "--cluster", cluster.address))
    assert out.read_bytes() == alone[0]
    assert done.stdout == alone[1]
    assert " a " in done.stderr
    assert " b " in done.stderr


def test_a_node_dies_and_the_driver_too(cluster: Any, tmp_path: Path, alone: tuple[bytes, str]) -> None:
    out, doomed = tmp_path / "m.imatrix.gguf", add_node(cluster, "c")
    command = words(out, "--cluster", cluster.address, "-ofreq", 1)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    until = b""
    while b"[2]" not in until:
        until += process.stdout.buffer.raw.read(1)  # type: ignore[attr-defined]
    cluster.remove_node(doomed, allow_graceful=False)
    while b"[4]" not in until:
        until += process.stdout.buffer.raw.read(1)  # type: ignore[attr-defined]
    process.kill()
    process.communicate(timeout=30)
    done = run(command)
    assert "going on after chunk" in done.stderr
    assert out.read_bytes() == alone[0]


def test_states_are_added_as_chunks_are() -> None:
    """The sums of chunks apart, added in order, are those of one run to the last bit."""
    with ikq.Model.load(MODEL, n_ctx=64) as model:
        windows = chunks_of(model, TEXT, n_ctx=64, chunks=5)
        with model.collect_activations(similarity=True) as together:
            for _ in run_chunks(model, windows, together):
                pass
        total = ikq.ActivationCollector(similarity=True).state()
        for i in range(windows.n):
            with model.collect_activations(similarity=True) as one:
                next(run_chunks(model, windows, one, first=i))
            total = added(total, one.state())
    expected = together.state()
    arrays = [state.pop("arrays") for state in (total, expected)]
    assert total == expected
    for (sums, counts), (expected_sums, expected_counts) in zip(*arrays, strict=True):
        np.testing.assert_array_equal(sums, expected_sums)
        np.testing.assert_array_equal(counts, expected_counts)
