"""Which windows runs of probes see."""

import numpy as np
import pytest

from ikq.recipes.probes import spread_windows


def test_windows_lie_evenly_over_the_whole_text() -> None:
    tokens = np.arange(100 * 16 + 5, dtype=np.int32)
    found = spread_windows(tokens, 4, 16).reshape(4, 16)
    # each is a window as a whole cut has them, from the middle of its quarter
    assert [int(w[0]) // 16 for w in found] == [12, 37, 62, 87]
    for window in found:
        np.testing.assert_array_equal(window, np.arange(window[0], window[0] + 16))
        assert window[0] % 16 == 0


@pytest.mark.parametrize("n", [5, 16, 16 * 8, 16 * 8 + 3])
def test_a_text_of_no_more_windows_stays_as_it_is(n: int) -> None:
    tokens = np.arange(n, dtype=np.int32)
    assert spread_windows(tokens, 8, 16) is tokens
