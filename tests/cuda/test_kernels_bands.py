"""Rows of bands: `bands.cu` against the form as `rust/ikq-formats/src/lanes.rs` describes it, for blocks of every kind."""

import numpy as np
import pytest
from emulator import ORDERS, aligned, module, needs_gxx

pytestmark = needs_gxx

LANES = 16


def packed(rows, n_blocks, block, header, front, run):
    """The bands of rows (`n_rows` times bytes), 0xEE where nothing belongs."""
    n_words = (block - front) // 4
    back = block - front - 4 * n_words
    halves = [(at, 2) for at, n in ((0, front), (block - back, back)) if n >= 2]
    odd = [(at + n - 1, 1) for at, n in ((0, front), (block - back, back)) if n % 2]
    words = [(front + 4 * w, 4) for w in range(n_words)]
    out = []
    for first in range(0, len(rows), LANES):
        band = bytearray(rows[first : first + LANES].shape[1] * LANES)
        band = np.full(-(-len(band) // 64) * 64, 0xEE, np.uint8)
        at = 0
        step = run or n_blocks
        for begin in range(0, n_blocks, step):
            blocks = range(begin, min(begin + step, n_blocks))
            kinds = [halves + odd, words] if run else [words, halves + odd]
            for kind in kinds:
                for b in blocks:
                    for piece, n in kind:
                        for lane, row in enumerate(rows[first : first + LANES]):
                            from_ = header + b * block + piece
                            band[at + lane * n : at + (lane + 1) * n] = row[from_ : from_ + n]
                        at += LANES * n
        for head in range(0, header, 4):
            n = min(4, header - head)
            for lane, row in enumerate(rows[first : first + LANES]):
                band[at + lane * n : at + (lane + 1) * n] = row[head : head + n]
            at += LANES * n
        out.append(band)
    return np.concatenate(out)


# bytes of a block and of a header, and of a block in front of its words: what types have, and all that there may be
FORMS = [
    (block, header, front, run)
    for block, front in (
        (18, 2),
        (34, 2),
        (20, 0),
        (17, 1),
        (66, 2),
        (210, 0),
        (110, 2),
        (56, 0),
        (13, 0),
        (3, 0),
        (14, 3),
        (15, 2),
        (11, 1),
    )
    for header in (0, 2, 4, 6, 8)
    for run in (0, 8)
    if run == 0 or block < 40
]


@pytest.mark.parametrize("n_rows", [16, 40])
def test_rows_of_bands(n_rows):
    rng = np.random.default_rng(5)
    kernels = module('#include "bands.cu"\n')
    for i, (block, header, front, run) in enumerate(FORMS):
        n_blocks, n_matrices = (8, 2) if i % 2 else (19, 1)  # whole runs, and one that is not
        n = header + n_blocks * block
        rows = rng.integers(0, 256, (n_matrices, n_rows, n), dtype=np.uint8)
        bands = np.concatenate([packed(r, n_blocks, block, header, front, run) for r in rows])
        n_bands = -(-n_rows // LANES)
        given = aligned(bands.shape, np.uint8)
        given[...] = bands
        out = aligned((n_matrices, n_rows, n), np.uint8)
        band_bytes = bands.size // (n_bands * n_matrices)
        arguments = (n_rows, n_bands, band_bytes, n_blocks, block, header, front, run)
        grid = n_bands * n_matrices
        kernels.run("rows_of_bands", grid, 256, given, out, *arguments, order=ORDERS[i % len(ORDERS)])
        assert np.array_equal(out, rows), (block, header, front, run)
