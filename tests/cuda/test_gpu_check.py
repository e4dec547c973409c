"""`tools/gpu_check.py`, the command that whoever has a GPU runs, with the stand-ins in front."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from emulator import CUDA, FULL, needs_gxx, only_in_full
from standin import environment
from weights import TYPES

pytestmark = needs_gxx

CHECK = Path(__file__).parents[2] / "tools/gpu_check.py"
GROUPS = ("environment", "peaks", "recurrent", "latency", "steps", "timings", "model")


def check(env, out, *more, timeout=600):
    command = [
        sys.executable,
        str(CHECK),
        "--out",
        str(out),
        "--only",
        ",".join(GROUPS),
        "--budget-s",
        "1100",
        *more,
    ]
    # the same numbers every time, so that what fails can be repeated
    env = {"IKQ_CHECK_SEED": "12"} | env
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    # what others are bounded by is measured before them, whether it was asked for or not
    asked = command[len(command) - 1 - command[::-1].index("--only") + 1].split(",")
    return done, [row for row in json.loads(out.read_text())["rows"] if row["group"] in asked]


def test_all_is_well_on_the_stand_in(tmp_path):
    done, rows = check(environment(), tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["group"] for row in rows} == set(GROUPS)
    assert all(row["ok"] for row in rows)
    assert {row["name"] for row in rows} >= {"logits IQ4_KS", "logits with rotated q4_0 caches"}
    assert f"{len(rows)} rows, 0 failed" in done.stdout
    told = {row["name"]: row for row in rows}
    replayed, launched = (told[f"step of 8, 2 layers, {how}"] for how in ("replayed", "launched"))
    assert (replayed["launches"], replayed["replays"]) == (0, 1)
    assert launched["launches"] > 20 > launched["replays"] == 0


@only_in_full
@pytest.mark.timeout(3600)
def test_every_type_is_well(tmp_path):
    """Groups whose kernels the stand-in compiles for minutes."""
    done, rows = check(
        environment(),
        tmp_path / "out.json",
        "--only",
        "compile,weights,products",
        "--budget-s",
        "3000",
        timeout=3300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["name"].split()[1] for row in rows} >= {name.upper() for name in TYPES}
    assert all(row["ok"] for row in rows), [row for row in rows if not row["ok"]]


@pytest.mark.timeout(1800)
def test_many_columns_on_the_stand_in(tmp_path):
    """Every expert's tokens, in groups around the sizes of tiles, have the bits that they have alone."""
    more = ("--only", "experts,prompts", "--budget-s", "1700")
    done, rows = check(environment(), tmp_path / "out.json", *more, timeout=1750)
    assert done.returncode == 0, done.stdout + done.stderr
    experts = "experts IQ4_KS/Q6_K/Q4_0"
    assert {row["name"] for row in rows} == {
        f"{experts}, the bits of single tokens",
        f"{experts}, against vectors",
        "prompt of 40, IQ4_KS, 2 layers, fused",
    }


@pytest.mark.timeout(1800)
def test_attention_on_the_stand_in(tmp_path):
    done, rows = check(
        environment(), tmp_path / "out.json", "--only", "attention", "--budget-s", "1700", timeout=1750
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["name"] for row in rows} == {
        "attention f16, a prompt",
        "attention f16, pieces and tokens",
        "attention f16, a prompt, all in tiles",
        "attention f16, pieces and tokens, all in tiles",
        "attention f16, the same bits in pieces",
        "attention f16, 28 more positions, prompt of 12",
        "attention f16, 28 more positions, token",
    }


def test_experts_in_ram_on_the_stand_in(tmp_path):
    done, rows = check(environment(), tmp_path / "out.json", "--only", "hybrid")
    assert done.returncode == 0, done.stdout + done.stderr
    told = {row["name"]: row for row in rows}
    assert told["copied experts: the bits of those on the GPU"]["ok"]
    assert {"prompt of 16, experts in RAM, copied", "prompt of 16, experts in RAM, on the CPU"} <= set(told)
    assert any(name.startswith("copying is quicker from: ") for name in told)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n_gpus", [1, 2])
def test_features_on_the_stand_in(tmp_path, n_gpus):
    env = environment(IKQ_STANDIN_DEVICES=str(n_gpus))
    done, rows = check(env, tmp_path / "out.json", "--only", "features", "--budget-s", "1700", timeout=1750)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {row["name"]: row for row in rows}
    assert list(told) == [
        "the 8 largest logits of each token",
        "a text with drafts",
        "step of 1, bits that depend on no step",
        "step of 4, bits that depend on no step",
        "two GPUs: the bits of one",
    ]
    assert ("why" in told["two GPUs: the bits of one"]) == (n_gpus == 1)


