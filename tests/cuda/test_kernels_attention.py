"""Attention on tensor cores: every type and variant against double precision, and what bits do not depend on."""

import numpy as np
import pytest
from attention_tiles import Case, Step
from emulator import FULL, ORDERS, module, needs_gxx

pytestmark = needs_gxx

BOTH = ("r64", "r16")
# a prompt of several tiles over two pages, a token of another text, and a few of a third one
SOME = ((230, 41), (70, 1), (0, 3))
CASES = {
    "f16": Case("f16", "f16", 4, 2, 64, 64, BOTH, SOME),
    "eight heads of a key": Case("f16", "f16", 8, 1, 128, 128, BOTH, ((300, 9), (600, 1))),
    "one head": Case("f16", "f16", 3, 3, 80, 80, BOTH, ((0, 70),)),
    "odd sizes": Case("f16", "f16", 6, 2, 40, 24, BOTH, ((100, 30),)),
    "codes": Case("q8_0", "q4_0", 5, 1, 128, 96, BOTH, SOME, sinks=True),
    "windows": Case("f16", "q8_0", 4, 1, 64, 64, BOTH, ((700, 40), (90, 3)), window=100),
    "caps and gates": Case("f16", "q8_0", 2, 2, 96, 64, BOTH, SOME, cap=4.0, gate=True),
    "six bits": Case("q6_0", "iq4_nl", 2, 1, 64, 64, BOTH, ((10, 33),)),
    "mins": Case("q4_1", "q6_0", 2, 1, 32, 64, BOTH, ((10, 33),)),
    "table": Case("iq4_nl", "q4_1", 2, 1, 64, 32, BOTH, ((10, 33),)),
    "wide": Case("f16", "f16", 2, 1, 256, 256, ("w32", "w16"), ((240, 30), (33, 1)), cap=20.0),
    "wide codes": Case("q8_0", "q8_0", 2, 1, 192, 160, ("w32", "w16"), ((10, 30),), window=20),
    "latent": Case("f16", "f16", 20, 1, 576, 512, ("w16",), ((250, 4), (40, 1)), latent=True),
    "latent codes": Case("q8_0", "q8_0", 6, 1, 288, 256, ("w32", "w16"), ((50, 9),), latent=True),
}
QUICK = ("f16", "codes", "windows", "caps and gates", "wide", "latent")


def text_of(k, v):
    """Of a module with attention over caches of these types."""
    return f'#include "combine.cu"\n#define IKQ_TYPE {k}\n#define IKQ_VALUES {v}\n#include "attention_tiles.cu"\n'


@pytest.mark.parametrize("name", CASES if FULL else QUICK)
def test_attention_in_tiles(name):
    case = CASES[name]
    step, kernels = Step(case), module(text_of(case.k, case.v))
    want, slack = step.expected()
    # the bound is no excuse: it is far below what attention is about
    assert slack.max() < 0.05 * np.abs(want).max()
    found = {}
    for order in ORDERS if FULL else ORDERS[-1:]:
        for tile in case.tiles:
            y = found[tile, order] = step.results(kernels, tile, order=order)
            assert (np.abs(y - want) <= slack).all(), (tile, order, np.abs(y - want).max(), slack.max())
    bits = next(iter(found.values()))
    for of, y in found.items():
        assert np.array_equal(y, bits), of
    # columns that are computed apart stand in other tiles
    half = step.n_columns // 2
    for part in ((0, half), (half, step.n_columns - half), (step.n_columns - 1, 1)):
        y = step.results(kernels, case.tiles[0], part=part)
        assert np.array_equal(y, bits[part[0] : part[0] + part[1]]), part
