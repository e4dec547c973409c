"""Errors planted in the attention of tiles, which values or sanitizers must see."""

import dataclasses
import functools

import numpy as np
import planted
import pytest
from attention_tiles import Case, Step
from emulator import CUDA, Module, Program, build, needs_gxx, only_in_full
from test_kernels_attention import text_of

pytestmark = needs_gxx

PROMPT = Case("f16", "f16", 4, 2, 64, 64, ("r64",), ((230, 41), (70, 1)), span=64)
WINDOW = Case("f16", "f16", 2, 1, 40, 40, ("r16",), ((150, 9), (40, 2)), window=90, cap=4.0, span=64)
LATENT = Case("f16", "f16", 6, 1, 96, 64, ("r16",), ((150, 2),), latent=True)
CODES = Case("q8_0", "q8_0", 4, 2, 64, 64, ("r64",), ((70, 20),))
CASES = {"prompt": PROMPT, "window": WINDOW, "latent": LATENT, "codes": CODES}


@functools.cache
def step_of(name):
    return Step(CASES[name])


def made(name, sanitizer=None, folder=CUDA):
    case = CASES[name]
    path = build(text_of(case.k, case.v), sanitizer, folder)
    return Program(path) if sanitizer else Module(path)


def is_right(name, module_, order):
    """Within the bound, and with the bits that columns have in other tiles."""
    step = step_of(name)
    want, slack = step.expected()
    y = step.results(module_, CASES[name].tiles[0], order=order)
    if not (np.abs(y - want) <= slack).all():
        return False
    part = (3, min(8, step.n_columns - 3)) if step.n_columns > 3 else (0, 1)
    apart = step.results(module_, CASES[name].tiles[0], part=part, order=order)
    return np.array_equal(apart, y[part[0] : part[0] + part[1]])


VALUES = [
    ("prompt", planted.KEYS_NOT_AWAITED),
    ("prompt", planted.VALUES_NOT_AWAITED),
    ("latent", planted.SUMS_NOT_SCALED),
    ("prompt", planted.POSITION_TOO_MANY),
    ("prompt", planted.MASK_NOT_APPLIED),
    ("prompt", planted.HEAD_MIXED_UP),
    ("prompt", planted.ROWS_THAT_ARE_NOT_SEEN),
    ("window", planted.POSITION_BEFORE_A_WINDOW),
    ("window", planted.NOT_ALIGNED_TO_A_PAGE),
    ("window", planted.SPLITS_OF_THE_FIRST_COLUMN),
    ("window", planted.CAP_NOT_SCALED),
    ("window", planted.PART_OF_KEYS_MIXED_UP),
    ("window", planted.ENDS_NOT_CLEARED),
    ("latent", planted.LATENT_KEYS_OVER_THE_SAME),
]


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_wrong_without_them(name):
    assert all(is_right(name, made(name), order) for order in (0, 1, 5))


@only_in_full
@pytest.mark.parametrize(("name", "error"), VALUES)
def test_errors_change_results(name, error):
    with planted.planted(error) as folder:
        wrong = made(name, folder=folder)
        assert not all(is_right(name, wrong, order) for order in (0, 1, 5))


RACES = [
    ("codes", planted.BARRIER_OF_KEYS),
    ("codes", planted.BARRIER_OF_VALUES),
    ("latent", planted.BARRIER_OF_LARGEST_SCORES),
]


@only_in_full
@pytest.mark.parametrize(("name", "error"), RACES)
def test_missing_barriers_are_races(name, error):
    tile = CASES[name].tiles[0]
    right = made(name, "thread")
    for order in (0, 1, 5):
        assert step_of(name).partial(right, tile, order=order)[0] == 0, right.report[:3000]
    with planted.planted(error) as folder:
        wrong = made(name, "thread", folder)
        assert any(step_of(name).partial(wrong, tile, order=order)[0] for order in (0, 1, 5))
        assert "data race" in wrong.report


ENDS = [("prompt", planted.ROWS_OF_OTHERS), ("prompt", planted.ROWS_THAT_ARE_NOT_SEEN)]


@only_in_full
@pytest.mark.parametrize(("name", "error"), ENDS)
def test_accesses_behind_the_end_are_seen(name, error):
    step, tile = last_page(step_of(name)), CASES[name].tiles[0]
    right = made(name, "address")
    assert step.partial(right, tile)[0] == 0, right.report[:3000]
    with planted.planted(error) as folder:
        wrong = made(name, "address", folder)
        assert step.partial(wrong, tile)[0]
        assert "heap-buffer-overflow" in wrong.report


def last_page(step):
    """The step with a cache that ends behind the last row that is seen, and with no room behind its results."""
    case = dataclasses.replace(step.case, n_kv=1, n_heads=2, runs=((70, 5),))
    short = Step(case)
    assert short.n_pages == 1
    short.k_cache, short.v_cache = (c[:, :, :75].copy() for c in (short.k_cache, short.v_cache))
    return short
