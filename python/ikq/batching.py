"""`Batcher`: the generations of a model computed together.

A generation is a `Work`: tokens, and a sequence that holds the first of them. It is *pending* while its
logits after the last token are not computed, which begins when that token is chosen, not when its logits are
asked for. Who asks and finds none becomes the leader: it computes a step for all that is pending, then gives
way. So one thread that takes pieces of several generations by turns, and many threads with one each, both
run full batches; and nothing is computed that nobody asks for, but one token ahead.

What is computed beside a sequence does not change its logits, so texts do not depend on company.

A work may have drafts (`ikq.speculation`): its part of a step is its last token and what may follow, and the
logits behind drafted tokens serve while these are chosen. Drafts of all works are made together, too.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ikq.errors import RefusedError
from ikq.kept import KeptSequences, common_length
from ikq.sequence import Sequence, Want
from ikq.speculation.depth import StepTimes
from ikq.speculation.drafter import Drafting, draft_together
from ikq.speculation.experience import Experiences
from ikq.speculation.text import TextSpeculation
from ikq.speculation.verify import Verified

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
        speculation: What drafts it, if anything does.
        n_left: Tokens that are wanted at most; `None`: no limit.
    """

    def __init__(
        self,
        tokens: list[int],
        sequence: Sequence | None = None,
        speculation: TextSpeculation | None = None,
    ) -> None:
        self.tokens = tokens
        self.sequence = sequence
        self.speculation = speculation
        self.n_left: int | None = None
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
        # logits that were not chosen from, and those of the step that they belong to
        self._logits: NDArray[np.float32] | None = None
        self._verified: _Found | None = None
        self._error: Exception | None = None

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Forgets `n_discard` tokens after the first `n_keep`; the last token is not in the sequence yet.

        Raises:
            UnsupportedError: the model has recurrent layers.
            RefusedError: memory does not hold what is moved.
        """
        sequence = self.sequence
        assert sequence is not None, "logits were computed"
        if self._verified is not None:
            self._verified.verified.choose(self.tokens[-1])
        self._settle()
        if self._version == sequence._version and sequence.n_past == len(self.tokens) - 1:
            sequence.shift(n_keep, n_discard)
            self._version = sequence._version
        else:
            self._version = -1
        del self.tokens[n_keep : n_keep + n_discard]
        if self.speculation is not None:
            self.speculation.drafter.shift(n_keep, n_discard)

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

    def _choose(self) -> None:
        """Says that the last token was chosen from the logits at hand; those behind it may serve."""
        if self._verified is not None:
            self._verified.verified.choose(self.tokens[-1])
            self._logits = self._verified.verified.logits
            if self._logits is None:
                self._forget_draft()

    def _settle(self) -> None:
        """Ends with the logits of a step, and takes drafted tokens back that were not chosen."""
        found, sequence = self._verified, self.sequence
        self._forget_draft()
        if found is not None and sequence is not None and self._version == sequence._version:
            sequence.truncate(sequence.rewindable(found.n_tokens + found.verified.n_accepted))
            self._version = sequence._version

    def _forget_draft(self) -> None:
        """Ends with the logits of a step."""
        found, self._verified, self._logits = self._verified, None, None
        if found is not None and self.speculation is not None:
            self.speculation.done(found.verified, found.n_tokens, found.seconds)


class _Part(NamedTuple):
    """Tokens of a work that are computed in a step, the last `n_draft` of them drafted ones."""

    work: Work
    sequence: Sequence
    tokens: list[int]
    is_last: bool
    n_draft: int = 0

    @property
    def is_single(self) -> bool:
        """Whether nothing but the last token is to be computed."""
        return self.is_last and len(self.tokens) == 1 + self.n_draft

    @property
    def needs_hidden(self) -> bool:
        """Whether hidden states are wanted at all positions."""
        return self.work.speculation is not None and self.work.speculation.drafter.needs_hidden

    @property
    def want(self) -> Want:
        """What the step is to give."""
        if self.needs_hidden:
            return "hidden"
        if not self.is_last:
            return "none"
        return "all" if self.n_draft else "last"


class _Found(NamedTuple):
    """What a step gave to a work whose last token was in it.

    Attributes:
        verified: Logits behind that token and the drafted ones.
        n_tokens: Tokens of the text before the draft.
        seconds: Time of the step; `None` if there were prompts in it.
    """

    verified: Verified
    n_tokens: int
    seconds: float | None


_Outcome: TypeAlias = _Found | Exception | int
"""What became of a work in a step: logits, an error, or how far its prompt is."""


class _News:
    """Wakes all that wait for it. Nothing is locked meanwhile, so an interruption leaves nothing locked."""

    def __init__(self) -> None:
        self._batons: deque[threading.Lock] = deque()

    def baton(self) -> threading.Lock:
        """To be acquired by who waits; that ends with the next `tell`."""
        baton = threading.Lock()
        baton.acquire()
        self._batons.append(baton)
        return baton

    def tell(self) -> None:
        """Wakes them."""
        while self._batons:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._batons.popleft().release()


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
        self._lock = threading.Lock()
        self._step_over = _News()  # and nobody leads
        self._token_chosen = _News()
        # in order of their first step
        self._works: dict[Work, None] = {}
        self._leader: int | None = None
        self._last_seconds = 0.0
        # of steps without prompts
        self.step_times = StepTimes()
        self.experiences = Experiences()
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
            with self._lock:
                self._works.setdefault(work)
                work._is_waited_for = True
                work._is_pending = work._logits is None and work._error is None
                work._is_choosing = not work._is_pending
                work.n_done = 0 if work._is_pending else work.n_done
            while work._is_pending:
                self._lead_or_wait(work, told)
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
        """The token after the last logits is chosen; if the text goes on, the next logits are pending.

        Unless the token is a drafted one, and they are at hand.
        """
        with self._lock:
            work._is_waited_for = work._is_choosing = False
            work._logits = None
            if goes_on:
                work._choose()
            work._is_pending = goes_on and work._logits is None
        self._token_chosen.tell()

    def shift(self, work: Work, n_keep: int, n_discard: int) -> None:
        """As `Work.shift`, with what is kept given back if memory is short."""
        self.spared(partial(work.shift, n_keep, n_discard))

    def leave(self, work: Work) -> None:
        """A text is over: what was computed for it is kept for others."""
        with self._lock:
            self._works.pop(work, None)
            work._is_pending = work._is_choosing = False
        self._token_chosen.tell()
        with contextlib.suppress(ValueError):  # closed, or the model is
            work._settle()
        if work.speculation is not None:
            work.speculation.close()
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

    def _lead_or_wait(self, work: Work, told: int) -> None:
        """Computes a step, or waits until another thread has, unless there is news of the work already."""
        me = threading.get_ident()
        try:
            with self._lock:
                if not work._is_pending or work.n_done != told:
                    return
                # if it were this thread, an interruption came before it could say that it leads no more
                leads = self._leader in (None, me)
                if leads:
                    self._leader = me
                else:
                    baton = self._step_over.baton()
            if leads:
                self._lead()
            else:
                baton.acquire()
        finally:
            if self._leader == me:
                self._leader = None
                self._step_over.tell()

    def _lead(self) -> None:
        """Computes a step of all that is pending."""
        self._let_go()
        works = self._gathered()
        start = time.perf_counter()
        done = self._computed(works)
        seconds = time.perf_counter() - start
        with self._lock:
            self._last_seconds = seconds
            for work, found in done:
                work.seconds += seconds
                self._store(work, found)

    def _gathered(self) -> list[Work]:
        """All that is pending, after a moment's wait for threads that are choosing a token."""
        end = time.perf_counter() + min(_PATIENCE * self._last_seconds, _MOST_PATIENCE)
        while True:
            with self._lock:
                left = end - time.perf_counter()
                if left <= 0 or not any(w._is_choosing for w in self._works):
                    return [w for w in self._works if w._is_pending]
                baton = self._token_chosen.baton()
            baton.acquire(timeout=left)

    def _store(self, work: Work, found: _Outcome) -> None:
        """Notes what a step gave."""
        if isinstance(found, int):
            work.n_done = found
            return
        if not work._is_pending:  # left meanwhile
            return
        if isinstance(found, Exception):
            work._error = found
        else:
            work._verified = found
            work._logits = found.verified.logits
            work.n_done = len(work.tokens)
        work._is_pending = False
        work._is_choosing = work._is_waited_for

    def _computed(self, works: list[Work]) -> list[tuple[Work, _Outcome]]:
        """What a step gives to each of these works that takes part in it."""
        done: list[tuple[Work, _Outcome]] = []
        parts = self._composed(works, done)
        try:
            parts = self._drafted(parts)
            start = time.perf_counter()
            found = self._step(parts)
        except Exception as error:
            if len(parts) == 1:
                done.append((parts[0].work, error))
                return done
            # whose error it is shows when they are alone
            for part in parts:
                done += self._computed([part.work])
            return done
        seconds: float | None = time.perf_counter() - start
        if not all(p.is_single for p in parts):
            seconds = None
        elif seconds is not None:
            self.step_times.add(sum(len(p.tokens) for p in parts), seconds)
        for part, logits in zip(parts, found, strict=True):
            part.work._version = part.sequence._version
            if part.is_last:
                assert logits is not None
                verified = Verified(logits, part.tokens[len(part.tokens) - part.n_draft :])
                done.append((part.work, _Found(verified, len(part.work.tokens), seconds)))
            else:
                done.append((part.work, part.sequence.n_past))
        return done

    def _drafted(self, parts: list[_Part]) -> list[_Part]:
        """The same parts with drafts."""
        model = self._model()
        assert model is not None, "a generation keeps its model alive"
        ready = [p for p in parts if p.is_single]
        n_texts = sum(p.work.speculation is not None for p in ready)
        draftings: dict[int, Drafting] = {}
        for i, part in enumerate(parts):
            work, speculation = part.work, part.work.speculation
            if speculation is None:
                continue
            if part.is_single:
                n_most = model.n_ctx - len(work.tokens)
                n_most = n_most if work.n_left is None else min(n_most, work.n_left - 1)
                draftings[i] = speculation.drafting(work.tokens, n_most, n_texts, len(ready) - n_texts)
            else:
                draftings[i] = speculation.reading(work.tokens, part.sequence.n_past + len(part.tokens))
        drafts = dict(zip(draftings, draft_together(list(draftings.values())), strict=True))
        return [
            part._replace(tokens=part.tokens + drafts[i], n_draft=len(drafts[i])) if drafts.get(i) else part
            for i, part in enumerate(parts)
        ]

    def _step(self, parts: list[_Part]) -> list[NDArray[np.float32] | None]:
        """Logits behind the last token of each part and behind its draft; `None` for parts of prompts."""
        if not parts:
            return []
        model = self._model()
        assert model is not None, "a generation keeps its model alive"
        found = model.step([(p.sequence, p.tokens, p.want) for p in parts])
        # what is wanted of hidden states
        rows: dict[int, NDArray[np.float32]] = {}
        for i, part in enumerate(parts):
            hidden, work = found[i], part.work
            if not part.needs_hidden or hidden is None or work.speculation is None:
                continue
            work.speculation.drafter.observe(work.tokens, part.sequence.n_past - len(hidden), hidden)
            found[i] = None
            if part.is_last:
                rows[i] = hidden[len(hidden) - 1 - part.n_draft :]
        if rows:
            logits = model._head(np.concatenate(list(rows.values())))
            for i, n in zip(rows, np.cumsum([len(x) for x in rows.values()]), strict=True):
                found[i] = logits[n - len(rows[i]) : n]
        return found

    def _composed(self, works: list[Work], failed: list[tuple[Work, _Outcome]]) -> list[_Part]:
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
                singles.append(_Part(work, work.sequence, work.tokens[n:], is_last=True))
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
            parts.append(_Part(work, work.sequence, part, is_last))
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
        with self._lock:
            sequences = [w.sequence for w in self._works if w.sequence is not None]
        return sequences if model is None else (*sequences, *model._own_sequences())
