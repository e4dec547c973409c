"""Base files of llama-perplexity (`--kl-divergence-base`): a model's distributions in 16 bits per token.

The file: `_logits_`; the window, the vocabulary and the number of windows as int32; the tokens of all
windows as int32; then, for every scored position of every window, two float32 (step, lowest log-probability)
and the log-probabilities as uint16 levels, padded to an even number. What is more than 24 below the best
counts as lowest.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ikq.errors import FormatError, RefusedError
from ikq.evaluate.perplexity import Sink
from ikq.evaluate.windows import Windows, log_softmax, n_positions, scored_logits
from ikq.files.whole_file import whole_file
from ikq.inference.model import Model

__all__ = ["Base", "BaseFile", "Compared", "ModelBase", "base_writer", "full_row_bytes"]

MAGIC = b"_logits_"
_LEVELS = 65535
_RANGE = np.float32(24)
# below this the reference leaves a token out of the divergence
_LEAST = np.float32(-16)
# rows that are compared at once
_ROWS = 16


class Compared(NamedTuple):
    """The comparison of another model with a base at some positions.

    Attributes:
        divergence: KL divergence from the base, of each position.
        log_p: The base's log-probability of the token that follows.
        top: The base's most likely token.
        least: A lower bound of the divergence; itself where it is exact.
        variance: Of the divergence as an estimate; 0 where it is exact.
    """

    divergence: NDArray[np.float64]
    log_p: NDArray[np.float64]
    top: NDArray[np.int64]
    least: NDArray[np.float64]
    variance: NDArray[np.float64]


class Base(Protocol):
    """The distributions of a base model, which other models are compared with."""

    @property
    def windows(self) -> Windows:
        """The text; its windows have no stride."""

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary."""

    def compare(self, window: int, rows: slice, log_q: NDArray[np.float32]) -> Compared:
        """Compares with another model's log-probabilities at some of a window's scored positions."""


def full_row_bytes(n_vocab: int) -> int:
    """Bytes of one position in the form of llama-perplexity."""
    return 2 * (4 + n_vocab + n_vocab % 2)


