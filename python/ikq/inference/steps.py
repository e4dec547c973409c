"""`Steps`: the tokens that a step of a model computes, and its results.

A text that is being generated is a `Work`: its tokens, and a sequence that holds the first of them. A step
computes the next token of each work, or a part of its prompt. The caller decides which works take part:
threads that ask by turns (`ikq.inference.batching`), or the one that owns the model (`ikq.serve`).

The logits of a sequence do not depend on what else is computed in the step, and so texts do not either.

A work may have drafts (`ikq.speculation`): its part of a step is its last token and what may follow, and the
logits behind drafted tokens serve while these are chosen. Drafts of all works are made together, too.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ikq.errors import RefusedError
from ikq.inference.kept import KeptSequences, common_length
from ikq.inference.sequence import MOST_BEST, Best, Sequence, Want
from ikq.sampling.candidates import Scores
from ikq.speculation.depth import StepTimes
from ikq.speculation.drafter import Drafting, draft_together
from ikq.speculation.experience import Experiences
from ikq.speculation.text import TextSpeculation
from ikq.speculation.verify import Verified

if TYPE_CHECKING:
    from ikq.inference.lora import Scales
    from ikq.text.model import TextModel

__all__ = ["Found", "Kept", "Outcome", "Part", "Prompt", "Share", "Steps", "Work", "evenly", "n_left"]

T = TypeVar("T")

# A prompt's part of a step is not made smaller than this.
_LEAST_PART = 32
# A prompt waits for another one that is being computed, if it can share so many more tokens with it.
_WORTH_WAITING = 64


class Kept(Protocol):
    """A store of sequences for texts with the same beginning, such as `KeptSequences`."""

    def __len__(self) -> int: ...

    def add(self, sequence: Sequence) -> None:
        """See `KeptSequences`, as for all others."""

    def clear(self) -> int:
        """See there."""

    def find(
        self, tokens: list[int], in_use: Iterable[Sequence], lora: Scales = ()
    ) -> tuple[Sequence | None, int]:
        """See there."""

    def take(self, found: Sequence, n: int, tokens: list[int]) -> Sequence | None:
        """See there."""


class Work:
    """A text that is being generated.

    Attributes:
        tokens: All its tokens, a list that its owner changes while nothing is computed.
        sequence: Holds the first of them; `None` before the first step.
        n_done: Tokens that are computed; `n_reused` of them were there at the beginning.
        n_reused: See there.
        seconds: Time of the steps that it took part in.
        speculation: What drafts it, if anything does.
        n_left: Tokens that are wanted at most; `None`: no limit.
        n_best: How many of the largest logits its tokens are chosen from; `None`: all logits are needed.
        lora: Scales of the model's adapters; `None` before the first step: those that the model then has.
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
        self.n_best: int | None = None
        self.lora: Scales | None = None if sequence is None else sequence.lora
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
        self._logits: Scores | None = None
        self._verified: Found | None = None
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
        self.settle()
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

    def receive(self, found: Found) -> None:
        """Takes the result of a step: the logits after the last token."""
        self._verified = found
        self._logits = found.verified.logits
        self.n_done = len(self.tokens)

    @property
    def logits(self) -> Scores | None:
        """Logits after the last token; `None`: a step is needed."""
        return self._logits

    def choose(self) -> None:
        """Says that the last token was chosen from the logits at hand; those behind it may serve."""
        if self._verified is not None:
            self._verified.verified.choose(self.tokens[-1])
            self._logits = self._verified.verified.logits
            if self._logits is None:
                self._forget_draft()

    def settle(self) -> None:
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


class Part(NamedTuple):
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
    def want(self) -> Want | Best:
        """The results that the step must return."""
        if self.needs_hidden:
            return "hidden"
        if not self.is_last:
            return "none"
        if self.n_best is not None:
            return Best(self.n_best, each=self.n_draft > 0)
        return "all" if self.n_draft else "last"

    @property
    def n_best(self) -> int | None:
        """How many of the largest logits are enough; `None`: all are needed."""
        n = self.work.n_best
        return None if n is None or n > MOST_BEST else n


