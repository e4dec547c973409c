"""`ikq quantize --cluster`: nodes of this machine, some of which die; the bytes are those of one machine."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import make_folder
from cluster_nodes import add_node, cluster
from model_files import NAMES
from partial_outputs import noted

import ikq

# Ray's own warnings, and sockets of nodes that were killed
pytestmark = pytest.mark.filterwarnings("ignore")

# fixtures of other modules are found by their names here
__all__ = ["cluster"]

DATA = Path(__file__).parents[1] / "data"
SLOW_TYPE = "IQ4_KT"


def words(source: Path, out: Path, type_name: str, *more: object) -> list[str]:
    return [sys.executable, "-m", "ikq", "quantize", *map(str, more), str(source), str(out), type_name, "1"]


def run(*given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(*given), capture_output=True, text=True, timeout=150)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def slow(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model that takes some seconds, and the hash of what one machine makes of it."""
    folder = tmp_path_factory.mktemp("slow")
    source = folder / "m.gguf"
    rng = np.random.default_rng(0)
    with ikq.GGUFWriter(source, {"general.architecture": "llama"}) as writer:
        for name in ("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps"):
            weights = rng.standard_normal((5, 256, 1024), dtype=np.float32)
            writer.add_tensor(f"blk.0.{name}.weight", weights)
        writer.add_tensor("blk.0.attn_norm.weight", np.ones(1024, np.float32))
    ikq.quantize_file(source, folder / "alone.gguf", SLOW_TYPE, pure=True)
    return source, sha256(folder / "alone.gguf")


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def n_noted(out: Path) -> int:
    journal = out.with_name(f"{out.name}.journal")
    # an open journal that has its header
    return sum(noted(journal)) if journal.exists() and journal.stat().st_size > 96 else 0


@pytest.mark.parametrize("more", [(), ("--shared-output",)])
def test_two_nodes_write_what_one_machine_writes(cluster: Any, tmp_path: Path, more: tuple[str, ...]) -> None:
    source = DATA / "tiny-moe-bf16.gguf"
    options = ("--imatrix", DATA / "imatrix-plain.dat", "--split-max-tensors", "9")
    alone, out = tmp_path / "alone" / "m.gguf", tmp_path / "many" / "m.gguf"
    for path in (alone, out):
        path.parent.mkdir()
    reports = [path.with_name("r.json") for path in (alone, out)]
    assert run(source, alone, "IQ3_K", *options, "--report", reports[0]).returncode == 0
    done = run(source, out, "IQ3_K", *options, "--report", reports[1], "--cluster", cluster.address, *more)
    assert done.returncode == 0, done.stderr
    assert "cluster: of " in done.stdout
    names = sorted(p.name for p in alone.parent.glob("*.gguf"))
    assert len(names) > 1
    assert sorted(p.name for p in out.parent.iterdir()) == sorted([*names, "r.json"])
    assert [sha256(out.parent / n) for n in names] == [sha256(alone.parent / n) for n in names]
    # errors are measured where the work is done
    errors = [[t["error"] for t in json.loads(r.read_text())["tensors"]] for r in reports]
    assert errors[0] == errors[1]
    assert any(e is not None for e in errors[0])


def test_a_folder_is_a_source(cluster: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    make_folder(folder, next(n for n in NAMES if n.startswith("qwen3moe")))
    alone, out = tmp_path / "alone.gguf", tmp_path / "m.gguf"
    ikq.quantize_file(folder, alone, "Q4_K")
    done = run(folder, out, "Q4_K", "--cluster", cluster.address)
    assert done.returncode == 0, done.stderr
    assert sha256(out) == sha256(alone)


def test_a_node_dies(cluster: Any, tmp_path: Path, slow: tuple[Path, str]) -> None:
    source, expected = slow
    out = tmp_path / "m.gguf"
    doomed = add_node(cluster, "c")
    process = subprocess.Popen(
        words(source, out, SLOW_TYPE, "--pure", "--cluster", cluster.address),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: n_noted(out) >= 3, process)
    n_before = n_noted(out)
    cluster.remove_node(doomed, allow_graceful=False)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    # it had work to do yet
    assert n_before < 15
    assert " c " in stdout
    assert sha256(out) == expected


def test_the_driver_dies(cluster: Any, tmp_path: Path, slow: tuple[Path, str]) -> None:
    source, expected = slow
    out = tmp_path / "m.gguf"
    command = words(source, out, SLOW_TYPE, "--pure", "--cluster", cluster.address)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: n_noted(out) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    n_done = n_noted(out)
    assert not out.exists()
    assert 3 <= n_done < 15
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert f"going on: {n_done} of " in done.stdout
    assert sha256(out) == expected


def test_a_node_without_the_source_is_named(cluster: Any, tmp_path: Path) -> None:
    source, out = DATA / "tiny-moe-bf16.gguf", tmp_path / "m.gguf"
    given = (source, out, "Q4_K", "--cluster", cluster.address)
    done = run(*given, "--path-map", f"b:{DATA}=/nowhere")
    assert done.returncode == 1
    assert "/nowhere/tiny-moe-bf16.gguf" in done.stderr
    assert "on node b" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nobody_is_there(cluster: Any, tmp_path: Path) -> None:
    done = run(DATA / "tiny-moe-bf16.gguf", tmp_path / "m.gguf", "Q4_K", "--cluster", "127.0.0.1:9")
    assert done.returncode == 2
    assert "no cluster that answers" in done.stderr
    assert list(tmp_path.iterdir()) == []
