"""Windows of a text, and a model's logits in them: what llama-perplexity evaluates, position by position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq.errors import FormatError, RefusedError
from ikq.inference.model import Model
from ikq.tokenizer import Tokenizer

__all__ = [
    "Window",
    "Windows",
    "cut",
    "log_softmax",
    "n_positions",
    "scored",
    "scored_logits",
    "text_tokens",
    "window_bos",
]

# Logits of so many positions are held at once: 128 MiB with a vocabulary of 256k.
_POSITIONS = 128


class Window(NamedTuple):
    """A part of the text that is evaluated from an empty cache.

    Attributes:
        tokens: All its tokens, the first of them BOS where the model wants that.
        first: The first position whose logits are scored, against the token after it.
    """

    tokens: NDArray[np.int32]
    first: int

    @property
    def targets(self) -> NDArray[np.int32]:
        """The tokens that are scored."""
        return self.tokens[self.first + 1 :]


@dataclass(frozen=True)
class Windows:
    """How a text is cut; `windows[i]` is a window.

    Attributes:
        tokens: The text, as far as windows reach.
        n_ctx: Tokens of a window.
        first: As in `Window`.
        step: From the start of a window to the start of the next.
        n: Number of windows.
        bos: The token that replaces the first one of each window, if any.
    """

    tokens: NDArray[np.int32]
    n_ctx: int
    first: int
    step: int
    n: int
    bos: int | None

    def __getitem__(self, i: int) -> Window:
        """Window `i`."""
        if not 0 <= i < self.n:
            raise IndexError(f"window {i} of {self.n}")
        tokens = self.tokens[i * self.step : i * self.step + self.n_ctx]
        if self.bos is not None:
            tokens = np.concatenate([np.array([self.bos], np.int32), tokens[1:]])
        return Window(tokens, self.first)


def text_tokens(tokenizer: Tokenizer, text: str) -> NDArray[np.int32]:
    """Tokens of a literal text: BOS if the model wants it, no EOS, and names of control tokens are text."""
    ids = tokenizer.encode(text)
    if tokenizer.add_bos and tokenizer.bos is not None:
        ids = [tokenizer.bos, *ids]
    return np.asarray(ids, np.int32)


def window_bos(tokenizer: Tokenizer) -> int | None:
    """The token that takes the place of each window's first one; `None` where texts do not begin with BOS."""
    return tokenizer.bos if tokenizer.add_bos else None


def cut(
    tokens: NDArray[np.int32], *, n_ctx: int = 512, chunks: int = -1, stride: int = 0, bos: int | None = None
) -> Windows:
    """Cuts a text into windows as llama-perplexity does.

    Without a stride, windows of `n_ctx` tokens follow each other, and a remainder is dropped. BOS replaces
    the first token of each window, and the logits of the second half of a window are scored. With a stride,
    windows have `n_ctx + stride // 2` tokens and begin every `stride` tokens, the last `stride` tokens of
    each are scored, and BOS stands only where the text has it (the reference sets it too late to have an
    effect). Today's reference programs take more: their context's size, which holds as many windows as a
    batch and is rounded up to a multiple of 256. Figures are the same where `n_ctx + stride // 2` is one and
    `-b` at most `n_ctx`.

    Args:
        tokens: The text.
        n_ctx: Tokens of a window.
        chunks: The largest number of windows; all if negative.
        stride: 0 for none.
        bos: BOS of models that want it.

    Raises:
        RefusedError: sizes that make no sense, or a text of less than one window.
    """
    if n_ctx < 4:
        raise RefusedError(f"windows of {n_ctx} tokens: expected 4 or more")
    if stride < 0:
        raise RefusedError(f"a stride of {stride}: expected 0 (none) or more")
    if stride:
        n_ctx += stride // 2
        if stride >= n_ctx:
            raise RefusedError(f"a stride of {stride} needs windows of more than {stride} tokens: raise -c")
        n, first, step, bos = -((n_ctx - len(tokens)) // stride), n_ctx - stride - 1, stride, None
    else:
        n, first, step = len(tokens) // n_ctx, n_ctx // 2, n_ctx
    if chunks >= 0:
        n = min(n, chunks)
    if n < 1:
        raise RefusedError(
            f"the text of {len(tokens)} tokens makes no window of {n_ctx}: give a longer one or lower -c"
            if chunks
            else "0 windows: nothing to measure"
        )
    return Windows(tokens[: (n - 1) * step + n_ctx], n_ctx, first, step, n, bos)


def n_positions(n_ctx: int) -> int:
    """Positions that are scored in a window without stride."""
    return n_ctx - 1 - n_ctx // 2


def scored_logits(model: Model, window: Window) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Logits of a window's scored positions, in pieces: which of the targets, and `(n, n_vocab)`."""
    model.truncate(0)
    if window.first:
        model.eval(window.tokens[: window.first], want="none")
    end = len(window.tokens) - 1
    for start in range(window.first, end, _POSITIONS):
        stop = min(start + _POSITIONS, end)
        rows = slice(start - window.first, stop - window.first)
        yield rows, model.eval(window.tokens[start:stop], want="all")


def scored(
    model: Model, windows: Windows, number: int
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float64]]]:
    """What a model makes of a window's scored positions, in pieces.

    Yields:
        Which of the targets, log-probabilities `(n, n_vocab)`, and the targets' negative ones `(n,)`.

    Raises:
        FormatError: A logit is not a number.
    """
    window = windows[number]
    targets = window.targets
    for rows, logits in scored_logits(model, window):
        log_p = log_softmax(logits)
        loss = -np.take_along_axis(log_p, targets[rows, np.newaxis], axis=1)[:, 0].astype(np.float64)
        if not np.isfinite(loss).all():
            raise FormatError(f"window {number + 1}: the model's logits are not finite")
        yield rows, log_p, loss


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural logarithms of the probabilities, of each row."""
    shifted: NDArray[np.float32] = logits - logits.max(axis=-1, keepdims=True)
    # the sum in double precision: a vocabulary has up to 256k terms
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    shifted -= np.log(total).astype(np.float32)
    return shifted
