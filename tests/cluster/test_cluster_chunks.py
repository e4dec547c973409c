"""Sums of chunks that were made apart."""

from __future__ import annotations

import numpy as np
from cluster_nodes import TEXT, TINY

import ikq
from ikq.cluster.collecting import added
from ikq.statistics.calibrate import chunks_of, run_chunks


def test_states_are_added_as_chunks_are() -> None:
    """The sums of chunks apart, added in order, are those of one run to the last bit."""
    with ikq.Model.load(TINY, n_ctx=64) as model:
        windows = chunks_of(model, TEXT, n_ctx=64, chunks=5)
        with model.collect_activations(similarity=True) as together:
            for _ in run_chunks(model, windows, together):
                pass
        total = ikq.ActivationCollector(similarity=True).state()
        for i in range(windows.n):
            with model.collect_activations(similarity=True) as one:
                next(run_chunks(model, windows, one, first=i))
            total = added(total, one.state())
    expected = together.state()
    arrays = [state.pop("arrays") for state in (total, expected)]
    assert total == expected
    for (sums, counts), (expected_sums, expected_counts) in zip(*arrays, strict=True):
        np.testing.assert_array_equal(sums, expected_sums)
        np.testing.assert_array_equal(counts, expected_counts)
