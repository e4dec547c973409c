"""Whole commands on a cluster of this machine, `local` among them; nodes and drivers die at other places."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_nodes import (
    SLOW_TYPE,
    SLOW_UNITS,
    TINY,
    add_node,
    cluster,
    ignores_warnings,
    imatrix_words,
    n_noted,
    only_in_full,
    quality_words,
    quantize_words,
    sha256,
    slow,
)

from ikq.__main__ import main

pytestmark = [only_in_full, ignores_warnings]

# fixtures of other modules are found by their names here
__all__ = ["cluster", "slow"]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ikq", *words], capture_output=True, text=True, timeout=300)


def begun(words: list[str], stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ikq", *words], stdout=stdout, stderr=subprocess.PIPE, text=True
    )


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("more", [(), ("--shared-output",)])
def test_a_node_dies_and_then_the_driver(
    cluster: Any, tmp_path: Path, slow: tuple[Path, str], more: tuple[str, ...]
) -> None:
    source, expected = slow
    out, doomed = tmp_path / "m.gguf", add_node(cluster, "c")
    words = quantize_words(source, out, SLOW_TYPE, "--pure", "--cluster", cluster.address, *more)
    process = begun(words)
    until(lambda: n_noted(out) >= 4, process)
    cluster.remove_node(doomed, allow_graceful=False)
    n_before = n_noted(out)
    until(lambda: n_noted(out) > n_before, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    n_done = n_noted(out)
    assert not out.exists()
    assert 4 < n_done < SLOW_UNITS
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert f"going on: {n_done} of " in done.stdout
    assert sha256(out) == expected


def test_one_machine_goes_on_where_a_cluster_was(
    cluster: Any, tmp_path: Path, slow: tuple[Path, str]
) -> None:
    source, expected = slow
    out = tmp_path / "m.gguf"
    process = begun(quantize_words(source, out, SLOW_TYPE, "--pure", "--cluster", cluster.address))
    until(lambda: n_noted(out) >= 3, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    n_done = n_noted(out)
    assert 3 <= n_done < SLOW_UNITS
    done = run(quantize_words(source, out, SLOW_TYPE, "--pure"))
    assert done.returncode == 0, done.stderr
    assert f"going on: {n_done} of " in done.stdout
    assert sha256(out) == expected


def test_a_cluster_of_this_machine_alone(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    alone, out = tmp_path / "alone.gguf", tmp_path / "m.gguf"
    assert main(quantize_words(TINY, alone, "IQ4_KS")) == 0
    done = run(quantize_words(TINY, out, "IQ4_KS", "--cluster", "local"))
    assert done.returncode == 0, done.stderr
    assert "cluster: of " in done.stdout
    assert out.read_bytes() == alone.read_bytes()


def test_nobody_is_there(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    done = run(quantize_words(TINY, tmp_path / "m.gguf", "Q4_K", "--cluster", "127.0.0.1:9"))
    assert done.returncode == 2
    assert "no cluster that answers" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_imatrix_whose_node_and_driver_die(cluster: Any, tmp_path: Path) -> None:
    alone, out, log = tmp_path / "alone.gguf", tmp_path / "m.gguf", tmp_path / "log"
    # enough of them to be in the middle of
    n_chunks = ("--chunks", 80)
    assert main(imatrix_words(alone, *n_chunks)) == 0
    doomed = add_node(cluster, "c")
    words = imatrix_words(out, "--cluster", cluster.address, "-ofreq", 1, *n_chunks)
    with log.open("w") as stdout:
        process = begun(words, stdout)
        until(lambda: "[2]" in log.read_text(), process)
        cluster.remove_node(doomed, allow_graceful=False)
        until(lambda: "[4]" in log.read_text(), process)
        process.kill()
        process.communicate(timeout=30)
    assert "[80]" not in log.read_text()
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert "going on after chunk" in done.stderr
    assert out.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("base", ["text", "file"])
def test_quality_is_measured_while_a_node_dies(cluster: Any, tmp_path: Path, base: str) -> None:
    # enough of them to be in the middle of
    words = quality_words(tmp_path, base, 80)
    alone = run(words)
    assert alone.returncode == 0, alone.stderr
    doomed, log = add_node(cluster, "c"), tmp_path / "log"
    with log.open("w") as stdout:
        process = begun([*words, "--cluster", cluster.address], stdout)
        # late enough that the new node has loaded the model and is at work, too
        until(lambda: "[30]" in log.read_text() or "\n  30" in log.read_text(), process)
        cluster.remove_node(doomed, allow_graceful=False)
        _, says = process.communicate(timeout=240)
    assert process.returncode == 0, says
    # Ray's words about the node are not among the figures
    assert log.read_text() == alone.stdout
    # it had been at work
    assert ", c " in says