class Found(NamedTuple):
    """The result of a step for a work whose last token was in it.

    Attributes:
        verified: Logits behind that token and the drafted ones.
        n_tokens: Tokens of the text before the draft.
        seconds: Time of the step; `None` if there were prompts in it.
    """

    verified: Verified
    n_tokens: int
    seconds: float | None


Outcome: TypeAlias = Found | Exception | int
"""What became of a work in a step: logits, an error, or how far its prompt is."""


Prompt: TypeAlias = "tuple[Work, int]"
"""A work whose prompt is computed, and how many of its tokens are; never all."""

Share: TypeAlias = Callable[[list[Prompt], int], Iterable[tuple[Prompt, int]]]
"""Takes prompts and the room of a step in tokens; gives those that take part, at least one of them, with
their parts of it, each at least 1. More than a prompt needs does not matter."""


class Steps:
    """Computes works of a model in common steps.

    Args:
        model: The model; it is not kept alive.
        n_ubatch: Most tokens of a step, roughly.

    Attributes:
        kept: Sequences of texts that have ended.
        share: How prompts share the room of a step.
        step_times: Times of steps without prompts.
        experiences: What became of drafts.
    """

    def __init__(self, model: TextModel, n_ubatch: int) -> None:
        self.kept: Kept = KeptSequences()
        self.share: Share = evenly
        self.step_times = StepTimes()
        self.experiences = Experiences()
        self._model = weakref.ref(model)
        self._n_ubatch = n_ubatch
        self._lock = threading.Lock()
        # in order of their first step
        self._works: dict[Work, None] = {}

    def join(self, work: Work) -> None:
        """A work takes part from now on: others may share what it holds."""
        with self._lock:
            self._works.setdefault(work)

    def shift(self, work: Work, n_keep: int, n_discard: int) -> None:
        """As `Work.shift`, with what is kept given back if memory is short."""
        self.spared(partial(work.shift, n_keep, n_discard))

    def leave(self, work: Work) -> None:
        """Ends a text; what was computed for it is kept for others."""
        with self._lock:
            self._works.pop(work, None)
        with contextlib.suppress(ValueError):  # closed, or the model is
            work.settle()
        if work.speculation is not None:
            work.speculation.close()
        if work.sequence is not None and not work._is_lent:
            self.kept.add(work.sequence)
            work.sequence = None

    def drop(self, work: Work) -> None:
        """Gives back what was computed for a text that goes on later: all its tokens are a prompt then."""
        with self._lock:
            self._works.pop(work, None)
        work.settle()
        if work.sequence is not None:
            work.sequence.close()
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
        """Frees the sequences of texts that have ended, and returns whether there were any."""
        return self.kept.clear() > 0

    def computed(self, works: list[Work]) -> list[tuple[Work, Outcome]]:
        """What a step gives to each of these works that takes part in it."""
        done: list[tuple[Work, Outcome]] = []
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
                done += self.computed([part.work])
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
                done.append((part.work, Found(verified, len(part.work.tokens), seconds)))
            else:
                done.append((part.work, part.sequence.n_past))
        return done

    def _drafted(self, parts: list[Part]) -> list[Part]:
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

    def _step(self, parts: list[Part]) -> list[list[Scores] | None]:
        """Logits behind the last token of each part and behind its draft; `None` for parts of prompts."""
        if not parts:
            return []
        model = self._model()
        assert model is not None, "a generation keeps its model alive"
        given = model.step([(p.sequence, p.tokens, p.want) for p in parts])
        found: list[list[Scores] | None] = [None if x is None else list(x) for x in given]
        # what is wanted of hidden states
        rows: dict[tuple[Scales, int | None], dict[int, NDArray[np.float32]]] = {}
        for i, part in enumerate(parts):
            hidden, work = given[i], part.work
            if not part.needs_hidden or not isinstance(hidden, np.ndarray) or work.speculation is None:
                continue
            work.speculation.drafter.observe(work.tokens, part.sequence.n_past - len(hidden), hidden)
            found[i] = None
            if part.is_last:
                alike = rows.setdefault((part.sequence.lora, part.n_best), {})
                alike[i] = hidden[len(hidden) - 1 - part.n_draft :]
        for (lora, n_best), alike in rows.items():
            hidden = np.concatenate(list(alike.values()))
            largest = None if n_best is None else model._head_best(hidden, n_best, lora)
            logits = model._head(hidden, lora) if largest is None else largest
            for i, n in zip(alike, np.cumsum([len(x) for x in alike.values()]), strict=True):
                found[i] = list(logits[n - len(alike[i]) : n])
        return found

    def _composed(self, works: list[Work], failed: list[tuple[Work, Outcome]]) -> list[Part]:
        """The parts of a step: single tokens, and of prompts what there is room for."""
        singles: list[Part] = []
        prompts: list[Prompt] = []
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
                singles.append(Part(work, work.sequence, work.tokens[n:], is_last=True))
            else:
                prompts.append((work, n))
        room = max(self._n_ubatch - len(singles), self._n_ubatch // 4, 1)
        prompts = prompts[: max(1, room // _LEAST_PART)]
        parts = singles
        for (work, n), n_part in self.share(prompts, room):
            part = work.tokens[n : n + n_part]
            is_last = n + len(part) == len(work.tokens)
            assert work.sequence is not None
            parts.append(Part(work, work.sequence, part, is_last))
        return parts

    def _placed(self, work: Work, prompts: list[Prompt]) -> int | None:
        """Gives a work a sequence, as far along as may be; the length. `None` if it had better wait.

        Args:
            work: The work.
            prompts: Others whose prompts are computed in this step.
        """
        if work.sequence is None:
            wanted = work.tokens[:-1]
            lora = self._lora(work)
            found, n = self.kept.find(wanted, self._in_use(), lora)
            shared = [(common_length(w.tokens, wanted), at) for w, at in prompts if w.lora == lora]
            if any(common >= n + _WORTH_WAITING and at < common for common, at in shared):
                return None
            if found is not None:
                work.sequence = self.spared(partial(self.kept.take, found, n, wanted))
            if work.sequence is None:
                work.sequence = self._new_sequence(lora)
            work._version = work.sequence._version
        n = work.place()
        if not work._has_begun:
            work.n_reused = n
            work._has_begun = True
        return n

    def _lora(self, work: Work) -> Scales:
        """Scales of adapters for a work, which keeps them."""
        if work.lora is None:
            model = self._model()
            assert model is not None, "a generation keeps its model alive"
            work.lora = model._lora_scales()
        return work.lora

    def _new_sequence(self, lora: Scales) -> Sequence:
        model = self._model()
        assert model is not None, "a generation keeps its model alive"
        return model.new_sequence(lora=lora)

    def _in_use(self) -> Iterable[Sequence]:
        """Sequences that somebody works on."""
        model = self._model()
        with self._lock:
            sequences = [w.sequence for w in self._works if w.sequence is not None]
        return sequences if model is None else (*sequences, *model._own_sequences())


def n_left(prompt: Prompt) -> int:
    """Tokens of a prompt that are still to be computed."""
    work, n = prompt
    return len(work.tokens) - n


def evenly(prompts: list[Prompt], room: int) -> Iterable[tuple[Prompt, int]]:
    """Every prompt gets the same share of a step; what it does not need is for the others."""
    prompts = sorted(prompts, key=n_left)
    for i, prompt in enumerate(prompts):
        share = max(1, room // (len(prompts) - i))
        yield prompt, share
        room -= min(share, n_left(prompt))
