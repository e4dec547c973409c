"""Runs of probes on nodes, one of which dies: recipes have the bytes of one machine."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_nodes import DATA, TEXT, TINY, add_node, attached, cluster, ignores_warnings

import ikq
from ikq.__main__ import main
from ikq.cluster import PathRule, chunks, probe_on_cluster, probing
from ikq.cluster.rates import ChunkRates
from ikq.recipes.probes import Probes, probe
from ikq.recipes.problem import parse_types
from ikq.recipes.recipe import Budget, Recipe, make_recipe

pytestmark = ignores_warnings

# fixtures of other modules are found by their names here
__all__ = ["attached", "cluster"]

IMATRIX = DATA / "imatrix-plain.dat"
FEW = "q8_0,q6_k,q5_k,q4_k,q3_k,q2_k"
N_RUNS = 6


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe(TINY, IMATRIX, Budget(bpw=4), types=parse_types([FEW]))


@pytest.fixture(scope="module")
def alone(recipe: Recipe) -> Probes:
    return probe(recipe, TEXT, N_RUNS, n_windows=2, n_ctx=64)


def words(out: Path, *more: object) -> list[str]:
    """`ikq recipe --probe` about `TEXT`, which is written beside the output, with one thread."""
    text = out.with_name("text.txt")
    text.write_text(TEXT)
    given = ("--imatrix", IMATRIX, "--bpw", 4, "--types", FEW, "-t", 1, "-o", out)
    return ["recipe", str(TINY), *map(str, (*given, "--probe", N_RUNS, "-f", text, "--chunks", 1, *more))]


def nodes(monkeypatch: pytest.MonkeyPatch, names: list[list[str]]) -> list[chunks.Opener]:
    """Puts actors with these names in the place of a cluster; they take turns. What they were sent."""
    sent: list[chunks.Opener] = []

    def values(opener: chunks.Opener, first: int, n: int, address: str, **_: object) -> Iterator[Any]:
        del address
        # jobs travel
        sent.append(pickle.loads(pickle.dumps(opener)))
        runners = [chunks.Runner(sent[-1]) for _ in names]
        for i in range(first, n):
            which = i % len(names)
            monkeypatch.setattr(chunks, "node_names", lambda which=which: names[which])
            result = runners[which].run(i)
            if result.failure is not None:
                raise result.failure.exception()
            yield result.value

    monkeypatch.setattr(probing, "chunk_values", values)
    return sent


def test_nodes_measure_what_one_machine_measures(
    recipe: Recipe, alone: Probes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every bit; runs come in order, and no file is left, neither here nor where a node has no such folder."""
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(there))
    folder = tmp_path / "here"
    folder.mkdir()
    told: list[tuple[int, float, float]] = []
    made: list[Path] = []
    make = probing.Meter

    def noted(mixes: Any, source: Any, imatrix: Any, scratch: Path, n_threads: Any) -> Any:
        made.append(scratch.parent)
        return make(mixes, source, imatrix, scratch, n_threads)

    monkeypatch.setattr(probing, "Meter", noted)
    nodes(monkeypatch, [["a"], ["b"]])
    found = probe_on_cluster(
        recipe,
        TEXT,
        N_RUNS,
        "local",
        n_windows=2,
        n_ctx=64,
        folder=folder,
        path_map=[PathRule("b", str(folder), str(tmp_path / "nowhere"))],
        progress=lambda *row: told.append(row),
    )
    np.testing.assert_array_equal(found.measured, alone.measured)
    np.testing.assert_array_equal(found.predicted, alone.predicted)
    np.testing.assert_array_equal(found.costs.divergence, alone.costs.divergence)
    assert found.lines() == alone.lines()
    assert [row[0] for row in told] == list(range(1, N_RUNS + 1))
    assert len(set(alone.measured)) == N_RUNS
    # each has made its files once
    assert made == [folder, there]
    assert list(folder.iterdir()) == list(there.iterdir()) == []


@pytest.mark.parametrize("wrong", ["m.gguf", "i.dat"])
def test_a_node_with_another_model_or_imatrix_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    """Files of the same size of which one byte differs; nothing is made before they are looked at."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        shutil.copy(TINY, folder / "m.gguf")
        shutil.copy(IMATRIX, folder / "i.dat")
    with (there / wrong).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    monkeypatch.setattr(probing, "Meter", None)
    nodes(monkeypatch, [["b", "10.0.0.2"]])
    mix = make_recipe(here / "m.gguf", here / "i.dat", Budget(bpw=6), types=parse_types(["q8_0,q4_0"]))
    rules = [PathRule("10.0.0.2", str(here), str(there))]
    with pytest.raises(ikq.RefusedError, match=f"node b: {there / wrong} is not what the driver has"):
        probe_on_cluster(mix, TEXT, N_RUNS, "local", n_ctx=64, path_map=rules)
    (there / wrong).unlink()
    with pytest.raises(FileNotFoundError, match="on node b"):
        probe_on_cluster(mix, TEXT, N_RUNS, "local", n_ctx=64, path_map=rules)


def test_two_nodes_one_of_which_dies(
    attached: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third node is killed when its first result is there, with the next one in hand."""
    expected, out = tmp_path / "alone.txt", tmp_path / "r.txt"
    n_runs = ("--probe", 16)
    assert main(words(expected, *n_runs)) == 0
    shown = capsys.readouterr()
    doomed = add_node(attached, "c")
    measured: list[str] = []
    count = ChunkRates.add

    def kill_and_count(rates: ChunkRates, node: str, seconds: float) -> None:
        if node == "c" and "c" not in measured:
            attached.remove_node(doomed, allow_graceful=False)
        measured.append(node)
        count(rates, node, seconds)

    monkeypatch.setattr(ChunkRates, "add", kill_and_count)
    assert main(words(out, *n_runs, "--cluster", attached.address)) == 0
    found = capsys.readouterr()
    assert out.read_text() == expected.read_text().replace("alone.txt", "r.txt")
    assert found.out == shown.out
    # what was measured in each run, in order, and what follows from it; Ray has words of its own there
    expected_lines = shown.err.splitlines()
    assert [line for line in found.err.splitlines() if line in expected_lines] == expected_lines
    # the others had work to do yet
    assert measured.index("c") < len(measured) - 2
    assert {"a", "b"} <= set(measured)
    assert "cluster: runs by node: a " in found.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.txt", "r.txt", "text.txt"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--cluster", "auto", "--probe", "4", "-f", "t.txt"], "HOST:PORT"),
        (["--path-map", "/a=/b"], "is for --cluster"),
        (["--cluster", "local"], "is for --probe"),
    ],
)
def test_refusals(more: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", str(TINY), "--imatrix", str(IMATRIX), "--bpw", "4", *more]) == 2
    assert says in capsys.readouterr().err
