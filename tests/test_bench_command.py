"""`ikq bench`, `ikq sweep-bench` and `ikq.speed.measure`: what is measured, tables that programs can read."""

import csv
import io
import json
import re
import sys

import pytest
from model_files import RECURRENT, path

import ikq
from ikq.__main__ import main
from ikq.speed.measure import Workload, bench, sweep


def output(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_what_is_measured(tiny_moe):
    calls, steps = [], []

    class Counted(ikq.Model):
        def eval(self, tokens, *, want="all"):
            calls.append((self.n_past, len(tokens)))
            return super().eval(tokens, want=want)

        def step(self, entries):
            entries = list(entries)
            steps.append([(s.n_past, len(tokens)) for s, tokens, _ in entries])
            return super().step(entries)

    with Counted.load(tiny_moe, n_ctx=64) as model:
        found = bench(model, Workload(8, 3, 4), repetitions=2, warm_up=False)
        assert calls == [(0, 4), *[(4, 8), (12, 1), (13, 1), (14, 1)] * 2]
        assert found.workload.name == "pp8+tg3@d4"
        assert len(found.seconds) == 2
        assert all(s > 0 for s in found.seconds)
        speeds = sorted(11 / s for s in found.seconds)
        assert found.median == pytest.approx(sum(speeds) / 2)
        assert found.deviation == pytest.approx((speeds[1] - speeds[0]) / 2**0.5)
        calls.clear()
        bench(model, Workload(2, 0), repetitions=1)
        assert len(calls) >= 2
        calls.clear()
        rows = list(sweep(model, n_prompt=20, n_gen=5, repetitions=1, warm_up=False))
        assert [(r.pp, r.tg, r.n_kv) for r in rows] == [(20, 5, 0), (20, 5, 20), (20, 5, 40)]
        # generation comes first and is forgotten
        part = [*((20 + i, 1) for i in range(5)), (20, 20)]
        assert part == calls[6:12]
        with pytest.raises(ikq.ShapeError):
            bench(model, Workload(65, 0), repetitions=1, warm_up=False)
        steps.clear()
        held = model.memory.cache
        found = bench(model, Workload(8, 2, 4, 3), repetitions=2, warm_up=False)
        once = [[(4, 8)] * 3, [(12, 1)] * 3, [(13, 1)] * 3]
        assert steps == [*[[(0, 4)]] * 3, *once, *once]
        assert found.speeds == tuple(3 * 10 / s for s in found.seconds)
        assert found.workload.name == "pp8+tg2@d4"
        assert model.memory.cache == held


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_models(name):
    with ikq.Model.load(path(name), n_ctx=24) as model:
        found = bench(model, Workload(0, 2, 3), repetitions=2, warm_up=False)
        assert len(found.seconds) == 2
        assert model.n_past == 5
        assert [r.n_kv for r in sweep(model, n_prompt=8, n_gen=2, warm_up=False)] == [0, 8, 16]


QUICK = ["-r", "2", "-w", "0", "-p", "8", "-n", "2"]
KEYS = {
    "model_type",
    "model_size",
    "model_n_params",
    "backend",
    "n_threads",
    "test",
    "median_ts",
    "stddev_ts",
}


def test_a_table(tiny_moe, capsys):
    out = output(
        capsys, "bench", "-m", tiny_moe, *QUICK, "-t", "1,2", "-fmoe", "0,1", "-pg", "4,2", "-gp", "4,2"
    )
    table, after = out.split("\n\n")
    head, line, *rows = [[c.strip() for c in r.strip("|").split("|")] for r in table.splitlines()]
    assert head == ["model", "size", "params", "backend", "threads", "fmoe", "test", "t/s"]
    assert all(set(cell) <= set("-:") for cell in line)
    assert len({len(r) for r in table.splitlines()}) == 1
    assert [r[4:7] for r in rows] == [
        [t, f, test] for t in "12" for f in "01" for test in ("pp8", "tg2", "pp4+tg2", "tg2@d4")
    ]
    for row in rows:
        assert row[:4] == ["qwen3moe 8x3.7M BF16", "17.54 MiB", "9.19 M", "CPU"]
        median, deviation = row[-1].split(" ± ")
        assert float(median) > 0 <= float(deviation)
    assert "median ± standard deviation" in after
    # rows come in bands of 16, so a few bytes more than in the file
    assert "weights 17.6 MiB, " in after
    assert "; cache at most 0.5 MiB" in after


def test_programs_can_read_it(tiny_moe, capsys):
    arguments = ["bench", "-m", tiny_moe, "-m", tiny_moe, *QUICK]
    rows = json.loads(output(capsys, *arguments, "-o", "json"))
    lines = [json.loads(x) for x in output(capsys, *arguments, "-o", "jsonl").splitlines()]
    table = list(csv.DictReader(io.StringIO(output(capsys, *arguments, "-o", "csv"))))
    for found in (rows, lines, table):
        assert [r["test"] for r in found] == ["pp8", "tg2"] * 2
        assert all(r.keys() >= KEYS for r in found)
        assert all(float(r["min_ts"]) <= float(r["median_ts"]) <= float(r["max_ts"]) for r in found)
    for r in rows:
        assert len(r["samples_s"]) == 2
        # seconds have six digits
        speeds = [(r["n_prompt"] + r["n_gen"]) / s for s in r["samples_s"]]
        assert sum(speeds) / 2 == pytest.approx(r["median_ts"], rel=0.01)
        assert r["model_size"] == 18394112
        assert abs(r["mapped"] + r["copied"] - r["model_size"]) < 0.01 * r["model_size"]
        assert r["cache"] > 0
        assert r["why_memory"]


def test_parallel_sequences(tiny_moe, capsys):
    arguments = ["bench", "-m", tiny_moe, *QUICK, "-np", "1,3"]
    head, _, *rows = output(capsys, *arguments).split("\n\n")[0].splitlines()
    assert [c.strip() for c in head.strip("|").split("|")][5:] == ["parallel", "test", "t/s"]
    shown = [[c.strip() for c in r.strip("|").split("|")][5:7] for r in rows]
    assert shown == [["1", "pp8"], ["1", "tg2@d8"], ["3", "pp8"], ["3", "tg2@d8"]]
    rows = json.loads(output(capsys, *arguments, "-o", "json"))
    assert [(r["n_parallel"], r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows] == [
        (n, *test) for n in (1, 3) for test in ((8, 0, 0), (0, 2, 8))
    ]
    for r in rows:
        n_tokens = r["n_parallel"] * (r["n_prompt"] + r["n_gen"])
        assert sum(n_tokens / s for s in r["samples_s"]) / 2 == pytest.approx(r["median_ts"], rel=0.01)
        assert r["cache"] == r["n_parallel"] * rows[0]["cache"] > 0


def test_flags_of_llama_bench(tiny_moe, capsys):
    flags = [
        "--fallback-cpu",
        "-ngl",
        "0,99",
        "-ncmoe",
        "1",
        "-cmoe",
        "1",
        "-rtr",
        "1",
        "-fa",
        "1",
        "-mmp",
        "0,1",
        "-ctk",
        "q8_0",
        "-ub",
        "4,8",
        "-muge",
        "1",
    ]
    assert main(["bench", "-m", str(tiny_moe), "-p", "4", "-n", "0", "-r", "1", "-w", "0", *flags]) == 0
    out, err = capsys.readouterr()
    assert out.count("pp4") == 8
    *notes, gpu = err.splitlines()
    assert notes == [
        "note: -rtr 1 ignored: weights are re-arranged while loading in any case",
        "note: -fa 1 ignored: not needed, ikq decides this by itself",
    ]
    assert gpu.startswith("note: -ngl: ")
    assert gpu.endswith("; all layers run on the CPU")


def test_the_cache_can_be_larger_and_rules_that_fit_nothing_are_told(tiny_moe, capsys, monkeypatch):
    asked = []
    real = ikq.Model.load
    monkeypatch.setattr(ikq.Model, "load", lambda *a, **k: asked.append(k["n_ctx"]) or real(*a, **k))
    test = ["bench", "-m", str(tiny_moe), "-p", "4", "-n", "0", "-r", "1", "-w", "0"]
    assert main([*test, "-c", "64", "-ot", "nothing=CPU"]) == 0
    assert "nothing" in capsys.readouterr().err
    assert main([*test, "-c", "2"]) == 0
    assert asked == [64, 4]


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "-m", "x", "-p", "0", "-n", "0"],
        ["bench", "-m", "x", "-r", "0"],
        ["bench", "-m", "x", "-c", "-1"],
        ["bench", "-m", "x", "-np", "1,0"],
        ["sweep-bench", "-m", "x", "-n", "-1"],
        ["sweep-bench", "-m", "x", "-nrep", "0"],
    ],
)
def test_nothing_to_measure_is_2(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments", [["-p", "a"], ["-pg", "5"], ["-pg", "0,5"], ["-mmp", "2"], ["-p", "-1"]]
)
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as e:
        main(["bench", "-m", "x", *arguments])
    assert e.value.code == 2
    assert "usage: ikq bench" in capsys.readouterr().err


