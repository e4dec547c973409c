"""Compact base files: what the KL divergence from a model needs, in a thirtieth of the bytes.

A position keeps its k most likely tokens, m tokens drawn from the rest (the tail) with their
log-probabilities, the tail's mass, and the log-probability of the token that follows. With r = q/p and
g(r) = r - 1 - log r, the divergence is the sum of p g(r) over all tokens, because p and q both add up to 1.
The k tokens give their part exactly, the draws estimate the tail's: each stands for an m-th of its mass, so
the mean of g over them times the mass is right on average. g is never negative and small where the models
agree, which makes the estimate steady where that of p log(p/q) is not.

What is stated with every result: a lower bound that always holds (all of the tail as one token), and the
standard error of the estimate, from the spread of g within each position. Errors of positions are
independent, so that of the mean falls with the root of their number. Perplexities and probability differences
are as exact as the models; top tokens are the model's own, where 16 bits can confuse two that are equally
likely.

Measured (benches/compact_kld.py) at 3 % of the size: on a model of 9 M parameters, vocabulary 4,096, 37,485
positions, the mean is within 0.1 % of the full form for three quantizations, and off by 0.6 % (stated
error 0.7 %) for Q8_0, whose divergence of 0.0004 comes from few positions; on a synthetic vocabulary of
32,000 and 1,016 positions within 0.2 %, for divergences from 0.00005 to 0.4. The lower bound is 67 to 76 % of
the mean.

The file: `ikq_kld1`; window, vocabulary, number of windows, k and m as int32; the tokens of all windows as
int32; then one record per scored position (`record_type`). Levels are steps from the lowest stored
log-probability. The seed of the draws is fixed, so the same distributions give the same file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ikq.errors import FormatError, RefusedError
from ikq.evaluate.base_file import Compared, check_tokens, full_row_bytes, write_tokens
from ikq.evaluate.perplexity import Sink
from ikq.evaluate.windows import Windows, n_positions
from ikq.files.whole_file import whole_file

__all__ = ["SHARE", "CompactBase", "compact_writer", "kept", "record_type"]

MAGIC = b"ikq_kld1"
SHARE = 0.03
"""Size of a record unless told otherwise, as a share of what llama-perplexity writes."""

_LEVELS = 65535
_ROWS = 16
# sums of probabilities in single precision are not closer than this
_ROUNDING = 2e-6


def record_type(n_vocab: int, k: int, m: int) -> np.dtype[Any]:
    """One position: `k` tokens, most likely first, then `m` draws."""
    index = "<u2" if n_vocab <= 65536 else "<u4"
    floats = [(name, "<f4") for name in ("target", "tail", "scale", "low")]
    return np.dtype([*floats, ("token", index, (k + m,)), ("level", "<u2", (k + m,))])


def kept(n_vocab: int, share: float = SHARE) -> tuple[int, int]:
    """Tokens kept and drawn, half and half, for records of at most `share` of the full form's bytes.

    Raises:
        RefusedError: the share holds nothing, or is no share.
    """
    if not 0 < share <= 1:
        raise RefusedError(f"a share of {share}: expected more than 0, at most 1")
    empty, one = (record_type(n_vocab, n, 0).itemsize for n in (0, 1))
    n = int((share * full_row_bytes(n_vocab) - empty) / (one - empty))
    if n < 4:
        raise RefusedError(f"a share of {share} holds no distribution over {n_vocab} tokens: give more")
    return n // 2, n - n // 2


class CompactBase:
    """An existing compact base file, opened for comparing."""

    def __init__(self, path: str | os.PathLike[str], bos: int | None = None) -> None:
        """Opens a file; arguments and errors are those of `BaseFile`."""
        with Path(path).open("rb") as f:
            head = f.read(len(MAGIC) + 20)
            if not head.startswith(MAGIC) or len(head) < len(MAGIC) + 20:
                raise FormatError(f"{path}: not a compact base file")
            n_ctx, self.n_vocab, n, self._k, self._m = struct.unpack("<5i", head[len(MAGIC) :])
            if n_ctx < 4 or n < 1 or not 2 <= self._k <= self.n_vocab or not 2 <= self._m <= self.n_vocab:
                raise FormatError(
                    f"{path}: {n} windows of {n_ctx} tokens, {self._k} and {self._m} kept of each"
                )
            record = record_type(self.n_vocab, self._k, self._m)
            size = Path(path).stat().st_size - f.tell() - 4 * n_ctx * n
            expected = record.itemsize * n_positions(n_ctx) * n
            if size != expected:
                raise FormatError(f"{path}: {expected} bytes of records expected, {max(size, 0)} found")
            tokens = np.frombuffer(f.read(4 * n_ctx * n), "<i4").astype(np.int32)
            check_tokens(path, tokens, self.n_vocab)
            self._path = path
            self._records = np.memmap(path, record, "r", f.tell(), (n * n_positions(n_ctx),))
        self.windows = Windows(tokens, n_ctx, n_ctx // 2, n_ctx, n, bos)

    def compare(self, window: int, rows: slice, log_q: NDArray[np.float32]) -> Compared:
        """As `Base.compare`, with the estimate, its variance and the lower bound.

        Raises:
            FormatError: a record names a token outside the vocabulary.
        """
        start = window * n_positions(self.windows.n_ctx)
        stored = self._records[start + rows.start : start + rows.stop]
        tokens = stored["token"].astype(np.int64)
        if tokens.max() >= self.n_vocab:
            raise FormatError(f"{self._path}: a record names a token outside the vocabulary")
        k, m = self._k, self._m
        log_p = stored["level"].astype(np.float64)
        log_p *= stored["scale"][:, np.newaxis]
        log_p += stored["low"][:, np.newaxis]
        log_r = np.take_along_axis(log_q, tokens, axis=1) - log_p
        r = np.exp(log_r)
        g = r - 1 - log_r
        p = np.exp(log_p[:, :k])
        top = (p * g[:, :k]).sum(axis=1)
        tail = np.exp(stored["tail"].astype(np.float64))
        drawn = g[:, k:]
        estimate = tail * drawn.mean(axis=1)
        variance = tail**2 * drawn.var(axis=1, ddof=1) / m
        least = top + _as_one(tail, 1 - (r[:, :k] * p).sum(axis=1))
        target = stored["target"].astype(np.float64)
        return Compared(top + estimate, target, tokens[:, 0], least, variance)


def _as_one(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """As `p g(q/p)`, of two masses, their difference taken smaller by what rounding can have added to it."""
    near = p + np.sign(q - p) * np.maximum(np.abs(q - p) - _ROUNDING, 0)
    safe = np.where(p > 0, p, 1)
    r = np.where(p > 0, np.maximum(near, 1e-300), 1) / safe
    lumped: NDArray[np.float64] = p * (r - 1 - np.log(r))
    return lumped


class _CompactWriter:
    def __init__(self, f: IO[bytes], n_vocab: int, k: int, m: int) -> None:
        self._f, self._k, self._m = f, k, m
        self._record = record_type(n_vocab, k, m)
        self._random = np.random.default_rng(0)

    def write(self, log_p: NDArray[np.float32], targets: NDArray[np.int32]) -> None:
        """Writes some positions."""
        for at in range(0, len(log_p), _ROWS):
            part = slice(at, at + _ROWS)
            self._f.write(self._records(log_p[part], targets[part]).tobytes())

    def _records(self, log_p: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.void]:
        k, m = self._k, self._m
        out = np.zeros(len(log_p), self._record)
        top = np.argpartition(-log_p, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(log_p, top, axis=1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, axis=1)
        tail = np.exp(log_p)
        np.put_along_axis(tail, top, 0, axis=1)
        out["token"][:, :k] = top
        for i, p in enumerate(tail):
            sums = p.cumsum(dtype=np.float64)
            mass = sums[-1]
            out["tail"][i] = np.log(mass) if mass > 0 else -np.inf
            # evenly spaced from a random start: each token is drawn in proportion to p
            at = (np.arange(m) + self._random.random()) * (mass / m)
            at = np.minimum(at, np.nextafter(mass, 0))
            found = np.searchsorted(sums, at, side="right")
            out["token"][i, k:] = found if mass > 0 else top[i, 0]
        tokens = out["token"].astype(np.int64)
        stored = np.take_along_axis(log_p, tokens, axis=1)
        low, best = stored.min(axis=1), stored.max(axis=1)
        scale = (best - low) / np.float32(_LEVELS)
        steps = np.where(scale > 0, scale, 1)[:, np.newaxis]
        out["level"] = np.clip(np.rint((stored - low[:, np.newaxis]) / steps), 0, _LEVELS)
        out["low"], out["scale"] = low, scale
        out["target"] = np.take_along_axis(log_p, targets[:, np.newaxis], axis=1)[:, 0]
        return out


@contextmanager
def compact_writer(
    path: str | os.PathLike[str], windows: Windows, n_vocab: int, share: float = SHARE
) -> Iterator[Sink]:
    """Writes a compact base file while perplexity is measured; give it as the sink.

    Raises:
        RefusedError: the windows have a stride; or as `kept`.
    """
    k, m = kept(n_vocab, share)
    with whole_file(path) as f:
        f.write(MAGIC + struct.pack("<5i", windows.n_ctx, n_vocab, windows.n, k, m))
        write_tokens(f, windows)
        yield _CompactWriter(f, n_vocab, k, m)
