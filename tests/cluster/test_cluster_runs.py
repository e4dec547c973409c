"""Runs on the nodes of this machine, one of which dies, and the driver too: the bytes are those of one machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folders import make_folder
from cluster_nodes import (
    DATA,
    SLOW_TYPE,
    SLOW_UNITS,
    TINY,
    add_node,
    attached,
    cluster,
    ignores_warnings,
    imatrix_words,
    n_noted,
    quality_words,
    quantize_words,
    sha256,
    slow,
)
from model_files import NAMES

import ikq
from ikq.__main__ import main
from ikq.cluster import quantize_on_cluster
from ikq.cluster.job import Batch
from ikq.cluster.rates import Rates

pytestmark = ignores_warnings

# fixtures of other modules are found by their names here
__all__ = ["attached", "cluster", "slow"]


@pytest.mark.parametrize("more", [(), ("--shared-output",)])
def test_two_nodes_write_what_one_machine_writes(
    attached: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    options = ("--imatrix", DATA / "imatrix-plain.dat", "--split-max-tensors", "9")
    alone, out = tmp_path / "alone" / "m.gguf", tmp_path / "many" / "m.gguf"
    for path in (alone, out):
        path.parent.mkdir()
    reports = [path.with_name("r.json") for path in (alone, out)]
    assert main(quantize_words(TINY, alone, "IQ3_K", *options, "--report", reports[0])) == 0
    capsys.readouterr()
    more = (*more, "--report", str(reports[1]), "--cluster", attached.address)
    assert main(quantize_words(TINY, out, "IQ3_K", *options, *more)) == 0
    assert "cluster: of " in capsys.readouterr().out
    names = sorted(p.name for p in alone.parent.glob("*.gguf"))
    assert len(names) > 1
    assert sorted(p.name for p in out.parent.iterdir()) == sorted([*names, "r.json"])
    assert [sha256(out.parent / n) for n in names] == [sha256(alone.parent / n) for n in names]
    # errors are measured where the work is done
    errors = [[t["error"] for t in json.loads(r.read_text())["tensors"]] for r in reports]
    assert errors[0] == errors[1]
    assert any(e is not None for e in errors[0])


def test_a_folder_is_a_source(attached: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    make_folder(folder, next(n for n in NAMES if n.startswith("qwen3moe")))
    alone, out = tmp_path / "alone.gguf", tmp_path / "m.gguf"
    ikq.quantize_file(folder, alone, "Q4_K")
    assert main(quantize_words(folder, out, "Q4_K", "--cluster", attached.address)) == 0
    assert sha256(out) == sha256(alone)


def test_a_node_without_the_source_is_named(
    attached: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--cluster", attached.address, "--path-map", f"b:{DATA}=/nowhere")
    assert main(quantize_words(TINY, tmp_path / "m.gguf", "Q4_K", *more)) == 1
    says = capsys.readouterr().err
    assert "/nowhere/tiny-moe-bf16.gguf" in says
    assert "on node b" in says
    assert list(tmp_path.iterdir()) == []


def test_an_imatrix_has_the_bytes_of_one_machine(
    attached: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, out = tmp_path / "alone.gguf", tmp_path / "m.gguf"
    assert main(imatrix_words(alone)) == 0
    expected = capsys.readouterr().out
    assert main(imatrix_words(out, "--cluster", attached.address)) == 0
    found = capsys.readouterr()
    assert out.read_bytes() == alone.read_bytes()
    # every estimate of the perplexity has the same digits
    assert found.out.replace(str(out), str(alone)) == expected
    # both have some from the start on
    assert "chunks by node: a " in found.err
    assert ", b " in found.err


@pytest.mark.parametrize("base", ["text", "file", "model"])
def test_figures_have_the_digits_of_one_machine(
    attached: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], base: str
) -> None:
    """Perplexity of a text, and divergence from a base file and from a model; JSON has every digit."""
    words = [*quality_words(tmp_path, base), *(() if base == "model" else ("--json",))]
    assert main(words) == 0
    expected = capsys.readouterr().out
    assert main([*words, "--cluster", attached.address]) == 0
    found = capsys.readouterr()
    assert found.out == expected
    # both have some from the start on
    assert "chunks by node: a " in found.err
    assert ", b " in found.err


def test_a_node_without_the_base_file_is_named(
    attached: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = quality_words(tmp_path, "file")
    more = ("--cluster", attached.address, "--path-map", f"b:{tmp_path / 'b.kld'}=/nowhere/b.kld")
    assert main([*words, *more]) == 1
    says = capsys.readouterr().err
    assert "/nowhere/b.kld" in says
    assert "on node b" in says


def test_a_node_dies(
    attached: Any, tmp_path: Path, slow: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third node is killed when its first result is there, with the next one in hand."""
    source, expected = slow
    doomed = add_node(attached, "c")
    made: list[str] = []
    count = Rates.add

    def kill_and_count(rates: Rates, batch: Batch) -> None:
        if batch.node == "c" and "c" not in made:
            attached.remove_node(doomed, allow_graceful=False)
        made.append(batch.node)
        count(rates, batch)

    monkeypatch.setattr(Rates, "add", kill_and_count)
    out = tmp_path / "m.gguf"
    plan = ikq.plan_quantization(source, out, SLOW_TYPE, pure=True)
    quantize_on_cluster(plan, SLOW_TYPE, attached.address, pure=True)
    # there was work to do yet
    assert made.index("c") < len(made) - 2
    assert sha256(out) == expected


def test_the_driver_dies(
    attached: Any, tmp_path: Path, slow: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, expected = slow
    out = tmp_path / "m.gguf"
    words = quantize_words(source, out, SLOW_TYPE, "--pure", "--cluster", attached.address)
    process = subprocess.Popen(
        [sys.executable, "-m", "ikq", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 240
    while n_noted(out) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    n_done = n_noted(out)
    assert not out.exists()
    assert 3 <= n_done < SLOW_UNITS
    assert main(words) == 0
    assert f"going on: {n_done} of " in capsys.readouterr().out
    assert sha256(out) == expected
