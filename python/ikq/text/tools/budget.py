"""`ThinkingBudget`: reasoning that ends after a given number of tokens."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ikq.grammar import Constraint
from ikq.grammar.constraint import n_allowed_by_masks
from ikq.tokenizer import Tokenizer

__all__ = ["ThinkingBudget"]


class _Phase(enum.Enum):
    START = enum.auto()  # nothing but white space, or what may become the mark
    INSIDE = enum.auto()
    CLOSING = enum.auto()  # the budget is used up: the closing mark is all that may come
    OVER = enum.auto()


class ThinkingBudget(Constraint):
    """A reply whose reasoning is closed after a number of tokens; the rest is constrained as before.

    Args:
        inner: What else constrains the reply, thoughts included.
        marks: Around thoughts.
        is_open: The prompt has opened them.
        budget: The largest number of tokens of reasoning.
        tokenizer: The model's.
    """

    def __init__(
        self,
        inner: Constraint | None,
        marks: tuple[str, str],
        *,
        is_open: bool,
        budget: int,
        tokenizer: Tokenizer,
    ) -> None:
        self._inner = inner
        self._open, self._close = (mark.encode() for mark in marks)
        self._closing = tokenizer.encode(marks[1], parse_special=True)
        self._tokenizer = tokenizer
        self._n_left = budget
        self._text = b""
        self._phase = _Phase.INSIDE if is_open else _Phase.START
        self._check()

    def mask(self) -> NDArray[np.bool_] | None:
        """As `Constraint.mask`."""
        if self._phase is _Phase.CLOSING:
            only = np.zeros(self._tokenizer.n_vocab, np.bool_)
            only[self._closing[0]] = True
            return only
        return None if self._inner is None else self._inner.mask()

    def accept(self, token: int) -> None:
        """As `Constraint.accept`."""
        if self._inner is not None:
            self._inner.accept(token)
        if self._phase is _Phase.OVER or token in self._tokenizer.end_ids:
            return
        self._text += self._tokenizer.token_bytes(token)
        if self._phase is _Phase.CLOSING:
            self._closing = self._closing[1:]
            if not self._closing:
                self._phase = _Phase.OVER
        elif self._phase is _Phase.START:
            begun = self._text.lstrip()
            if begun.startswith(self._open):
                self._phase, self._text = _Phase.INSIDE, begun[len(self._open) :]
            elif not self._open.startswith(begun):
                self._phase = _Phase.OVER
        else:
            self._n_left -= 1
        self._check()

    def n_allowed(self, tokens: Sequence[int]) -> int:
        """As `Constraint.n_allowed`."""
        if self._phase is _Phase.OVER:
            return len(tokens) if self._inner is None else self._inner.n_allowed(tokens)
        return n_allowed_by_masks(self, tokens)

    def clone(self) -> ThinkingBudget:
        """As `Constraint.clone`."""
        other = ThinkingBudget.__new__(ThinkingBudget)
        other.__dict__.update(self.__dict__)
        other._inner = None if self._inner is None else self._inner.clone()
        return other

    @property
    def is_complete(self) -> bool:
        """As `Constraint.is_complete`."""
        return self._phase is not _Phase.CLOSING and (self._inner is None or self._inner.is_complete)

    @property
    def must_stop(self) -> bool:
        """As `Constraint.must_stop`."""
        return self._inner is not None and self._inner.must_stop

    def _check(self) -> None:
        """Whether thoughts are over, or have to be."""
        if self._phase is not _Phase.INSIDE:
            return
        if self._close in self._text:
            self._phase = _Phase.OVER
            return
        # only what may still become the mark matters
        self._text = self._text[-len(self._close) :]
        if self._n_left <= 0:
            self._phase = _Phase.CLOSING
