"""Free text before a constraint: `After`.

A model may think first, and may talk before it decides to call a tool. Both are free. What follows is not:

    <think> ... </think> I look. <tool_call> {"name": ...
    reasoning            text    constrained from the trigger on
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ikq.grammar.constraint import Constraint, GrammarConstraint, n_allowed_by_masks

__all__ = ["After", "FreeText"]

# white space between reasoning and what follows it
_GAPS = (b"\n", b"\n\n", b" ")
_LONGEST_GAP = 3


@dataclass(frozen=True, kw_only=True)
class FreeText:
    """What is free before a constraint.

    Attributes:
        reasoning: The marks around it; `None`: the model does not think.
        is_open: The prompt has opened it already.
        triggers: Texts that begin what is constrained, wherever one stands in the answer; they are part of
            it. None: the answer is constrained as a whole.
        opening: Texts that do so only where they begin the answer.
    """

    reasoning: tuple[str, str] | None = None
    is_open: bool = False
    triggers: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()

    @property
    def is_lazy(self) -> bool:
        """Whether the model decides that something constrained comes at all."""
        return bool(self.triggers or self.opening)


class _Phase(enum.Enum):
    START = enum.auto()  # nothing but white space, or what may become a mark
    REASONING = enum.auto()
    GAP = enum.auto()  # reasoning is over, nothing constrained has come
    TEXT = enum.auto()
    CONSTRAINED = enum.auto()


class After(Constraint):
    """A constraint that begins behind free text.

    Tokens do not end where marks do: one that completes a mark and goes on behind it is allowed only if the
    constraint takes what it says there.
    """

    def __init__(self, inner: GrammarConstraint, free: FreeText) -> None:
        """Begins a text.

        Args:
            inner: The constraint, from its beginning.
            free: What comes before it.
        """
        self._inner = inner
        self._free = free
        self._words = inner.words
        tokenizer = inner.words.tokenizer
        self._ends = sorted(tokenizer.end_ids)
        self._open, self._close = (m.encode() for m in free.reasoning or ("", ""))
        self._triggers = [t.encode() for t in free.triggers]
        self._opening = [t.encode() for t in free.opening]
        self._openers = self._words.spelled([self._open]) if free.reasoning else []
        self._gaps = self._words.spelled(_GAPS)
        self._bans: dict[tuple[bytes, int], list[int]] = {}
        self._phase = _Phase.REASONING if free.reasoning and free.is_open else _Phase.START
        self._text = b""

    def mask(self) -> NDArray[np.bool_] | None:
        """As `Constraint.mask`."""
        if self._phase is _Phase.CONSTRAINED:
            return self._inner.mask()
        if self._phase is _Phase.REASONING:
            banned = [] if self._free.is_lazy else [*self._ends, *self._banned(self._close)]
            return self._all_but(banned)
        if not self._free.is_lazy:
            allowed = self._inner.mask()
            if self._phase is _Phase.START:
                allowed[self._openers] = True
            elif len(self._text) < _LONGEST_GAP:
                allowed[self._gaps] = True
            return allowed
        marks = self._triggers if self._phase is _Phase.TEXT else [*self._triggers, *self._opening]
        return self._all_but([token for mark in marks for token in self._banned(mark)])

    def accept(self, token: int) -> None:
        """As `Constraint.accept`."""
        if self._phase is _Phase.CONSTRAINED:
            self._inner.accept(token)
        elif token in self._words.tokenizer.end_ids:
            if not self.is_complete:
                self._inner.accept(token)  # which says that it is not allowed
        elif not self._free.is_lazy and not self._is_free(token):
            self._phase = _Phase.CONSTRAINED
            self._inner.accept(token)
        else:
            self._text += self._words.tokenizer.token_bytes(token)
            self._advance()

    def n_allowed(self, tokens: Sequence[int]) -> int:
        """As `Constraint.n_allowed`."""
        if self._phase is _Phase.CONSTRAINED:
            return self._inner.n_allowed(tokens)
        return n_allowed_by_masks(self, tokens)

    def clone(self) -> After:
        """As `Constraint.clone`."""
        other = After.__new__(After)
        other.__dict__.update(self.__dict__)
        other._inner = self._inner.clone()
        return other

    @property
    def is_complete(self) -> bool:
        """As `Constraint.is_complete`."""
        return self._inner.is_complete if self._phase is _Phase.CONSTRAINED else self._free.is_lazy

    @property
    def must_stop(self) -> bool:
        """As `Constraint.must_stop`."""
        return self._phase is _Phase.CONSTRAINED and self._inner.must_stop

    def _is_free(self, token: int) -> bool:
        """Whether a token that came in a text that is constrained as a whole is before the constraint."""
        if self._phase is _Phase.REASONING:
            return True
        if self._phase is _Phase.START:
            return token in self._openers
        return len(self._text) < _LONGEST_GAP and token in self._gaps

    def _advance(self) -> None:
        """Finds out where the text is by now."""
        if self._phase is _Phase.START and self._is_reasoning_opened():
            self._phase = _Phase.REASONING
        if self._phase is _Phase.REASONING and self._close in self._text:
            _, _, self._text = self._text.partition(self._close)
            self._phase = _Phase.START if self._free.is_lazy else _Phase.GAP
            # reasoning comes once
            self._open = b""
            if not self._free.is_lazy and self._text.strip():
                self._constrain(self._text.lstrip())
                return
        if self._phase is _Phase.REASONING:
            # only what may still become the mark matters
            self._text = self._text[-len(self._close) :]
        if self._phase in (_Phase.START, _Phase.TEXT) and self._free.is_lazy:
            self._find_trigger()

    def _is_reasoning_opened(self) -> bool:
        begun = self._text.lstrip()
        if not self._open or not begun.startswith(self._open):
            return False
        self._text = begun[len(self._open) :]
        return True

    def _find_trigger(self) -> None:
        places = [(self._text.find(t), -len(t)) for t in self._triggers if t in self._text]
        begun = self._text.lstrip()
        if self._phase is _Phase.START and begun:
            opened = [t for t in self._opening if begun.startswith(t)]
            if opened:
                self._constrain(begun)
                return
            waiting = [self._open, *self._opening]
            if not any(mark.startswith(begun) for mark in waiting if mark):
                self._phase = _Phase.TEXT
        if places:
            self._constrain(self._text[min(places)[0] :])
        elif self._phase is _Phase.TEXT and self._triggers:
            # only what may still become a trigger matters
            self._text = self._text[-max(len(t) for t in self._triggers) :]

    def _constrain(self, text: bytes) -> None:
        """The constraint begins with `text`."""
        self._phase, self._text = _Phase.CONSTRAINED, b""
        self._feed(self._inner, text)

    def _feed(self, inner: GrammarConstraint, text: bytes) -> None:
        for part in self._words.split(text):
            if isinstance(part, int):
                inner.accept(part)
            else:
                inner.feed(part)

    def _banned(self, mark: bytes) -> list[int]:
        """Tokens that complete a mark here and say behind it what the constraint does not take."""
        banned = []
        for n in range(len(mark)):
            if n and not self._text.endswith(mark[:n]):
                continue
            if (mark, n) not in self._bans:
                self._bans[mark, n] = self._tested(mark, n)
            banned += self._bans[mark, n]
        return banned

    def _tested(self, mark: bytes, n: int) -> list[int]:
        candidates = self._words.completions(mark)[n]
        if not candidates:
            return []
        inner = self._inner.clone()
        if mark != self._close:
            self._feed(inner, mark)
        else:
            candidates = [(token, rest.lstrip()) for token, rest in candidates if rest.strip()]
        return [token for token, rest in candidates if not inner.takes(rest)]

    def _all_but(self, banned: list[int]) -> NDArray[np.bool_] | None:
        if not banned:
            return None
        mask = np.ones(self._words.n_vocab, np.bool_)
        mask[banned] = False
        return mask
