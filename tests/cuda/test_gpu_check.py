"""`tools/gpu_check.py`, the command that whoever has a GPU runs, with the stand-ins in front."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from emulator import needs_gxx, only_in_full
from standin import environment
from weights import TYPES

pytestmark = needs_gxx

CHECK = Path(__file__).parents[2] / "tools/gpu_check.py"
GROUPS = ("environment", "recurrent", "latency", "steps", "timings", "model")


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
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    return done, json.loads(out.read_text())["rows"]


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


def test_without_a_gpu_it_says_so(tmp_path):
    env = environment(IKQ_NVRTC="/nowhere/libnvrtc.so")
    env.pop("LD_LIBRARY_PATH")
    done, rows = check(env, tmp_path / "out.json")
    assert done.returncode == 1
    failed = {row["group"] for row in rows if not row["ok"]}
    assert failed == set(GROUPS), "nothing can be checked"
    assert f"{len(failed)} failed" in done.stdout
