"""Attention in tiles (`cuda/attention_tiles.cu`): steps of several texts, and what their results may be off by."""

from dataclasses import dataclass, field

import numpy as np
from emulator import aligned
from test_kernels_layers import PAGE, attention, f32, fill_cache, i32
from test_kernels_products import U

HALF = 2.0**-11
"""Half a unit of a number in half precision, relative to it."""
TINY = 2.0**-25
"""Half a unit of halves below the normal ones."""
TILES = {"r64": (64, 64), "r16": (16, 64), "w32": (32, 32), "w16": (16, 32)}
"""Rows of a tile, and keys at a time."""


@dataclass(frozen=True)
class Case:
    k: str
    v: str
    n_heads: int
    n_kv: int
    n_k: int
    n_v: int
    tiles: tuple[str, ...]
    # position of the first column, and how many columns; of each text
    runs: tuple[tuple[int, int], ...]
    window: int | None = None
    cap: float = 0.0
    sinks: bool = False
    gate: bool = False
    latent: bool = False
    span: int = 256
    scores: float = field(default=3.0)  # about how large they are

    @property
    def n_v_row(self):
        return self.n_k if self.latent else self.n_v


def row_chunks(n):
    chunks = -(-n // 16) * 2
    return chunks if chunks % 8 == 0 else chunks | 1


def shared_bytes(case, tile):
    rows, keys = TILES[tile]
    of_values = case.n_k if case.latent else case.n_v
    return 16 * ((rows + keys) * row_chunks(case.n_k) + keys * row_chunks(of_values))


class Step:
    """Columns of some texts: rows of the cache that no column sees are NaN, and pages that none sees are missing."""

    def __init__(self, case, seed=0):
        rng = np.random.default_rng([seed, case.n_k, case.n_heads])
        self.case = case
        n_columns = sum(n for _, n in case.runs)
        self.runs, self.first, self.end, tables = [], [], [], []
        used = 0
        for at, n in case.runs:
            self.runs.append((len(self.first), at, n, 7))
            positions = np.arange(at, at + n)
            from_ = np.maximum(0, positions + 1 - (case.window or 1 << 30))
            self.first += from_.tolist()
            self.end += (positions + 1).tolist()
            table = np.arange(used, used + -(-(at + n) // PAGE))
            used += len(table)
            tables += [(table, from_.min(), at + n)] * n
        self.n_columns, self.n_pages = n_columns, used
        self.max_pages = max(len(t) for t, _, _ in tables)
        order = rng.permutation(used)
        self.pages = np.full((n_columns, self.max_pages), -1, np.int32)
        seen = np.zeros(used * PAGE, bool)
        for c, (table, low, high) in enumerate(tables):
            kept = low // PAGE
            self.pages[c, kept : len(table)] = order[table[kept:]]
            at = np.arange(low, high)
            seen[self.pages[c][at // PAGE] * PAGE + at % PAGE] = True
        self.k_cache, self.keys = fill_cache(case.k, used, case.n_kv, case.n_k, rng)
        self.v_cache, self.values = self.k_cache, self.keys[..., : case.n_v]
        if not case.latent:
            self.v_cache, self.values = fill_cache(case.v, used, case.n_kv, case.n_v, rng)
        for cache in (self.k_cache, self.v_cache):
            cache.transpose(0, 2, 1, 3)[~seen.reshape(used, PAGE)] = 0xFF
        self.q = rng.normal(size=(n_columns, case.n_heads, case.n_k)).astype(np.float32) * case.scores
        self.scale = float(np.float32(1 / np.sqrt(case.n_k)))
        self.sinks = f32(rng.normal(size=case.n_heads)) if case.sinks else None
        self.gate = f32(rng.normal(size=(n_columns, case.n_heads, case.n_v))) if case.gate else None

    def n_splits(self):
        """As many as a tile of all columns of a run may have."""
        span, ends = self.case.span, []
        for first_column, _, n, _ in self.runs:
            ends.append((self.end[first_column + n - 1] - 1) // span - self.first[first_column] // span + 1)
        return max(ends)

    def partial(self, module, tile, part=None, order=0):
        case = self.case
        first, n = part or (0, self.n_columns)
        n_splits = self.n_splits()
        out = aligned((n, case.n_heads, n_splits, case.n_v + 2), np.float32)
        rows = n * (case.n_heads // case.n_kv)
        n_tiles = rows // TILES[tile][0] + len(self.runs)
        code = module.launch(
            f"attend_tiles_{case.k}_{case.v}_{tile}", (n_tiles, case.n_kv, n_splits), 128, f32(self.q), self.k_cache,
            self.v_cache, i32(self.pages), i32(self.first), i32(self.end), i32(self.runs), out, len(self.runs), first, n,
            case.n_heads, case.n_kv, case.n_k, case.n_v, case.n_v_row, self.max_pages, case.span, self.scale, case.cap,
            shared=shared_bytes(case, tile), order=order,
        )  # fmt: skip
        return code, out

    def results(self, module, tile, part=None, order=0):
        """`(columns, heads, n_v)`, combined."""
        case = self.case
        first, n = part or (0, self.n_columns)
        code, partial = self.partial(module, tile, part, order)
        assert code == 0, getattr(module, "report", "")
        y = aligned((n, case.n_heads, case.n_v), np.float32)
        gate = None if self.gate is None else f32(self.gate[first : first + n])
        module.run(
            "attend_combine", (case.n_heads, n), 128, partial, self.sinks, gate, case.n_v, y, None, None, case.n_heads,
            case.n_v, self.n_splits(), 0, order=order,
        )  # fmt: skip
        return y

    def expected(self):
        """Results in doubles, and how far off each of them may be.

        Queries, weights, and decoded keys and values are rounded to halves. A weight is off by as much as its score, and
        by its own rounding; weights that are off move the mean of the values as far as these are from it.
        """
        case = self.case
        first, end = np.array(self.first), np.array(self.end)
        want = attention(
            self.q, self.keys, self.values, self.pages, first, end, case.n_kv, self.scale, case.cap, self.sinks, self.gate
        )  # fmt: skip
        coded_k, coded_v = case.k != "f16", case.v != "f16"
        slack = np.zeros_like(want)
        for c in range(self.n_columns):
            at = np.arange(first[c], end[c])
            slots = self.pages[c][at // PAGE] * PAGE + at % PAGE
            for h in range(case.n_heads):
                kv = h // (case.n_heads // case.n_kv)
                k, v = self.keys[slots, kv].astype(np.float64), self.values[slots, kv].astype(np.float64)
                q = self.q[c, h].astype(np.float64)
                size = np.abs(k) @ np.abs(q)
                s = k @ q * self.scale
                off = size * (HALF * (1 + coded_k) * 1.01 + 2 * U * (case.n_k + 8))
                off += TINY * (np.abs(k).sum(1) + coded_k * np.abs(q).sum())
                # factors, tanh and powers of two are good to some units
                off = off * self.scale + 16 * U * (np.abs(s) + 1)
                s = case.cap * np.tanh(s / case.cap) if case.cap else s
                off += 16 * U * case.cap
                top = s.max() if self.sinks is None else max(s.max(), self.sinks[h])
                w = np.exp(s - top)
                total = w.sum() + (0 if self.sinks is None else np.exp(self.sinks[h] - top))
                p = w / total
                off = np.expm1(off) + HALF * 1.01
                y = p @ v
                moved = (p * off + 2.0**-37 * w.max() / total) @ np.abs(v - y)
                slack[c, h] = moved / (1 - (p * off).sum())
                rounded = (HALF * np.abs(v) + TINY) if coded_v else 0 * v
                slack[c, h] += p @ rounded * 1.01 + 2 * U * (len(at) + 64) * (p @ np.abs(v))
        return want, slack
