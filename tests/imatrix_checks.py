"""What tests of activation statistics share."""

import numpy as np

import ikq

TEXT = "".join(
    f"The function number {i} returns a list of the objects in module {i % 7}.\n" for i in range(60)
)


def collected(model, ids, **options):
    with model.collect_activations(**options) as collector:
        model.logits(ids)
    return collector.statistics()


def same(a, b, rtol=0.0):
    assert list(a) == list(b)
    for name in a:
        assert np.array_equal(a[name].counts, b[name].counts), name
        assert a[name].sums.shape == b[name].sums.shape
        # columns are compared with the largest one: a column may be all but zero
        limit = rtol * np.abs(a[name].sums).max()
        assert np.abs(a[name].sums - b[name].sums).max() <= limit, name


def entry(sums, counts):
    return ikq.ActivationEntry(np.atleast_2d(np.asarray(sums, np.float64)), np.asarray(counts, np.float64))
