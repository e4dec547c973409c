"""Covariances of inputs: what they are sums of, and runs in parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from imatrix_checks import TEXT
from numpy_model import NumpyModel

import ikq
from ikq.__main__ import main
from ikq.models import model_spec
from ikq.statistics.covariance import LayerBytes, covariance_bytes, covariance_passes


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def imatrix(*words: object) -> int:
    return main(["imatrix", *map(str, words)])


class Sums(NumpyModel):
    """Sums of products of what every matrix of a layer is multiplied with."""

    def linear(self, linear, x, expert=None):
        if isinstance(linear.weight, str) and linear.weight.startswith("blk."):
            found = self.__dict__.setdefault("sums", {})
            key = (linear.weight, expert or 0)
            found[key] = found.get(key, 0) + x.T @ x
        return super().linear(linear, x, expert)


def test_they_are_sums_of_products(tiny_moe: Path, tmp_path: Path) -> None:
    with ikq.Model.load(tiny_moe, n_ctx=64, n_threads=2) as model:
        ids = model.tokenize(TEXT)[:48]
        with model.collect_activations(covariance_layers=range(4)) as collector:
            model.logits(ids)
        statistics = collector.statistics()
        collector.write_covariances(tmp_path / "m.cov", "a text")
    reader = ikq.GGUFReader(tiny_moe)
    plain = Sums(reader, model_spec(reader))
    plain.logits(ids)
    found = ikq.Covariances(tmp_path / "m.cov")
    assert (found.datasets, found.n_chunks, found.chunk_size) == (["a text"], 1, 48)
    assert len(found) == 4 * 4
    for site in found:
        for tensor, group in site.tensors:
            assert group is None
            entry = statistics[tensor]
            if len(site.counts) == len(entry.counts):
                assert np.array_equal(site.counts, entry.counts)
                diagonal = np.diagonal(site.sums, axis1=1, axis2=2)
                assert np.allclose(diagonal, entry.sums, rtol=1e-5, atol=0)
                expected = [plain.sums.get((tensor, e), np.zeros(())) for e in range(len(site.counts))]
            else:
                # a token is a part of the experts' stream once, and each of both experts has it
                assert site.counts.tolist() == [48]
                expected = [sum(plain.sums.get((tensor, e), 0) for e in range(8)) / 2]
                mean = np.diagonal(site.sums[0]) / 48
                pooled = entry.sums.sum(0) / entry.counts.sum()
                assert np.allclose(mean, pooled, rtol=1e-5, atol=0)
            for sums, other in zip(site.sums, expected, strict=True):
                assert np.array_equal(sums, sums.T)
                # the engine rounds activations to 8 bits where numpy does not
                assert np.abs(sums - other).max() <= 0.02 * max(np.abs(other).max(), 1e-6)
        # the first token has two experts
        assert len(site.start_groups) == (1 if len(site.counts) == 1 else 2)
    alone = Sums(reader, model_spec(reader))
    alone.logits(ids[:1])
    for site in found:
        tensor = site.tensors[0][0]
        for group, start in zip(site.start_groups, site.starts, strict=True):
            is_stream = len(site.counts) == 1 and "_exps" in tensor
            expected = sum(alone.sums.get((tensor, e), 0) for e in range(8)) / 2 if is_stream else None
            expected = alone.sums[tensor, int(group)] if expected is None else expected
            assert np.abs(np.outer(start, start) - expected).max() <= 0.02 * np.abs(expected).max()


def test_ubatches_do_not_show(tiny_moe: Path, tmp_path: Path, text_file: Path) -> None:
    options = ["-m", tiny_moe, "-f", text_file, "-c", 128, "--chunks", 3, "-o", tmp_path / "m.gguf"]
    for name, more in (("a", ["-ub", 128]), ("b", ["-ub", 32, "-t", 1, "--no-ppl"])):
        assert imatrix(*options, *more, "--covariance", tmp_path / name) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_layers_in_several_passes(
    tiny_moe: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-m", tiny_moe, "-f", text_file, "-c", 64, "--chunks", 3, "-o", tmp_path / "m.gguf"]
    assert imatrix(*options, "--covariance", tmp_path / "one.cov") == 0
    assert "1 pass over the text" in capsys.readouterr().err
    assert imatrix(*options, "--covariance", tmp_path / "four.cov", "--max-ram", "4M") == 0
    printed = capsys.readouterr()
    assert "2 passes over the text" in printed.err
    assert "layers 2 to 3:" in printed.out
    one, four = ikq.Covariances(tmp_path / "one.cov"), ikq.Covariances(tmp_path / "four.cov")
    assert (four.n_chunks, four.datasets) == (one.n_chunks, one.datasets)
    assert len(one) == len(four) == 16
    for a, b in zip(one, four, strict=True):
        assert a.tensors == b.tensors
        assert np.array_equal(a.counts, b.counts)
        assert np.array_equal(a.sums, b.sums)
    assert {p.name for p in tmp_path.iterdir()} == {"text.txt", "m.gguf", "one.cov", "four.cov"}
    assert imatrix(*options, "--covariance", tmp_path / "no.cov", "--max-ram", "64K") == 2
    assert "the covariances of layer 0 take" in capsys.readouterr().err


@pytest.mark.parametrize("memory", ["1G", "4M"])
def test_interrupted_runs_go_on(tiny_moe: Path, tmp_path: Path, memory: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} of the text number {i * i}.\n" for i in range(1500)))
    options = ["-m", tiny_moe, "-f", text, "-c", 256, "--chunks", 40, "-t", 1, "--max-ram", memory]
    options += ["-ofreq", 3, "--no-ppl"]
    whole, parts = tmp_path / "whole.cov", tmp_path / "parts.cov"
    assert imatrix(*options, "-o", tmp_path / "whole.gguf", "--covariance", whole) == 0
    options += ["-o", tmp_path / "parts.gguf", "--covariance", parts]
    command = [sys.executable, "-u", "-m", "ikq", "imatrix", *map(str, options)]
    for number, n in ((signal.SIGKILL, 8), (signal.SIGINT, 12), (signal.SIGKILL, 40)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            seen = b""
            while seen.count(b"[") < n and (piece := os.read(process.stdout.fileno(), 4096)):
                seen += piece
            process.send_signal(number)
            process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert parts.read_bytes() == whole.read_bytes()
    assert (tmp_path / "parts.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    left = {p.name for p in tmp_path.iterdir() if p.name.startswith("parts")}
    assert left == {"parts.gguf", "parts.cov"}


def test_files_add_up(
    tiny_moe: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-m", tiny_moe, "-f", text_file, "-c", 64, "-o", tmp_path / "m.gguf"]
    both, parts = tmp_path / "both.cov", [tmp_path / "a.cov", tmp_path / "b.cov"]
    assert imatrix(*options, "--chunks", 4, "--covariance", both) == 0
    assert imatrix(*options, "--chunks", 2, "--covariance", parts[0]) == 0
    assert imatrix(*options, "--chunk", 2, "--chunks", 2, "--covariance", parts[1]) == 0
    out = tmp_path / "sum.cov"
    words = [word for part in parts for word in ("--in-covariance", part)]
    assert imatrix(*words, "--covariance", out) == 0
    assert "covariances of 2 files" in capsys.readouterr().out
    found, expected = ikq.Covariances(out), ikq.Covariances(both)
    assert found.n_chunks == 4
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a.counts, b.counts)
        assert np.array_equal(a.starts, b.starts)
        assert np.array_equal(a.start_groups, b.start_groups)
        assert np.abs(a.sums - b.sums).max() <= 1e-5 * np.abs(b.sums).max()
    assert imatrix(*words) == 2
    assert "where to?" in capsys.readouterr().err
    assert imatrix("--covariance", out) == 2
    assert imatrix(*options, *words, "--covariance", out) == 2


def test_bytes_are_known_before() -> None:
    shapes = {
        "blk.0.attn_q.weight": (4096, 2048),
        "blk.0.attn_k.weight": (512, 2048),
        "blk.0.attn_output.weight": (2048, 4096),
        "blk.0.ffn_gate_inp.weight": (128, 2048),
        "blk.0.ffn_up_exps.weight": (128, 768, 2048),
        "blk.0.ffn_gate_exps.weight": (128, 768, 2048),
        "blk.0.ffn_down_exps.weight": (128, 2048, 768),
        "output.weight": (1000, 2048),
    }
    (layer,) = covariance_bytes(shapes, 512, 8, 40)
    triangles = 2 * 2048 * 2049 // 2 + 4096 * 4097 // 2 + 128 * 768 * 769 // 2
    assert layer.file == 4 * triangles + 4 * 40 * (2 * 2048 + 4096 + 8 * 768)
    assert layer.memory == layer.file + 4 * 512 * (2 * 2048 + 4096 + 8 * 768)
    layers = [LayerBytes(0, 3), LayerBytes(0, 4), LayerBytes(0, 5), LayerBytes(0, 1)]
    assert covariance_passes(layers, None) == [range(4)]
    assert covariance_passes(layers, 7) == [range(2), range(2, 4)]
    assert covariance_passes(layers, 5) == [range(1), range(1, 2), range(2, 3), range(3, 4)]
    with pytest.raises(ikq.RefusedError, match="layer 2 take 5 bytes"):
        covariance_passes(layers, 4)