@pytest.mark.timeout(1800)
def test_figures_on_the_stand_in(tmp_path):
    """Both shapes, with few and small layers: every plan, with the experts in RAM, and behind a text."""
    more = ("--only", "figures", "--layers", "2", "--budget-s", "1700")
    done, rows = check(environment(), tmp_path / "out.json", *more, timeout=1750)
    assert done.returncode == 0, done.stdout + done.stderr
    models = ("qwen3-30b-a3b IQ4_KS x2", "gpt-oss-20b MXFP4 x2")
    places = ("fused", "separate", "merged", "experts in RAM")
    assert [row["name"] for row in rows] == [
        name
        for model in models
        for name in (
            *(f"{test} {model}, {place}" for place in places for test in ("pp12", "tg")),
            f"pp12 {model}, behind 24",
            f"tg {model}, behind 36",
        )
    ]
    assert all(row["tokens_per_s"] > 0 for row in rows)


QUALITY = {
    "statistics": (
        *(
            f"statistics BF16, {what}: {test}"
            for what in ("chosen experts", "all experts")
            for test in (
                "the bits of logits without a collector",
                "complete, 17 tensors",
                "counts of tensors and experts",
                "sums",
            )
        ),
        "statistics BF16, all experts: each has every token",
        *(
            f"statistics IQ4_KS, {how}: {test}"
            for how in ("fused", "separate")
            for test in ("the bits of logits without a collector", "complete, 17 tensors", "sums")
        ),
    ),
    "quality": tuple(
        f"{what} {t}{more}"
        for t in ("BF16", "IQ4_KS")
        for what, more in (("perplexity", ": each token's part"), ("perplexity", ""), ("KL divergence", ""))
    ),
}


@pytest.mark.timeout(1800)
def test_statistics_and_quality_on_the_stand_in(tmp_path):
    done, rows = check(environment(), tmp_path / "out.json", "--only", "statistics,quality")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(row["name"] for row in rows) == sorted(QUALITY["statistics"] + QUALITY["quality"])


def planted(folder, env, name, old, new):
    """The variables with which a file of the kernels has an error."""
    shutil.copytree(CUDA, folder / "cuda", ignore=shutil.ignore_patterns("standin"))
    file = folder / "cuda" / name
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    # headers that are included by name only are found beside the planted one
    return env | {"IKQ_CUDA_SRC": str(folder / "cuda"), "IKQ_CACHE_DIR": str(folder / "cubins")}


