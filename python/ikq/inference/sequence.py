"""`Sequence`: tokens that a model has processed, with their KV cache."""

from __future__ import annotations

import os
import sys
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.sampling.candidates import Candidates

if TYPE_CHECKING:
    from ikq.text.generate import Generation

__all__ = ["MOST_BEST", "Best", "Sequence", "Want", "Wanted"]

Want: TypeAlias = Literal["last", "all", "none", "hidden"]
"""What is wanted of tokens: logits after the last or after all, nothing, or hidden states of all."""


class Best(NamedTuple):
    """Wants only the largest logits, which a GPU finds itself: the others need not be copied from there.

    Attributes:
        n: How many of them, at most `MOST_BEST`.
        each: After every token instead of the last one.
    """

    n: int
    each: bool = False


MOST_BEST: int = _ikq.MOST_BEST

Wanted: TypeAlias = NDArray[np.float32] | list[Candidates] | None
"""What a step gives: logits or hidden states; or for each position the largest logits, sorted."""


class Sequence:
    """A text that a model is reading or writing.

    Made by `Model.new_sequence`, `Model.load_sequence` and `fork`. It holds positions in the model's KV
    cache, and `Model.step` adds to them. Forked sequences share the cache of the tokens that they have in
    common. The cache is freed by `close`, at the end of a `with` block, or when nobody refers to the sequence
    any more.

    A sequence that a step works on, or that another thread uses, is waited for.

    Examples:
        >>> import ikq
        >>> model = ikq.Model.load("tests/data/tiny-moe-bf16.gguf", n_ctx=64)
        >>> with model.new_sequence() as one:
        ...     _ = model.step([(one, [1, 2, 3], "none")])
        ...     with one.fork() as other:
        ...         first, second = model.step([(one, [4], "last"), (other, [5, 6], "all")])
        ...     first.shape, second.shape, one.tokens
        ((1, 4096), (2, 4096), [1, 2, 3, 4])
    """

    def __init__(self, core: _ikq.Sequence, *, n_straight: int = sys.maxsize) -> None:
        self._core = core
        # counts changes, so that who goes on with it sees that somebody else was there
        self._version = 0
        # positions from the beginning that were computed in place: after a shift the later ones were not
        self._n_straight = n_straight
        # the generation that works on it
        self._owner: weakref.ref[Generation] | None = None

    @property
    def n_past(self) -> int:
        """Positions that it holds.

        Raises:
            ValueError: it is closed, as for all that follows.
        """
        return self._core.n_past

    @property
    def tokens(self) -> list[int]:
        """The tokens at these positions; a copy."""
        return self._core.tokens

    @property
    def n_bytes(self) -> int:
        """Bytes of the cache that it holds, those included that it shares with other sequences."""
        return self._core.n_bytes

    @property
    def n_unshifted(self) -> int:
        """Positions from the beginning that were computed where they are: all, if there was no `shift`.

        Only these are the same as if their tokens were computed anew, so only these can be reused by another
        text with the same beginning.
        """
        return min(self.n_past, self._n_straight)

    @property
    def lora(self) -> tuple[float, ...]:
        """Scales of the model's LoRA adapters that its tokens are computed with."""
        return tuple(self._core.scales)

    def fork(self) -> Sequence:
        """Another sequence of the same tokens.

        Both share the cache of these tokens until one of them writes to a part of it, so forking costs
        little, whatever the length. Models with recurrent layers copy their state.

        Raises:
            ValueError: the sequence is closed, or the model.
            RefusedError: memory does not hold another recurrent state.
        """
        return Sequence(self._core.fork(), n_straight=self._n_straight)

    def truncate(self, n: int) -> None:
        """Keeps the first `n` positions, all if there are no more.

        Raises:
            UnsupportedError: it cannot go back there, see `rewindable`; 0 always works.
        """
        self._core.truncate(n)
        self._version += 1
        if n <= self._n_straight:
            self._n_straight = sys.maxsize

    def rewindable(self, n: int) -> int:
        """The largest number of positions, at most `n`, that `truncate` can keep.

        That is `n` (or `n_past`, if there are no more) for most models. Layers with a sliding window free
        what lies behind it, unless the model was loaded with `swa_full=True`; recurrent layers keep snapshots
        of their state.
        """
        return self._core.rewindable(n)

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Makes room: drops `n_discard` positions after the first `n_keep`; the later ones move down.

        Raises:
            UnsupportedError: the model has recurrent layers, or norms its keys behind the rotation.
            ShapeError: there are not as many positions.
            RefusedError: memory does not hold what is moved.
        """
        self._core.shift(n_keep, n_discard)
        self._version += 1
        if n_discard:
            self._n_straight = min(self._n_straight, n_keep)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the sequence to a file, for `Model.load_sequence`; the file appears when it is complete.

        A file does not say what was shifted: go back to `n_unshifted` first, unless it is to go on as it is.

        Raises:
            OSError: the file cannot be written.
        """
        self._core.save(os.fspath(path))

    def _lend(self, generation: Generation) -> None:
        """Gives it to a generation until that is over.

        Raises:
            ValueError: another one has it.
        """
        owner = None if self._owner is None else self._owner()
        if owner is not None and not owner.is_over:
            raise ValueError("another generation works on this sequence: fork it, or close that one first")
        self._owner = weakref.ref(generation)

    def close(self) -> None:
        """Frees the KV cache of the sequence, which cannot be used any more."""
        self._core.close()

    def __enter__(self) -> Sequence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            return f"<Sequence of {self.n_past} tokens>"
        except ValueError:
            return "<closed Sequence>"
