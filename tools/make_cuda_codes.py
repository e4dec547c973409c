#!/usr/bin/env python3
"""How kernels decode IQ5_K and IQ6_K without looking up tables of 32 and 64 values: the searches and their checks.

    python tools/make_cuda_codes.py

Prints constants of `cuda/types/iqk.cuh`. IQ5_K: three tables of eight numbers below 128, such that each value plus
127 is the sum of some of the three numbers at one of the eight places (`PATTERNS`). IQ6_K: coefficients of a polynomial of
the third degree that gives all 64 values, computed in half precision with every step rounded. A test holds the constants
in the file against what this program prints.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IQ5 = (-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6,
       -1, 5, 11, 17, 23, 29, 36, 43, 51, 59, 68, 77, 87, 97, 109, 121)  # fmt: skip
IQ6 = (-127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54,
       -51, -47, -44, -40, -37, -34, -31, -28, -25, -22, -19, -16, -13, -11, -8, -5,
       -2, 0, 3, 6, 9, 12, 14, 17, 20, 23, 27, 30, 33, 36, 40, 44,
       47, 51, 55, 59, 63, 68, 72, 77, 82, 87, 92, 98, 103, 109, 115, 121)  # fmt: skip
OFFSET = 127
# bits 4 and 3 of a code, and which of the numbers x, y and z are added for it
PATTERNS = {(1, 1): (1, 0, 0), (1, 0): (1, 1, 0), (0, 1): (1, 0, 1), (0, 0): (0, 1, 1)}
Numbers = tuple[int, int, int]


def sums(numbers: Numbers) -> list[int]:
    return [sum(n for n, used in zip(numbers, p, strict=True) if used) for p in PATTERNS.values()]


def candidates(wanted: frozenset[int]) -> dict[frozenset[int], Numbers]:
    """All sets of four values that three numbers give."""
    found: dict[frozenset[int], Numbers] = {}
    for x in (u for u in wanted if u < 128):
        others = [n for n in range(128) if x + n in wanted]
        for y in others:
            for z in others:
                four = frozenset(sums((x, y, z)))
                if len(four) == 4 and four <= wanted:
                    found.setdefault(four, (x, y, z))
    return found


def cover(wanted: frozenset[int], sets: dict[frozenset[int], Numbers]) -> list[Numbers] | None:
    """Eight of the sets that have each value once: the value with the fewest sets is tried first."""
    if not wanted:
        return []
    usable = {s: n for s, n in sets.items() if s <= wanted}
    rarest = min(sorted(wanted), key=lambda u: sum(u in s for s in usable))
    for s in sorted((s for s in usable if rarest in s), key=sorted):
        rest = cover(wanted - s, usable)
        if rest is not None:
            return [usable[s], *rest]
    return None


def codes(groups: list[Numbers]) -> list[int]:
    """The device form's code for each of the file's."""
    of_value = {
        u: b << 4 | n << 3 | i
        for i, numbers in enumerate(groups)
        for (b, n), u in zip(PATTERNS, sums(numbers), strict=True)
    }
    return [of_value[v + OFFSET] for v in IQ5]


def words(numbers: list[int]) -> str:
    raw = bytes(numbers)
    return ", ".join(f"0x{int.from_bytes(raw[i : i + 4], 'little'):08x}u" for i in range(0, len(raw), 4))


Half = np.float16
Halves = np.ndarray[tuple[int, ...], np.dtype[np.float16]]


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Halves:
    """a * b + c of halves, rounded once: doubles hold it exactly, as the numbers here are of similar sizes."""
    x, y, z = (np.asarray(v, np.float64) for v in (a, b, c))
    return np.asarray(x * y + z, Half)


def polynomial(
    factor: Half, minus: int, coefficients: tuple[Half, Half, Half], first: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """What the kernels compute for codes 0 to 63: the values that their bits have in the end."""
    x = fma(np.arange(1024, 1088), factor, -minus)
    y = fma(fma(coefficients[2], x, coefficients[1]), x, coefficients[0])
    return fma(y, x, 1536 + first).astype(np.int64) - 1536


def search(seed: int = 1) -> tuple[Half, int, tuple[Half, Half, Half], int]:
    """Near fits of least squares, for many places of the zero of x, until one gives the table."""
    rng = np.random.default_rng(seed)
    table = np.array(IQ6)
    while True:
        factor, minus, first = (
            Half(1 + rng.integers(-10, 11) / 1024),
            int(rng.integers(1053, 1062)),
            int(rng.integers(-9, 9)),
        )
        x = fma(np.arange(1024, 1088), factor, -minus).astype(np.float64)
        powers = np.stack([x, x**2, x**3], 1)
        fit = np.linalg.lstsq(powers, table - first, rcond=None)[0]
        if np.abs(powers @ fit + first - table).max() > 0.7:
            continue
        for _ in range(300):
            near = fit * (1 + rng.uniform(-1, 1, 3) * (0.002, 0.02, 0.004))
            tried = (Half(near[0]), Half(near[1]), Half(near[2]))
            if (polynomial(factor, minus, tried, first) == table).all():
                return factor, minus, tried, first


def both(x: float) -> str:
    """A word with the number in both halves."""
    assert float(Half(x)) == x, "exact in half precision"
    return f"0x{int(np.float16(x).view(np.uint16)) * 0x10001:08x}u"


def constants() -> list[str]:
    """The definitions of the kernels' constants."""
    wanted = frozenset(v + OFFSET for v in IQ5)
    groups = cover(wanted, candidates(wanted))
    assert groups is not None
    columns = zip("XYZ", zip(*groups, strict=True), strict=True)
    out = [f"IQ5_{name}[2] = {{{words(list(column))}}}" for name, column in columns]
    out.append(f"IQ5_CODES[32] = {{{', '.join(map(str, codes(groups)))}}}")
    factor, minus, coefficients, first = search()
    out.append(f"SIX_X[2] = {{{both(float(factor))}, {both(-minus)}}}")
    # with 16 times the code behind 1024 the result must be the same number
    out.append(f"SIX_X_16[2] = {{{both(float(factor) / 16)}, {both(960 * float(factor) - minus)}}}")
    out.append(f"SIX_COEFFICIENTS[3] = {{{', '.join(both(float(c)) for c in coefficients)}}}")
    out.append(f"SIX_FIRST = {both(1536 + first)}")
    return out


if __name__ == "__main__":
    print("\n".join(constants()))