# what a collector sees of codes only; one expert for another; what is left out of a gate
ERRORS = {
    "observed": ("glu.cuh", "y[column * n_rows + row] = x;", "y[column * n_rows + row] = q ? 1.03f * x : x;"),
    "chosen": ("router.cu", "return at;", "return at ^ 1;"),
    "computed": ("glu.cuh", "return up * gate / (1.0f +", "return up * gate / (1.1f +"),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("error", ERRORS if FULL else ["observed", "computed"])
def test_wrong_statistics_and_quality_are_seen(tmp_path, error):
    env = planted(tmp_path, environment(), *ERRORS[error])
    done, rows = check(env, tmp_path / "out.json", "--only", "statistics,quality")
    assert done.returncode == 1
    failed = {row["name"] for row in rows if not row["ok"]}
    if error == "observed":
        # logits have the same bits, and floats are no codes
        assert failed == {f"statistics IQ4_KS, {how}: sums" for how in ("fused", "separate")}
        return
    assert failed >= {"perplexity BF16: each token's part", "KL divergence BF16"}
    # of all experts, whichever are chosen
    wrong = "chosen experts: counts of tensors and experts" if error == "chosen" else "all experts: sums"
    assert f"statistics BF16, {wrong}" in failed
    assert not {name for name in failed if name.endswith("the bits of logits without a collector")}


def test_what_a_token_reads_and_computes(tmp_path, monkeypatch):
    """Of experts only those that are used; no embedding but the token's own."""
    monkeypatch.syspath_prepend(str(CHECK.parent))
    figures, models = importlib.import_module("gpu_figures"), importlib.import_module("gpu_models")
    shape = figures.SHAPES["gpt-oss-20b"]
    small = replace(
        shape, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_expert=8, n_used=2, n_ff_expert=256
    )
    figures.write(tmp_path / "model.gguf", small, 2, 512, "Q8_0")
    attention, experts = 256 * 256 * 2 + 2 * 128 * 256, 2 * 3 * 256 * 256
    assert models.products_of_a_token(tmp_path / "model.gguf", small) == 2 * 2 * (
        attention + experts + 8 * 256
    )
    weights = (2 * (attention + experts) + 512 * 256) * 34 // 32 + 2 * 4 * 8 * 256
    n_bytes = models.bytes_of_a_token(tmp_path / "model.gguf", small)
    # norms, biases and sinks besides
    assert weights < n_bytes < 1.03 * weights
    # a window of 128 positions in every other layer; keys and values of two heads of 64 halves
    assert figures.cache_bytes(small, 2, 1000) == (128 + 1000) * 2 * 2 * 64 * 2


def test_cublas_on_the_stand_in(tmp_path):
    done, rows = check(environment(), tmp_path / "out.json", "--only", "cublas")
    assert done.returncode == 0, done.stdout + done.stderr
    told = {row["name"]: row for row in rows}
    assert {"cuBLAS 13.1.2", "logits by cuBLAS, against tiles", "IQ4_KS 64x256, 65 columns, tiles"} <= set(
        told
    )
    # two roundings of a sum
    assert all(
        row["error"] < 1e-7 for name, row in told.items() if name.startswith("cuBLAS") and "error" in row
    )
    done, rows = check(environment(IKQ_CUBLAS="/nowhere"), tmp_path / "out.json", "--only", "cublas")
    assert (done.returncode, len(rows)) == (0, 1)
    assert "not checked: there is no cuBLAS" in rows[0]["why"]


LLAMA_BENCH = """#!{python}
import json, sys
from pathlib import Path
calls = Path({calls!r})
calls.write_text(calls.read_text() + json.dumps(sys.argv[1:]) + "\\n")
def of(option):
    return sys.argv[sys.argv.index(option) + 1]
assert Path(of("-m")).read_bytes()[:4] == b"GGUF"
if len(calls.read_text().splitlines()) > {works}:
    sys.exit("error: unknown type of a tensor")
print("found 1 device:\\n  Device 0: a card")
tests = [(int(n), 0) for n in of("-p").split(",")] + [(0, int(n)) for n in of("-n").split(",")]
print(json.dumps([dict(n_prompt=p, n_gen=g, avg_ns=1, avg_ts=100.0 + p + g, stddev_ts=0.5) for p, g in tests]))
"""


def reference(folder, works):
    """A script that answers as llama-bench does, so many times, and a list of what it was asked."""
    calls, script = folder / "calls", folder / "llama-bench"
    calls.write_text("")
    script.write_text(LLAMA_BENCH.format(python=sys.executable, calls=str(calls), works=works))
    script.chmod(0o755)
    return script, lambda: [json.loads(line) for line in calls.read_text().splitlines()]


def test_a_reference_on_the_same_models(tmp_path):
    script, calls = reference(tmp_path, 3)
    more = ("--only", "compare", "--compare", str(script), "--compare-args", "-fa 1 -fmoe 1")
    done, rows = check(environment(), tmp_path / "out.json", *more)
    # it reads one type of two, and fails at the second model's second place
    assert done.returncode == 1
    assert [row["name"] for row in rows] == [
        f"{test} {t}{where}"
        for t in ("IQ4_KS", "Q4_K")
        for where in ("", ", experts in RAM")
        for test in ("pp12", "tg3")
    ]
    assert [row["ok"] for row in rows] == [True] * 6 + [False] * 2
    for row in rows[:6]:
        assert row["reference"] == 100 + int(row["name"][2:].split()[0])
        assert row["ikq"] > 0
        assert row["us"] / row["bound_us"] == pytest.approx(row["reference"] / row["ikq"])
    assert all("unknown type of a tensor" in row["why"] and "reference" not in row for row in rows[6:])
    asked = calls()
    assert [call[call.index("-ngl") + 1 :][-2:] for call in asked] == [
        ["-fmoe", "1"],
        ["-ot", "exps=CPU"],
        ["-fmoe", "1"],
        ["-ot", "exps=CPU"],
    ]
    assert all(call[2:6] == ["-p", "12", "-n", "3"] for call in asked)
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("tokens per second"))
    assert re.fullmatch(r"pp12 IQ4_KS +[0-9.]+ +112\.0 +[0-9.]+", lines[at + 1])
    assert re.fullmatch(r"tg3 Q4_K, experts in RAM +[0-9.]+ +- +-  the reference: .*", lines[at + 8])


def test_without_a_gpu_it_says_so(tmp_path):
    env = environment(IKQ_NVRTC="/nowhere/libnvrtc.so")
    env.pop("LD_LIBRARY_PATH")
    done, rows = check(env, tmp_path / "out.json")
    assert done.returncode == 1
    assert [row["name"] for row in rows if not row["ok"]] == ["environment"]
    (told,) = (line for line in done.stdout.splitlines() if line.startswith("FAIL environment"))
    assert "pip install" in told, "the reason and the way out"
    assert f"Not started, as no GPU can be used: {', '.join(GROUPS[1:])}." in done.stdout


def test_a_group_that_is_none(tmp_path):
    command = [
        sys.executable,
        str(CHECK),
        "--only",
        "environment,nonsense",
        "--out",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("--only nonsense: no such group; there are environment, peaks, compile, ")


@pytest.mark.parametrize(
    "flags", [("--out", "/nonexistent/x.json"), ("--compare", "/nonexistent/llama-bench"), ("--only", "")]
)
def test_what_cannot_be_is_told_at_once(tmp_path, flags):
    """Before a minute of a GPU is spent."""
    out = () if flags[0] == "--out" else ("--out", str(tmp_path / "out.json"))
    done = subprocess.run([sys.executable, str(CHECK), *out, *flags], capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert flags[0] in done.stderr
    assert "Traceback" not in done.stderr
