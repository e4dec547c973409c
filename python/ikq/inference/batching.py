"""`Batcher`: the generations of a model computed together, by the threads that ask for their pieces.

A work (`ikq.inference.steps`) is *pending* while the logits after its last token are not computed. This
begins when that token is chosen, not when the logits are asked for. A thread that asks for logits that are
not there becomes the leader: it computes a step for everything that is pending, and then gives way. So one
thread that takes pieces of several generations by turns, and many threads with one each, both run full
batches; and nothing is computed that nobody asks for, but one token ahead.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ikq.inference.steps import Outcome, Steps, Work
from ikq.sampling.candidates import Scores

if TYPE_CHECKING:
    from ikq.text.model import TextModel

__all__ = ["Batcher", "Work"]

# How long a leader waits for threads that are choosing a token: share of the last step's time, and seconds.
_PATIENCE, _MOST_PATIENCE = 0.1, 0.005


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


class Batcher(Steps):
    """Computes what generations of a model ask for, in common steps.

    Args:
        model: The model; it is not kept alive.
        n_ubatch: The largest number of tokens of a step, roughly.
    """

    def __init__(self, model: TextModel, n_ubatch: int) -> None:
        super().__init__(model, n_ubatch)
        self._step_over = _News()  # and nobody leads
        self._token_chosen = _News()
        self._leader: int | None = None
        self._last_seconds = 0.0
        # works that nobody wants any more; only this is touched while objects are collected
        self._left: deque[Work] = deque()

    def watch(self, owner: object, work: Work) -> None:
        """Lets a work go when its owner is gone."""
        weakref.finalize(owner, self._left.append, work).atexit = False

    def logits(self, work: Work, progress: Callable[[int, int], object] | None = None) -> Scores:
        """Logits after the last token of a work, those that it needs. `chosen` must follow.

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
                work.choose()
            work._is_pending = goes_on and work._logits is None
        self._token_chosen.tell()

    def leave(self, work: Work) -> None:
        """Ends a text; what was computed for it is kept for others."""
        with self._lock:
            self._works.pop(work, None)
            work._is_pending = work._is_choosing = False
        self._token_chosen.tell()
        super().leave(work)

    def forget(self) -> bool:
        """Frees the sequences of texts that have ended, and returns whether there were any."""
        self._let_go()
        return super().forget()

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
        done = self.computed(works)
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

    def _store(self, work: Work, found: Outcome) -> None:
        """Notes what a step gave."""
        if isinstance(found, int):
            work.n_done = found
            return
        if not work._is_pending:  # left meanwhile
            return
        if isinstance(found, Exception):
            work._error = found
        else:
            work.receive(found)
        work._is_pending = False
        work._is_choosing = work._is_waited_for
