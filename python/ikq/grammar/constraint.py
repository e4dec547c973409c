"""Which tokens may come next in a text: `Constraint`."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ikq.errors import GrammarError
from ikq.grammar.vocabulary import Words, library

if TYPE_CHECKING:
    import llguidance

__all__ = ["Constraint", "GrammarConstraint"]

# for a mask, some tenths of a second at most; what needs more ends the text with an error
_MOST_ITEMS, _MOST_FUEL = 1_000_000, 2_000_000


class Constraint(abc.ABC):
    """Which tokens may come next in one text. Used by one thread at a time."""

    @abc.abstractmethod
    def mask(self) -> NDArray[np.bool_] | None:
        """Which tokens may come next, `(n_vocab,)`; `None`: all of them.

        Tokens that end the text are among them only where it is complete.

        Raises:
            GrammarError: the grammar is too complex to go on with.
        """

    @abc.abstractmethod
    def accept(self, token: int) -> None:
        """Adds the token that was chosen to the text.

        Raises:
            GrammarError: it is not allowed here.
        """

    @abc.abstractmethod
    def n_allowed(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` may follow one after the other. Changes nothing."""

    @abc.abstractmethod
    def clone(self) -> Constraint:
        """Another one in the same state, for another text."""

    @property
    @abc.abstractmethod
    def is_complete(self) -> bool:
        """Whether the text may end here."""

    @property
    @abc.abstractmethod
    def must_stop(self) -> bool:
        """Whether it has to: nothing can follow."""


def n_allowed_by_masks(constraint: Constraint, tokens: Sequence[int]) -> int:
    """`Constraint.n_allowed`, token by token on a copy: for constraints that have no shorter way."""
    trial = constraint.clone()
    for n, token in enumerate(tokens):
        mask = trial.mask()
        if mask is not None and not mask[token]:
            return n
        trial.accept(token)
    return len(tokens)


class GrammarConstraint(Constraint):
    """A text that follows a grammar from its first token on."""

    def __init__(self, words: Words, matcher: llguidance.LLMatcher) -> None:
        self.words = words
        self._matcher = matcher

    @classmethod
    def of(cls, words: Words, grammar: str) -> GrammarConstraint:
        """Compiles a grammar of llguidance.

        Raises:
            GrammarError: it cannot be compiled, or allows no text; the message is the library's.
        """
        import llguidance

        limits = llguidance.LLParserLimits(
            verbose_errors=False, step_max_items=_MOST_ITEMS, step_lexer_fuel=_MOST_FUEL
        )
        matcher = library()(words.compiled, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        constraint = cls(words, matcher)
        bits = matcher.compute_bitmask()
        if matcher.is_error() and "NoExtension" not in matcher.get_error():
            raise GrammarError(matcher.get_error())
        if matcher.is_error() or not any(bits):
            raise GrammarError("it allows no text at all")
        return constraint

    def mask(self) -> NDArray[np.bool_]:
        """As `Constraint.mask`."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise GrammarError(f"the grammar is too complex to go on with: {self._matcher.get_error()}")
        return np.unpackbits(bits, count=self.words.n_vocab, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """As `Constraint.accept`."""
        if self._matcher.is_stopped() and token in self.words.tokenizer.end_ids:
            return
        if not self._matcher.consume_token(token):
            # a limit of the library's that was hit is not the token's fault
            if "(limit" in self._matcher.get_error():
                raise GrammarError(f"the grammar is too complex to go on with: {self._matcher.get_error()}")
            raise GrammarError(f"token {token} is not allowed here by the grammar")

    def n_allowed(self, tokens: Sequence[int]) -> int:
        """As `Constraint.n_allowed`."""
        return self._matcher.validate_tokens(list(tokens))

    def clone(self) -> GrammarConstraint:
        """As `Constraint.clone`."""
        return GrammarConstraint(self.words, self._matcher.deep_copy())

    def takes(self, text: bytes) -> bool:
        """Whether a text may follow, whatever its tokens. Changes nothing."""
        tokens = self.words.compiled.tokenize_bytes(text)
        return self._matcher.validate_tokens(tokens) == len(tokens)

    def feed(self, text: bytes) -> None:
        """Takes a text that came as a part of a token.

        Raises:
            GrammarError: it is not allowed here.
        """
        for token in self.words.compiled.tokenize_bytes(text):
            self.accept(token)

    @property
    def is_complete(self) -> bool:
        """As `Constraint.is_complete`."""
        return self._matcher.is_accepting()

    @property
    def must_stop(self) -> bool:
        """As `Constraint.must_stop`."""
        return self._matcher.is_stopped()