class BaseFile:
    """An existing base file, opened for comparing."""

    def __init__(self, path: str | os.PathLike[str], bos: int | None = None) -> None:
        """Opens a file.

        Args:
            path: The file.
            bos: As for `cut`; the file does not say it.

        Raises:
            FormatError: it is no base file, or not a whole one.
        """
        with Path(path).open("rb") as f:
            head = f.read(len(MAGIC) + 12)
            if not head.startswith(MAGIC) or len(head) < len(MAGIC) + 12:
                raise FormatError(f"{path}: not a base file of llama-perplexity")
            n_ctx, self.n_vocab, n = struct.unpack("<3i", head[len(MAGIC) :])
            if n_ctx < 4 or self.n_vocab < 1 or n < 1:
                raise FormatError(f"{path}: {n} windows of {n_ctx} tokens, vocabulary of {self.n_vocab}")
            size = Path(path).stat().st_size - f.tell() - 4 * n_ctx * n
            row = full_row_bytes(self.n_vocab)
            expected = row * n_positions(n_ctx) * n
            if size != expected:
                raise FormatError(
                    f"{path}: {expected} bytes of log-probabilities expected, {max(size, 0)} found; was it"
                    " written to its end?"
                )
            tokens = np.frombuffer(f.read(4 * n_ctx * n), "<i4").astype(np.int32)
            check_tokens(path, tokens, self.n_vocab)
            self._rows = np.memmap(path, "<u2", "r", f.tell(), (n * n_positions(n_ctx), row // 2))
        self.windows = Windows(tokens, n_ctx, n_ctx // 2, n_ctx, n, bos)

    def log_p(self, window: int, rows: slice) -> NDArray[np.float32]:
        """Log-probabilities as the file has them."""
        start = window * n_positions(self.windows.n_ctx)
        stored = self._rows[start + rows.start : start + rows.stop]
        scale = np.ascontiguousarray(stored[:, :4]).view("<f4")
        levels = stored[:, 4 : 4 + self.n_vocab].astype(np.float32)
        levels *= scale[:, :1]
        levels += scale[:, 1:]
        return levels

    def compare(self, window: int, rows: slice, log_q: NDArray[np.float32]) -> Compared:
        """As `Base.compare`; tokens less likely than exp(-16) are left out, as in the reference."""
        return _exact(self.windows, window, rows, lambda r: self.log_p(window, r), log_q, least=_LEAST)


class ModelBase:
    """A model that is itself the base, instead of a file."""

    def __init__(self, model: Model, windows: Windows) -> None:
        self._model = model
        self._held: tuple[int, NDArray[np.float32]] | None = None
        self.windows = windows
        self.n_vocab = model.spec.n_vocab

    def compare(self, window: int, rows: slice, log_q: NDArray[np.float32]) -> Compared:
        """As `Base.compare`."""
        if self._held is None or self._held[0] != window:
            pieces = [log_softmax(x) for _, x in scored_logits(self._model, self.windows[window])]
            self._held = window, np.concatenate(pieces)
        log_p = self._held[1]
        return _exact(self.windows, window, rows, lambda r: log_p[r], log_q, least=None)


class _Rows(Protocol):
    def __call__(self, rows: slice, /) -> NDArray[np.float32]: ...


def _exact(
    windows: Windows,
    window: int,
    rows: slice,
    log_p_of: _Rows,
    log_q: NDArray[np.float32],
    *,
    least: np.float32 | None,
) -> Compared:
    """Compares whole distributions, few rows at a time."""
    n = len(log_q)
    targets = windows[window].targets[rows]
    divergence, log_p_target, top = np.empty(n), np.empty(n), np.empty(n, np.int64)
    for at in range(0, n, _ROWS):
        part = slice(at, min(at + _ROWS, n))
        log_p = log_p_of(slice(rows.start + part.start, rows.start + part.stop))
        p = np.exp(log_p)
        if least is not None:
            p[log_p <= least] = 0
        difference = np.where(p > 0, log_p - log_q[part], np.float32(0))
        divergence[part] = (p * difference).sum(axis=1, dtype=np.float64)
        log_p_target[part] = np.take_along_axis(log_p, targets[part, np.newaxis], axis=1)[:, 0]
        top[part] = log_p.argmax(axis=1)
    return Compared(divergence, log_p_target, top, divergence, np.zeros(n))


def check_tokens(path: str | os.PathLike[str], tokens: NDArray[np.int32], n_vocab: int) -> None:
    """Raises FormatError if a token is outside the vocabulary."""
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < n_vocab:
        raise FormatError(f"{path}: holds tokens outside its vocabulary of {n_vocab}")


def write_tokens(f: IO[bytes], windows: Windows) -> None:
    """The tokens of all windows as the text has them, without BOS in their first places."""
    if windows.step != windows.n_ctx:
        raise RefusedError("a base file holds windows without stride: leave out --ppl-stride")
    f.write(windows.tokens.astype("<i4").tobytes())


class _FullWriter:
    def __init__(self, f: IO[bytes]) -> None:
        self._f = f

    def write(self, log_p: NDArray[np.float32], targets: NDArray[np.int32]) -> None:
        """Writes some positions."""
        n, n_vocab = log_p.shape
        out = np.zeros((n, full_row_bytes(n_vocab) // 2), "<u2")
        for i, row in enumerate(log_p):
            best = row.max()
            low = max(row.min(), best - _RANGE)
            scale = np.float32((best - low) / np.float32(_LEVELS))
            out[i, :4] = np.array([scale, low], "<f4").view("<u2")
            if scale > 0:
                levels = np.rint((row - low) * (np.float32(1) / scale))
                out[i, 4 : 4 + n_vocab] = np.clip(levels, 0, _LEVELS)
        self._f.write(out.tobytes())


@contextmanager
def base_writer(path: str | os.PathLike[str], windows: Windows, n_vocab: int) -> Iterator[Sink]:
    """Writes a base file while perplexity is measured; give it as the sink.

    Raises:
        RefusedError: the windows have a stride, which the form cannot hold.
    """
    with whole_file(path) as f:
        f.write(MAGIC + struct.pack("<3i", windows.n_ctx, n_vocab, windows.n))
        write_tokens(f, windows)
        yield _FullWriter(f)
