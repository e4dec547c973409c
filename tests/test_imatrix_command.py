"""`ikq imatrix`: chunks of a text, the command, interrupted runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from imatrix_checks import TEXT, collected, entry, same
from model_files import path
from small_models import N_CTX, N_EXPERT, Parts, biased, tokens

import ikq
from ikq.__main__ import main
from ikq.evaluate import measure_perplexity
from ikq.statistics.calibrate import chunks_of, run_chunks


@pytest.fixture(scope="module")
def parts():
    return Parts()


@pytest.fixture(scope="module")
def model(tiny_moe):
    with ikq.Model.load(tiny_moe, n_ctx=512, n_threads=2) as model:
        yield model


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def test_chunks_are_whole_windows_with_bos():
    with ikq.Model.load(path("llama/llama-bf16"), n_ctx=32) as model:
        bos = model.tokenizer.bos
        ids = [bos, *model.tokenize(TEXT)]
        chunks = chunks_of(model, TEXT, n_ctx=32)
        assert chunks.n == len(ids) // 32
        assert chunks[1].tokens.tolist() == [bos, *ids[33:64]]
        later = chunks_of(model, TEXT, n_ctx=32, skip=2, chunks=3)
        assert later.n == 3
        assert later[0].tokens.tolist() == [bos, *ids[65:96]]
        with pytest.raises(ikq.RefusedError, match="none is left"):
            chunks_of(model, TEXT, n_ctx=32, skip=chunks.n)
        with pytest.raises(ikq.RefusedError):
            chunks_of(model, TEXT, n_ctx=32, skip=-1)


def test_names_of_control_tokens(model):
    text = "<|im_start|>" * 40
    assert len(chunks_of(model, text, n_ctx=4, parse_special=True).tokens) == 40
    assert len(chunks_of(model, text, n_ctx=4).tokens) > 40


def test_perplexity_on_the_way(model, monkeypatch):
    """The value of `ikq perplexity`, of a chunk in one call or in pieces."""
    windows = chunks_of(model, TEXT, n_ctx=64, chunks=3)
    expected = [p.value for p in measure_perplexity(model, windows)]
    for n_bytes in (1 << 30, 4 * 4096 * 10):
        monkeypatch.setattr("ikq.statistics.calibrate.loop._LOGIT_BYTES", n_bytes)
        with model.collect_activations() as collector:
            found = [d.perplexity.value for d in run_chunks(model, windows, collector)]
        # other numbers of columns at once: other roundings of 8-bit activations' products
        assert found == pytest.approx(expected, rel=1e-3)
        assert collector.statistics()["blk.0.attn_q.weight"].counts.tolist() == [3 * 64]


def imatrix(*arguments):
    return main(["imatrix", *map(str, arguments)])


def test_command(tiny_moe, text_file, tmp_path, capsys):
    out, report = tmp_path / "m.gguf", tmp_path / "r.json"
    options = ["-m", tiny_moe, "-f", text_file, "-c", "64", "--chunks", "5"]
    code = imatrix(*options, "-o", out, "--report", report, "-lsim", "--show-statistics", "--save-frequency", "2",
                   "-fmoe", "-ngl", "99", "--fallback-cpu", "--no-escape", "--process-output")  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0
    assert re.search(
        r"^\[1\][\d.]+,\[2\][\d.]+,\[3\][\d.]+,\[4\][\d.]+,\[5\][\d.]+,$", printed.out, re.MULTILINE
    )
    assert "33 of 33 matrices of the model have data" in printed.out
    assert "cosine of input and output, attention" in printed.out
    assert re.search(r"^Final estimate: PPL = [\d.]+ \+/- [\d.]+$", printed.out, re.MULTILINE)
    facts = json.loads(report.read_text())
    assert (facts["n_chunks"], facts["chunk_size"], len(facts["tensors"])) == (5, 64, 33)
    assert (facts["missing"], facts["n_wanted"], len(facts["layer_similarity"])) == ([], 33, 4)
    assert {p.name for p in tmp_path.iterdir()} == {
        "m.gguf", "m.gguf.at_2", "m.gguf.at_4", "r.json", "text.txt"
    }  # fmt: skip
    read = ikq.ActivationStatistics.open(out)
    assert (read.n_chunks, read.datasets) == (5, [str(text_file)])
    assert ikq.ActivationStatistics.open(tmp_path / "m.gguf.at_4").n_chunks == 4
    # without logits: the same statistics
    assert imatrix(*options, "-o", tmp_path / "n.gguf", "--no-ppl") == 0
    assert (tmp_path / "n.gguf").read_bytes() == out.read_bytes()
    assert "PPL" not in capsys.readouterr().out
    # parts of the text: the files merge to the whole
    assert imatrix(*options, "--chunks", "3", "-o", tmp_path / "a.gguf", "--no-ppl") == 0
    assert imatrix(*options, "--chunks", "2", "--chunk", "3", "-o", tmp_path / "b.gguf", "--in-file",
                   tmp_path / "a.gguf", "--no-ppl") == 0  # fmt: skip
    same(read, ikq.ActivationStatistics.open(tmp_path / "b.gguf"), 1e-6)
    capsys.readouterr()
    assert imatrix("--in-file", out, "--in-file", out, "-o", tmp_path / "twice.dat", "-m", tiny_moe) == 0
    assert "33 of 33 matrices" in capsys.readouterr().out
    assert ikq.ActivationStatistics.open(tmp_path / "twice.dat").n_chunks == 10
    assert imatrix("--in-file", out, "--show-statistics") == 0
    assert "ffn_down_exps" in capsys.readouterr().out


def test_what_is_missing_is_named(tiny_moe, samples, capsys):
    assert (
        imatrix("--in-file", samples / "imatrix-fused-default.dat", "-m", tiny_moe, "--show-statistics") == 0
    )
    out = capsys.readouterr().out
    assert "28 of 33 matrices of the model have data" in out
    assert re.search(r"^without data: .*blk\.3\.ffn_gate_exps\.weight", out, re.MULTILINE)
    assert re.search(r"^ffn_gate_exps +0 of 4$", out, re.MULTILINE)


def test_unseen_experts_are_named(parts, tmp_path, capsys):
    model = biased(parts, tmp_path / "one.gguf", "Q4_K", "Q4_K", 2, [0.0, 0.0, 1e4, 0.0, -1e4])
    with ikq.Model.load(model, n_ctx=N_CTX) as m:
        collected(m, tokens(40)).write(tmp_path / "m.gguf")
    assert imatrix("--in-file", tmp_path / "m.gguf", "-m", model, "--show-statistics") == 0
    out = capsys.readouterr().out
    assert f"3 of {3 * N_EXPERT} experts saw no token:" in out
    assert "  blk.0.ffn_down_exps.weight: 4\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--in-file", "x"], "where to"),
        (["-f", "TEXT"], "needs a model"),
        (["-f", "TEXT", "-m", "MODEL", "--chunks", "0"], "0 chunks"),
        (["-f", "TEXT", "-m", "MODEL", "--chunk", "-1"], "--chunk -1"),
        (["-f", "TEXT", "-m", "MODEL", "-c", "2"], "windows of 2"),
        (["-f", "TEXT", "-m", "MODEL", "-c", "100000"], "makes no window"),
        (["-f", "TEXT", "-m", "MODEL", "-o", "no/m.dat"], "no folder"),
        (["-f", "TEXT", "-m", "MODEL", "--report", "no/r.json"], "no folder"),
        (["-f", "TEXT", "-m", "MODEL", "-o", "."], "is a folder"),
    ],
)
def test_refusals(tiny_moe, text_file, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    known = {"TEXT": str(text_file), "MODEL": str(tiny_moe)}
    assert imatrix(*(known.get(a, a) for a in arguments)) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_the_output_is_no_input(tiny_moe, text_file, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    ikq.ActivationStatistics({"x": entry([1.0], [1])}).write(out)
    assert imatrix("-m", tiny_moe, "-f", text_file, "-c", "64", "-o", out, "--in-file", out) == 2
    assert "count it twice" in capsys.readouterr().err


def test_files_that_do_not_fit_are_found_out_first(tiny_moe, text_file, tmp_path, capsys):
    options = ["-m", tiny_moe, "-f", text_file, "-c", "64", "-o", tmp_path / "m.gguf", "--in-file"]
    other = tmp_path / "other.gguf"
    ikq.ActivationStatistics({"blk.0.attn_q.weight": entry([1.0], [1])}).write(other)
    assert imatrix(*options, other) == 1
    assert "1 values for `blk.0.attn_q.weight`" in capsys.readouterr().err
    ikq.ActivationStatistics({"x": entry([1.0], [1])}, all_experts=True).write(other)
    assert imatrix(*options, other) == 2
    assert "like with like" in capsys.readouterr().err
    assert not (tmp_path / "m.gguf").exists()


class Stopped:
    """Runs the command in another process and ends it after some chunks."""

    def __init__(self, arguments, n, number):
        command = [sys.executable, "-u", "-m", "ikq", "imatrix", *map(str, arguments)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            seen = b""
            # unbuffered: what has come says how far it is
            while seen.count(b"[") < n:
                piece = os.read(process.stdout.fileno(), 4096)
                assert piece, process.stderr.read()
                seen += piece
            process.send_signal(number)
            self.out = seen + process.stdout.read()
            self.err = process.stderr.read().decode()
            self.code = process.wait(timeout=60)


def test_interrupted_runs_go_on(tiny_moe, tmp_path, capsys):
    """Killed, then interrupted, then finished: the bytes of a run in one go."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} of the text number {i * i}.\n" for i in range(1800)))
    options = ["-m", tiny_moe, "-f", text, "-c", "256", "--chunks", "80", "-lsim", "-t", "2"]
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    state = tmp_path / "parts.gguf.partial"
    assert imatrix(*options, "-o", whole, "--report", tmp_path / "whole.json") == 0
    expected = capsys.readouterr().out.splitlines()[-1]
    options += ["-o", parts]
    killed = Stopped([*options, "-ofreq", "4"], 10, signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    done = ikq.ActivationStatistics.open(parts).n_chunks
    assert 8 <= done < 80
    assert state.is_file()
    interrupted = Stopped(options, 5, signal.SIGINT)
    assert interrupted.code == 130
    assert f"going on after chunk {done} of 80" in interrupted.err
    found = re.search(r"interrupted after (\d+) of 80 chunks, .* the same command goes on", interrupted.err)
    assert found, interrupted.err
    assert int(found[1]) >= done + 5
    assert ikq.ActivationStatistics.open(parts).n_chunks == int(found[1])
    # another text is another run
    assert imatrix(*options, "--chunk", "1") == 2
    assert "from a run with another model, text or options" in capsys.readouterr().err
    assert imatrix(*options, "--report", tmp_path / "parts.json", "-t", "1", "-no-fmoe") == 0
    printed = capsys.readouterr()
    assert f"going on after chunk {found[1]} of 80" in printed.err
    assert printed.out.splitlines()[-1] == expected
    assert parts.read_bytes() == whole.read_bytes()
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "parts")]
    assert reports[0] | {"output": None} == reports[1] | {"output": None}
    assert not state.exists()


def test_damaged_states(tiny_moe, text_file, tmp_path, capsys):
    out = tmp_path / "m.dat"
    options = ["-m", tiny_moe, "-f", text_file, "-c", "64", "--chunks", "2", "-o", out]
    assert imatrix(*options) == 0
    expected = out.read_bytes()
    state = tmp_path / "m.dat.partial"
    for data in (b"", b"PK\x03\x04 something", b"\x93NUMPY", os.urandom(1000)):
        state.write_bytes(data)
        assert imatrix(*options) == 0
        assert "starting anew" in capsys.readouterr().err
        assert out.read_bytes() == expected
        assert not state.exists()
    # of another run, dropped when asked
    assert Stopped([*options, "--chunks", "-1", "-ofreq", "1", "--all-experts"], 4, signal.SIGKILL).code < 0
    assert state.is_file()
    assert imatrix(*options) == 2
    assert imatrix(*options, "--restart") == 0
    assert out.read_bytes() == expected
    assert not state.exists()
