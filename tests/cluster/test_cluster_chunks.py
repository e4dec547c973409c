"""Chunks that were run apart, put together without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cluster_nodes import TEXT, TINY

import ikq
from ikq.cluster import collecting
from ikq.cluster.collecting import Collecting, collect_on_cluster
from ikq.cluster.files import NodeFile, NodeModel
from ikq.cluster.growing import Growing
from ikq.cluster.rates import ChunkRates
from ikq.cluster.sums import NodeSums
from ikq.evaluate import Windows
from ikq.statistics.calibrate import chunks_of, run_chunks


@pytest.fixture(scope="module")
def windows() -> Windows:
    with ikq.Model.load(TINY, n_ctx=64) as model:
        return chunks_of(model, TEXT, n_ctx=64, chunks=5)


@pytest.fixture(scope="module")
def states(windows: Windows) -> list[dict[str, Any]]:
    """What a collector has seen of each chunk."""
    found = []
    with ikq.Model.load(TINY, n_ctx=64) as model:
        for i in range(windows.n):
            with model.collect_activations(similarity=True) as one:
                next(run_chunks(model, windows, one, first=i))
            found.append(one.state())
    return found


@pytest.fixture(scope="module")
def together(windows: Windows) -> ikq.ActivationCollector:
    """A collector that has seen all chunks in one run."""
    with ikq.Model.load(TINY, n_ctx=64) as model, model.collect_activations(similarity=True) as collector:
        for _ in run_chunks(model, windows, collector):
            pass
    return collector


def check_same(found: ikq.ActivationCollector, expected: ikq.ActivationCollector) -> None:
    """Two collectors have the same, to the last bit."""
    states = found.state(), expected.state()
    arrays: list[Any] = [state.pop("arrays") for state in states]
    assert states[0] == states[1]
    for (sums, counts), (expected_sums, expected_counts) in zip(*arrays, strict=True):
        np.testing.assert_array_equal(sums, expected_sums)
        np.testing.assert_array_equal(counts, expected_counts)
    ours, theirs = found.statistics("text"), expected.statistics("text")
    assert (ours.n_chunks, ours.chunk_size, list(ours)) == (theirs.n_chunks, theirs.chunk_size, list(theirs))
    for name, entry in theirs.items():
        np.testing.assert_array_equal(ours[name].sums, entry.sums)
        np.testing.assert_array_equal(ours[name].counts, entry.counts)
    assert found.layer_similarity() == expected.layer_similarity()


def test_states_are_added_as_chunks_are(
    states: list[dict[str, Any]], together: ikq.ActivationCollector
) -> None:
    """The sums of chunks apart, added in order, are those of one run; what nodes sent stays as it is."""
    total = NodeSums(similarity=True)
    for state in states:
        for sums, counts in state["arrays"]:
            # as it comes from Ray
            sums.flags.writeable = counts.flags.writeable = False
        total.add(state)
    check_same(total, together)


def test_sums_go_on_from_a_saved_state(
    states: list[dict[str, Any]], together: ikq.ActivationCollector
) -> None:
    begun, total = NodeSums(similarity=True), NodeSums(similarity=True)
    for state in states[:2]:
        begun.add(state)
    # what is overwritten must leave nothing
    total.add(states[4])
    total.restore(begun.state())
    for state in states[2:]:
        total.add(state)
    check_same(total, together)


def test_sums_go_into_the_core_only_where_they_are_asked_for(
    states: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the statistics of many chunks; saving what an interrupted run leaves needs no copy at all."""
    times: list[int] = []
    restore = ikq.ActivationCollector.restore

    def counted(collector: ikq.ActivationCollector, state: dict[str, object]) -> None:
        times.append(1)
        restore(collector, state)

    monkeypatch.setattr(ikq.ActivationCollector, "restore", counted)
    total = NodeSums()
    for state in states:
        total.add(state)
    held = total.state()
    assert not times
    total.statistics()
    total.statistics()
    assert len(times) == 1
    kept: Any = held["arrays"]
    total.add(states[0])
    new: Any = total.state()["arrays"]
    assert all(a is b for (a, _), (b, _) in zip(kept, new, strict=True))


def test_a_chunk_is_in_the_sums_when_it_is_counted(
    windows: Windows, together: ikq.ActivationCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run has none that it did not count, and perplexities are those of one machine."""

    def run_here(job: Collecting, first: int, n: int, address: str, **_: object) -> Iterator[Any]:
        run = job(["a"])
        yield from map(run, range(first, n))

    monkeypatch.setattr(collecting, "chunk_values", run_here)
    with ikq.Model.load(TINY, n_ctx=64) as model, model.collect_activations() as collector:
        expected = list(run_chunks(model, windows, collector))
    job = Collecting(NodeModel(NodeFile.model(TINY), {"n_ctx": 64}, ()), {"similarity": True}, windows, True)
    total = NodeSums(similarity=True)
    for i, done in enumerate(collect_on_cluster(job, total, "local")):
        assert total.n_chunks == i
        assert done.take is not None
        done.take()
        assert done.perplexity == expected[i].perplexity
        np.testing.assert_array_equal(done.losses, expected[i].losses)
    check_same(total, together)


def test_growing_arrays() -> None:
    rng = np.random.default_rng(0)
    pieces = [rng.standard_normal(n) for n in (3, 0, 1, 40, 2, 500)]
    growing = Growing(pieces[0])
    views = [growing.add(piece) for piece in pieces[1:]]
    for i, view in enumerate(views):
        np.testing.assert_array_equal(view, np.concatenate(pieces[: i + 2]))
    with pytest.raises(ValueError, match="read-only"):
        views[0][0] = 1
    assert len(Growing().add(pieces[3])) == 40


def test_rates_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node's rate is that of the time in which it ran chunks."""
    now = [0.0]
    # the module's own clock: event loops of other threads would sleep for ever by one that stands still
    monkeypatch.setattr("ikq.cluster.rates.time", SimpleNamespace(monotonic=lambda: now[0]))
    notes: list[str] = []
    rates = ChunkRates(100, notes.append)
    assert rates.summary() is None
    for node, seconds in (("b", 0.5), ("a", 2.0), ("b", 0.5)):
        rates.add(node, seconds)
        rates.tell()
    assert notes == []
    now[0] = 11
    rates.tell()
    assert notes == ["cluster: a 50.0 tokens/s, b 200.0 tokens/s"]
    now[0] = 22
    rates.add("a", 1.0)
    rates.tell()
    assert notes[1:] == ["cluster: a 100.0 tokens/s"]
    assert rates.summary() == "cluster: chunks by node: a 2 (66.7 tokens/s), b 2 (200.0 tokens/s)"
