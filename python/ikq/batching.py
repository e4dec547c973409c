"""`Batcher`: the generations of a model computed together.

A generation is a `Work`: tokens, and a sequence that holds the first of them. It is *pending* while its
logits after the last token are not computed, which begins when that token is chosen, not when its logits are
asked for. Who asks and finds none becomes the leader: it computes a step for all that is pending, then gives
way. So one thread that takes pieces of several generations by turns, and many threads with one each, both
run full batches; and nothing is computed that nobody asks for, but one token ahead.

What is computed beside a sequence does not change its logits, so texts do not depend on company.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ikq.errors import RefusedError
from ikq.kept import KeptSequences, common_length
from ikq.sequence import Sequence

if TYPE_CHECKING:
    from ikq.text import TextModel

__all__ = ["Batcher", "Work"]

T = TypeVar("T")

# A prompt's part of a step is not made smaller than this.
_LEAST_PART = 32
# A prompt waits for another one that is being computed, if it can share so many more tokens with it.
_WORTH_WAITING = 64
# How long a leader waits for threads that are choosing a token: share of the last step's time, and seconds.
_PATIENCE, _MOST_PATIENCE = 0.1, 0.005


class Work:
    """A generation as the batcher sees it.

    Attributes:
        tokens: All its tokens, a list that the generation changes while nothing is pending.
        sequence: Holds the first of them; `None` before the first step.
        n_done: Tokens that are computed; `n_reused` of them were there at the beginning.
        n_reused: See there.
        seconds: Time of the steps that it took part in.
    """

    def __init__(self, tokens: list[int], sequence: Sequence | None = None) -> None:
        self.tokens = tokens
        self.sequence = sequence
        self.n_done = 0
        self.n_reused = 0
        self.seconds = 0.0
        self._is_lent = sequence is not None
        self._has_begun = False
        # the sequence's version as it was left
        self._version = -1
        self._is_pending = False
        # somebody is in `Batcher.logits`, or has logits and is choosing a token
        self._is_waited_for = False
        self._is_choosing = False
        self._logits: NDArray[np.float32] | None = None
        self._error: Exception | None = None

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Forgets `n_discard` tokens after the first `n_keep`; the last token is not in the sequence yet.

        Raises:
            UnsupportedError: the model has recurrent layers.
            RefusedError: memory does not hold what is moved.
        """
        sequence = self.sequence
        assert sequence is not None, "logits were computed"
        if self._version == sequence._version and sequence.n_past == len(self.tokens) - 1:
            sequence.shift(n_keep, n_discard)
            self._version = sequence._version
        else:
            self._version = -1
        del self.tokens[n_keep : n_keep + n_discard]

    def place(self) -> int:
        """Makes the sequence hold a beginning of the tokens, but not all; its length."""
        assert self.sequence is not None
        n_past = self.sequence.n_past
        n = min(n_past, len(self.tokens) - 1)
        if self._version != self.sequence._version:
            # the caller's, or an interruption came between a step and the note of it
            n = min(n, self.sequence.n_unshifted, common_length(self.sequence.tokens, self.tokens))
        if n < n_past:
            n = self.sequence.rewindable(n)
            self.sequence.truncate(n)
        self._version = self.sequence._version
        return n


class _Part(NamedTuple):
    """Tokens of a work that are computed in a step."""

    work: Work
    sequence: Sequence
    tokens: list[int]
    want: Literal["last", "none"]


