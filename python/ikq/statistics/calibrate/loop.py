"""Chunks of a text, cut as llama-imatrix cuts them, and running them: `chunks_of`, `run_chunks`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq.errors import FormatError, RefusedError
from ikq.evaluate.perplexity import Perplexity, estimate
from ikq.evaluate.windows import Window, Windows, cut, log_softmax, window_bos
from ikq.inference.model import Model
from ikq.statistics.activations import ActivationCollector
from ikq.tokenizer import Tokenizer

__all__ = ["ChunksDone", "chunks_of", "run_chunks", "windows_of"]

# Bytes of logits that a call may give; more than that and a chunk is run in pieces.
_LOGIT_BYTES = 512 << 20
# Positions whose distributions are computed at once.
_POSITIONS = 128


class ChunksDone(NamedTuple):
    """The progress of a run.

    Attributes:
        n_chunks: Chunks that count.
        perplexity: Of the text so far, as `ikq.evaluate` computes it; `None` if that is left out.
        losses: The negative log-likelihoods that it comes from.
        take: Counts the chunk in the collector, where that is left to the caller: a run elsewhere that is
            interrupted has either taken a chunk as a whole or not at all. `None`: it is counted.
    """

    n_chunks: int
    perplexity: Perplexity | None
    losses: NDArray[np.float64]
    take: Callable[[], None] | None = None


def chunks_of(
    model: Model | Tokenizer,
    text: str,
    *,
    n_ctx: int = 512,
    skip: int = 0,
    chunks: int = -1,
    parse_special: bool = False,
) -> Windows:
    """Cuts a text into chunks of `n_ctx` tokens.

    BOS replaces the first token of each chunk if the model wants it.

    Args:
        model: Whose tokenizer cuts, or a tokenizer.
        text: Taken literally.
        n_ctx: Tokens of a chunk; what is left of the text is dropped.
        skip: Chunks at the start of the text that are left out.
        chunks: The largest number of chunks after those; all if negative.
        parse_special: Names of control tokens in the text mean these tokens.

    Raises:
        RefusedError: nothing is left, or sizes make no sense.
        FormatError, UnsupportedError: the file's tokenizer is damaged or of a kind that ikq does not know.
    """
    if skip < 0:
        raise RefusedError(f"{skip} chunks to skip: expected 0 or more")
    tokenizer = model if isinstance(model, Tokenizer) else model.tokenizer
    bos = window_bos(tokenizer)
    ids = tokenizer.encode(text, parse_special=parse_special)
    tokens = np.asarray(ids if bos is None else [bos, *ids], np.int32)
    if skip and len(tokens) // max(n_ctx, 1) <= skip:
        raise RefusedError(f"the text has {len(tokens) // max(n_ctx, 1)} chunks: none is left after {skip}")
    return cut(tokens[skip * n_ctx :], n_ctx=n_ctx, chunks=chunks, bos=bos)


windows_of = chunks_of
"""Another name of `chunks_of`, for callers that have a tokenizer and no model."""


def run_chunks(
    model: Model,
    windows: Windows,
    collector: ActivationCollector,
    *,
    first: int = 0,
    losses: NDArray[np.float64] | None = None,
    perplexity: bool = True,
) -> Iterator[ChunksDone]:
    """Runs chunks, each with an empty KV cache, and yields the progress after each.

    The model's multi-token prediction head, if its file has one, reads them as well, so its matrices get
    entries, too.

    A chunk counts as a whole: one that is interrupted leaves nothing in the collector.

    Args:
        model: A model whose context holds a chunk, and which the collector belongs to.
        windows: The text, from `chunks_of`.
        collector: Takes the statistics.
        first: Chunk to begin with; those before are in the collector already.
        losses: What `ChunksDone.losses` was after them.
        perplexity: Compute the perplexity as well, which needs logits.

    Raises:
        FormatError: a logit is not a number.
    """
    known = [np.zeros(0) if losses is None else losses]
    for i in range(first, windows.n):
        with collector.chunk():
            found = _run(model, windows[i], perplexity)
        if not np.isfinite(found).all():
            raise FormatError(f"chunk {i + 1}: the model's logits are not finite")
        known.append(found)
        total = np.concatenate(known)
        known = [total]
        yield ChunksDone(i + 1, estimate(total, i + 1) if perplexity else None, total)


def _run(model: Model, window: Window, perplexity: bool) -> NDArray[np.float64]:
    """Runs all tokens of a chunk; the losses of its second half."""
    tokens, n_vocab = window.tokens, model.spec.n_vocab
    model.truncate(0)
    if model.mtp is not None:
        # the head reads what the model's last norm gives, and so do logits
        hidden = model.eval(tokens, want="hidden")
        model.mtp.read(tokens.tolist(), hidden)
        return _losses_in_parts(model._head, hidden, window, n_vocab) if perplexity else np.zeros(0)
    if not perplexity:
        model.eval(tokens, want="none")
        return np.zeros(0)
    if 4 * len(tokens) * n_vocab <= _LOGIT_BYTES:
        return _losses(model.eval(tokens)[window.first : -1], window.targets)
    model.eval(tokens[: window.first], want="none")
    return _losses_in_parts(model.eval, tokens, window, n_vocab)


def _losses_in_parts(
    logits_of: Callable[[NDArray[Any]], NDArray[np.float32]],
    inputs: NDArray[Any],
    window: Window,
    n_vocab: int,
) -> NDArray[np.float64]:
    """Losses of the second half of a chunk, whose logits are made from one input for each token."""
    tokens = window.tokens
    step = max(1, _LOGIT_BYTES // (4 * n_vocab))
    losses = []
    for start in range(window.first, len(tokens), step):
        logits = logits_of(inputs[start : start + step])
        targets = tokens[start + 1 : start + 1 + step]
        losses.append(_losses(logits[: len(targets)], targets))
    return np.concatenate(losses)


def _losses(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
    parts = []
    for start in range(0, len(targets), _POSITIONS):
        rows = slice(start, start + _POSITIONS)
        log_p = log_softmax(logits[rows])
        parts.append(-np.take_along_axis(log_p, targets[rows, np.newaxis], axis=1)[:, 0])
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)
