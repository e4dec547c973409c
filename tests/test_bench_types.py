"""`ikq bench types`: what products of each type take, as a table and for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import ikq
from ikq.cli import run_command
from ikq.speed.type_speeds import COUNTS, kept_type_speeds


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is kept in the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ikq" / "type-speeds.json"


def test_programs_can_read_it(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "types", "--types", "q8_0,IQ2_XXS", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    isas = [name for name in ikq.available_isas() if name != "scalar"] or ["scalar"]
    assert [(r["isa"], r["type"], r["n"]) for r in rows] == [
        (isa, name, n) for isa in isas for name in ("Q8_0", "IQ2_XXS") for n in COUNTS
    ]
    for r in rows:
        assert set(r) == {"type", "isa", "n", "gmacs", "gbs"}
        bits = 8 * r["gbs"] * r["n"] / r["gmacs"]
        # in the device's form, which is a little larger than the file's
        assert ikq.QuantType[r["type"]].bpw * 0.99 < bits < ikq.QuantType[r["type"]].bpw * 1.3
    # two more columns are cheaper than a pass of their own
    q8 = {r["n"]: r["gmacs"] for r in rows if (r["isa"], r["type"]) == (isas[-1], "Q8_0")}
    assert q8[512] > q8[1]
    assert set(kept_type_speeds(n_threads=1, isa=isas[-1])) == {ikq.QuantType.Q8_0, ikq.QuantType.IQ2_XXS}
    assert cache.exists()


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    isa = ikq.available_isas()[-1]
    words = ["bench", "types", "--types", "legacy,-Q8_KV,-Q4_1,-Q5_0,-Q5_1,-Q6_0", "--isa", isa, "-t", "2"]
    assert run_command(words) == 0
    out = capsys.readouterr().out
    assert ", 2 threads" in out
    rows = [[c.strip() for c in x.strip("|").split("|")] for x in out.splitlines() if x.startswith("|")]
    assert rows[0] == ["type", "isa", "GB/s", *(f"n = {n}" for n in COUNTS)]
    assert [r[:2] for r in rows[2:]] == [["Q4_0", isa], ["Q8_0", isa]]
    assert "roofline: memory read at" in out
    assert set(kept_type_speeds(n_threads=2, isa=isa)) == {ikq.QuantType.Q4_0, ikq.QuantType.Q8_0}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--types", ""], 2),
        (["--types", "nothing"], 2),
        (["--isa", "mmx", "--types", "q8_0"], 1),
        (["--types", "q8_0", "-t", "0"], 2),
    ],
)
def test_refusals(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "types", *words]) == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_it_goes_beside_models(capsys: pytest.CaptureFixture[str], tiny_moe: Path) -> None:
    with pytest.raises(SystemExit) as e:
        run_command(["bench"])
    assert e.value.code == 2
    assert "-m/--model" in capsys.readouterr().err
    assert run_command(["bench", "-m", os.fspath(tiny_moe), "-p", "4", "-n", "0", "-r", "1", "-w", "0"]) == 0
    assert "pp4" in capsys.readouterr().out