class Batcher:
    """Computes what generations of a model ask for, in common steps.

    Args:
        model: The model; it is not kept alive.
        n_ubatch: Most tokens of a step, roughly.
    """

    def __init__(self, model: TextModel, n_ubatch: int) -> None:
        self.kept = KeptSequences()
        self._model = weakref.ref(model)
        self._n_ubatch = n_ubatch
        lock = threading.Lock()
        self._stepped = threading.Condition(lock)  # a step is over, nobody leads
        self._chosen = threading.Condition(lock)  # a token is chosen
        # in order of their first step
        self._works: dict[Work, None] = {}
        self._leader: int | None = None
        self._last_seconds = 0.0
        # works that nobody wants any more; only this is touched while objects are collected
        self._left: deque[Work] = deque()

    def watch(self, owner: object, work: Work) -> None:
        """Lets a work go when its owner is gone."""
        weakref.finalize(owner, self._left.append, work).atexit = False

    def logits(self, work: Work, progress: Callable[[int, int], object] | None = None) -> NDArray[np.float32]:
        """Logits after the last token of a work: float32 `(n_vocab,)`. `chosen` must follow.

        Args:
            work: The work; its sequence holds all its tokens afterwards.
            progress: Called with `n_done` and the number of tokens after each step, in this thread.

        Raises:
            Exception: what `TextModel.step` raises for this work, or `progress`. It may be asked again.
        """
        told = 0
        try:
            with self._stepped:
                self._works.setdefault(work)
                work._is_waited_for = True
                work._is_pending = work._logits is None and work._error is None
                work._is_choosing = not work._is_pending
                work.n_done = 0 if work._is_pending else work.n_done
            while work._is_pending:
                if self._lead_or_wait(work, told):
                    try:
                        self._lead()
                    finally:
                        with self._stepped:
                            self._leader = None
                            self._stepped.notify_all()
                if work.n_done != told:
                    told = work.n_done
                    if progress is not None:
                        progress(told, len(work.tokens))
            error, work._error = work._error, None
            if error is not None:
                raise error
            logits, work._logits = work._logits, None
            assert logits is not None
        except BaseException:
            self.chosen(work, goes_on=False)
            raise
        return logits

    def chosen(self, work: Work, *, goes_on: bool) -> None:
        """The token after the last logits is chosen; if the text goes on, the next logits are pending."""
        with self._stepped:
            work._is_waited_for = work._is_choosing = False
            work._is_pending = goes_on
            work._logits = None
            self._chosen.notify_all()

    def shift(self, work: Work, n_keep: int, n_discard: int) -> None:
        """As `Work.shift`, with what is kept given back if memory is short."""
        self.spared(partial(work.shift, n_keep, n_discard))

    def leave(self, work: Work) -> None:
        """A text is over: what was computed for it is kept for others."""
        with self._stepped:
            self._works.pop(work, None)
            work._is_pending = work._is_choosing = False
            self._chosen.notify_all()
        if work.sequence is not None and not work._is_lent:
            self.kept.add(work.sequence)
            work.sequence = None

    def spared(self, do: Callable[[], T]) -> T:
        """Does something that takes memory; if there is none, gives back what is kept, and tries again."""
        try:
            return do()
        except RefusedError:
            if not self.forget():
                raise
            return do()

    def forget(self) -> bool:
        """Gives back the sequences of texts that are over; whether there were any."""
        self._let_go()
        return self.kept.clear() > 0

    def _let_go(self) -> None:
        """Ends works that nobody wants any more."""
        while self._left:
            with contextlib.suppress(IndexError):  # another thread was faster
                self.leave(self._left.popleft())

    def _lead_or_wait(self, work: Work, told: int) -> bool:
        """Whether the caller is to lead; otherwise something has changed."""
        me = threading.get_ident()
        with self._stepped:
            # if it were this thread, an interruption came before it could say that it leads no more
            while self._leader not in (None, me) and work._is_pending and work.n_done == told:
                self._stepped.wait()
            leads = work._is_pending and self._leader in (None, me)
            if leads:
                self._leader = me
            return leads

    def _lead(self) -> None:
        """Computes a step of all that is pending."""
        self._let_go()
        with self._stepped:
            end = time.perf_counter() + min(_PATIENCE * self._last_seconds, _MOST_PATIENCE)
            while any(w._is_choosing for w in self._works):
                left = end - time.perf_counter()
                if left <= 0 or not self._chosen.wait(left):
                    break
            works = [w for w in self._works if w._is_pending]
        start = time.perf_counter()
        done = self._computed(works)
        seconds = time.perf_counter() - start
        with self._stepped:
            self._last_seconds = seconds
            for work, found in done:
                work.seconds += seconds
                self._store(work, found)

    def _store(self, work: Work, found: NDArray[np.float32] | Exception | int) -> None:
        """Notes what a step gave: logits, an error, or how far a prompt is."""
        if isinstance(found, int):
            work.n_done = found
            return
        if not work._is_pending:  # left meanwhile
            return
        if isinstance(found, Exception):
            work._error = found
        else:
            work._logits = found
            work.n_done = len(work.tokens)
        work._is_pending = False
        work._is_choosing = work._is_waited_for

    def _computed(self, works: list[Work]) -> list[tuple[Work, NDArray[np.float32] | Exception | int]]:
        """What a step gives to each of these works that takes part in it."""
        done: list[tuple[Work, NDArray[np.float32] | Exception | int]] = []
        parts = self._composed(works, done)
        try:
            found = self._step(parts)
        except Exception as error:
            if len(parts) == 1:
                done.append((parts[0].work, error))
                return done
            # whose error it is shows when they are alone
            for part in parts:
                done += self._computed([part.work])
            return done
        for part, logits in zip(parts, found, strict=True):
            part.work._version = part.sequence._version
            if part.want == "last":
                assert logits is not None
                done.append((part.work, logits[0]))
            else:
                done.append((part.work, part.sequence.n_past))
        return done

    def _step(self, parts: list[_Part]) -> list[NDArray[np.float32] | None]:
        model = self._model()
        assert model is not None, "a generation keeps its model alive"
        return model.step([(p.sequence, p.tokens, p.want) for p in parts]) if parts else []

    def _composed(
        self, works: list[Work], failed: list[tuple[Work, NDArray[np.float32] | Exception | int]]
    ) -> list[_Part]:
        """The parts of a step: single tokens, and of prompts what there is room for."""
        singles: list[_Part] = []
        prompts: list[tuple[Work, int]] = []
        for work in works:
            try:
                n = self._placed(work, prompts)
            except Exception as error:
                failed.append((work, error))
                continue
            if n is None:
                continue
            if n == len(work.tokens) - 1:
                assert work.sequence is not None
                singles.append(_Part(work, work.sequence, work.tokens[n:], "last"))
            else:
                prompts.append((work, n))
        room = max(self._n_ubatch - len(singles), self._n_ubatch // 4, 1)
        prompts = prompts[: max(1, room // _LEAST_PART)]
        # the shortest first: what they do not need is for the others
        prompts.sort(key=lambda p: len(p[0].tokens) - p[1])
        parts = singles
        for i, (work, n) in enumerate(prompts):
            part = work.tokens[n : n + max(1, room // (len(prompts) - i))]
            room -= len(part)
            is_last = n + len(part) == len(work.tokens)
            assert work.sequence is not None
            parts.append(_Part(work, work.sequence, part, "last" if is_last else "none"))
        return parts

    def _placed(self, work: Work, prompts: list[tuple[Work, int]]) -> int | None:
        """Gives a work a sequence, as far along as may be; the length. `None` if it had better wait.

        Args:
            work: The work.
            prompts: Others whose prompts are computed in this step.
        """
        if work.sequence is None:
            wanted = work.tokens[:-1]
            found, n = self.kept.find(wanted, self._in_use())
            shared = [(common_length(w.tokens, wanted), at) for w, at in prompts]
            if any(common >= n + _WORTH_WAITING and at < common for common, at in shared):
                return None
            if found is not None:
                work.sequence = self.spared(partial(self.kept.take, found, n, wanted))
            if work.sequence is None:
                work.sequence = self._new_sequence()
            work._version = work.sequence._version
        n = work.place()
        if not work._has_begun:
            work.n_reused = n
            work._has_begun = True
        return n

    def _new_sequence(self) -> Sequence:
        model = self._model()
        assert model is not None, "a generation keeps its model alive"
        return model.new_sequence()

    def _in_use(self) -> Iterable[Sequence]:
        """Sequences that somebody works on."""
        model = self._model()
        with self._stepped:
            sequences = [w.sequence for w in self._works if w.sequence is not None]
        return sequences if model is None else (*sequences, *model._own_sequences())