def test_sweep(tiny_moe, capsys, tmp_path):
    arguments = ["sweep-bench", "-m", tiny_moe, "-c", "40", "-ub", "16", "-n", "2", "-t", "2"]
    head, line, *rows = output(capsys, *arguments).splitlines()
    assert [c.strip() for c in head.strip("|").split("|")] == [
        "PP", "TG", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s"
    ]  # fmt: skip
    assert len(head) == len(line) == len(rows[0])
    assert [[c.strip() for c in r.strip("|").split("|")][:3] for r in rows] == [
        ["16", "2", "0"],
        ["16", "2", "16"],
    ]
    lines = [json.loads(x) for x in output(capsys, *arguments, "--output-format", "jsonl").splitlines()]
    table = list(csv.DictReader(io.StringIO(output(capsys, *arguments, "--output-format", "csv"))))
    for found in (lines, table):
        assert [int(r["n_kv"]) for r in found] == [0, 16]
        assert all(float(r["speed_pp"]) > 0 < float(r["speed_tg"]) for r in found)
    assert main([str(a) for a in [*arguments, "-ub", "64"]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "raise -c or lower -ub" in err
    assert main([str(a) for a in arguments]) == 0
    assert re.match(r"weights 17\.6 MiB, .*; cache 0\.5 MiB; 2 threads\n", capsys.readouterr().err)


def test_a_plot(tiny_moe, capsys, tmp_path, monkeypatch):
    arguments = ["sweep-bench", "-m", str(tiny_moe), "-c", "32", "-ub", "16", "--plot"]
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: no plot is drawn")
    assert main([*arguments, str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, str(tmp_path / "out.xyz")]) == 1
    assert "must end with one of" in capsys.readouterr().err


def test_a_plot_without_matplotlib(tiny_moe, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["sweep-bench", "-m", str(tiny_moe), "--plot", "out.png"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: --plot needs matplotlib, which is not installed: pip install matplotlib\n"
