"""`Engine`: the one thread that owns a model, and what it computes next."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, TypeAlias

from ikq.errors import FormatError, IkqError, RefusedError
from ikq.inference.model import Model
from ikq.inference.steps import Found, Outcome, Prompt, Work, n_left
from ikq.serve.asking import Asker
from ikq.serve.counters import Counters
from ikq.serve.errors import ServiceError
from ikq.serve.events import Event
from ikq.serve.jobs import Chore, Errand, Job
from ikq.serve.prefixes import PrefixCache
from ikq.serve.queueing import FairQueue
from ikq.serve.request_log import LOG
from ikq.serve.slots import Slots
from ikq.serve.text import Text

__all__ = ["Engine"]

# Positions beyond its prompt that a text is expected to need when it is let in.
_HEADROOM = 256
# Seconds that an engine without work sleeps at most.
_NAP = 1.0

_News: TypeAlias = tuple[Job, list[Event], ServiceError | None]


class Engine:
    """Computes texts of a model, all that have a slot in common steps.

    A step computes the next token of every text, and a part of the prompts that are not finished, so that
    other texts continue while a long prompt is processed. No text depends on what is computed beside it,
    because logits do not.

    Every method may be called from any thread and none waits for the model.

    Args:
        model: The model. Nobody else may use it while the engine runs.
        n_slots: The largest number of texts at a time.
        n_queue: The largest number of texts that wait; a chore counts as one.
        budget: Bytes that caches may take, those of texts and those that are kept for others together.

    Attributes:
        counters: What was done so far.
        slots: Places of texts.
        prefixes: Sequences of texts that have ended.
    """

    def __init__(self, model: Model, *, n_slots: int, n_queue: int, budget: int) -> None:
        self.counters = Counters()
        self.slots = Slots(n_slots)
        self.prefixes = PrefixCache(lambda: model.memory.cache, budget)
        self._model = model
        self._steps = model._batcher
        self._steps.kept = self.prefixes
        self._steps.share = shortest_first
        self._n_queue = n_queue
        self._budget = budget
        self._jobs: dict[Work, Job] = {}
        self._running: list[Text] = []
        self._waiting = FairQueue[Job]()
        # texts that had to make room; they go on first
        self._paused: deque[Text] = deque()
        self._errands = FairQueue[Errand]()
        # of other threads
        self._news = threading.Condition()
        self._new_jobs: list[Job] = []
        self._new_errands: list[Errand] = []
        self._n_wanted = 0
        self._closes = False
        self._accepts = True
        self._outbox: list[_News] = []
        self._thread = threading.Thread(target=self._run, name="ikq-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Takes a job.

        Raises:
            ServiceError: too many are waiting, or the engine closes.
        """
        with self._news:
            self._admit(job.n)
            self._new_jobs.append(job)

    def cancel(self, job: Job) -> None:
        """Ends a job that nobody wants any more."""
        job.is_cancelled = True
        with self._news:
            self._news.notify()

    def do(self, chore: Chore, asker: Asker | None = None) -> Future[Any]:
        """Has something done in the engine's thread; what it returns or raises is the future's.

        Those who ask take turns, part by part. A chore that cannot be taken is closed.

        Args:
            chore: See there.
            asker: Who waits for it; `None`: somebody who has time.

        Raises:
            ServiceError: as `submit`.
        """
        errand = Errand(chore, asker or Asker())
        try:
            with self._news:
                self._admit(1)
                self._new_errands.append(errand)
        except ServiceError:
            chore.close()
            raise
        errand.future.add_done_callback(self._count_errand)
        return errand.future

    def _admit(self, n: int) -> None:
        """Counts what wants to come in.

        Raises:
            ServiceError: as `submit`.
        """
        if not self._accepts:
            raise ServiceError("unavailable", "the server is shutting down")
        if self._n_wanted + n > len(self.slots) + self._n_queue:
            self.counters.n_refused += 1
            raise ServiceError(
                "overloaded",
                f"{self._n_wanted} texts are being computed or waiting, which is as many as the server "
                "takes (--parallel, --queue); try again later",
                retry_after=self.counters.seconds_per_text(len(self.slots)),
            )
        self._n_wanted += n
        self._news.notify()

    @property
    def n_wanted(self) -> int:
        """Texts and chores that are being computed or waiting."""
        return self._n_wanted

    @property
    def n_running(self) -> int:
        """Texts that are being computed."""
        return len(self._running)

    def close(self) -> None:
        """Ends all jobs, and the thread; waits for it. The model stays open."""
        with self._news:
            self._accepts = False
            self._closes = True
            self._news.notify()
        self._thread.join()

    # in the engine's thread

    def _run(self) -> None:
        while not self._take_news():
            try:
                self._drop_unwanted()
                self._let_in()
                self._step()
            except BaseException as error:  # a panic of the core is no `Exception`
                # nobody knows what state texts are in; those who come later shall not suffer
                LOG.exception("error in the engine")
                self._end_all(_told(error))
            self._do_errand()
            self._hand_out()
        end = ServiceError("unavailable", "the server is shutting down")
        self._end_all(end)
        for errand in list(self._errands):
            self._end_errand(errand, end)
        self._hand_out()

    def _take_news(self) -> bool:
        """Takes what others have said, and sleeps without work; whether it is to end."""
        with self._news:
            if not (self._new_jobs or self._new_errands or self._closes) and not self._has_work():
                self._news.wait(self._nap())
            jobs, self._new_jobs = self._new_jobs, []
            errands, self._new_errands = self._new_errands, []
            closes = self._closes
        for job in jobs:
            self._waiting.add(job.asker.client, job, job.asker.request)
        for errand in errands:
            self._errands.add(errand.asker.client, errand, errand.asker.request)
        return closes

    def _has_work(self) -> bool:
        return bool(self._running or self._paused or len(self._errands))

    def _nap(self) -> float:
        """Seconds to sleep without work: until somebody who waits runs out of time."""
        now = time.perf_counter()
        return min([_NAP, *(max(0.0, job.asker.deadline - now) for job in self._waiting)])

    def _all_jobs(self) -> list[Job]:
        """Jobs that are not over, each once."""
        return list(dict.fromkeys([*self._jobs.values(), *self._waiting]))

    def _drop_unwanted(self) -> None:
        """Ends what was cancelled or is out of time."""
        for job in self._all_jobs():
            if job.is_cancelled:
                self.counters.n_cancelled += 1
                self._end(job, None)
            elif job.asker.is_late:
                self._end(job, job.asker.error())
        for errand in [e for e in self._errands if e.is_unwanted]:
            self._end_errand(errand, errand.asker.error())

    def _end_all(self, error: ServiceError) -> None:
        """Ends all jobs."""
        for job in self._all_jobs():
            self._end(job, error)

    def _let_in(self) -> None:
        """Gives free slots to texts that wait."""
        while (self._paused or len(self._waiting)) and self.slots.n_free:
            tokens = self._paused[0].work.tokens if self._paused else self._waiting.peek().plan.tokens
            if self._running and not self._has_room(len(tokens)):
                return
            if self._paused:
                self._place(self._paused.popleft())
                continue
            job = self._waiting.pop()
            try:
                text = job.next_text(lambda lora: self._model.new_sequence(lora=lora))
            except Exception as error:
                self._end(job, _told(error))
                continue
            self._jobs[text.work] = job
            if job.n_unmade:  # others come first
                self._waiting.add(job.asker.client, job, job.asker.request)
            text.begun = time.perf_counter()
            self._say(job, text.begin())
            if text.is_over:
                self._leave(text)
            else:
                self._place(text)

    def _place(self, text: Text) -> None:
        """Gives a text a slot; it takes part in steps from now on."""
        self.slots.take(text)
        self._running.append(text)
        self._steps.join(text.work)

    def _has_room(self, n_tokens: int) -> bool:
        """Whether there is memory for one text more, if all grow as expected."""
        lengths = [n_tokens, *(len(text.work.tokens) for text in self._running)]
        most = self._model.n_ctx
        return sum(self._model.sequence_bytes(min(most, n + _HEADROOM)) for n in lengths) <= self._budget

    def _step(self) -> None:
        """Computes a step, and chooses tokens."""
        if not self._running:
            return
        texts = {text.work: text for text in self._running}
        start = time.perf_counter()
        outcomes = self._steps.computed(list(texts))
        self.counters.count_step(len(texts), time.perf_counter() - start)
        for work, outcome in outcomes:
            self._note(texts[work], outcome)
        self._make_room()

    def _note(self, text: Text, outcome: Outcome) -> None:
        """What a step gave to a text."""
        job = self._jobs.get(text.work)
        if job is None or isinstance(outcome, int):  # another text of the same step has ended the job
            return
        if isinstance(outcome, Exception):
            self._end(job, _told(outcome))
            return
        try:
            events = self._chosen(text, outcome)
        except Exception as error:
            self._end(job, _told(error))
            return
        self._say(job, events)
        if text.is_over:
            self._leave(text)

    def _chosen(self, text: Text, found: Found) -> list[Event]:
        """Events of the tokens that can be chosen: one, and one more for each drafted one that was right."""
        work = text.work
        work.receive(found)
        events: list[Event] = []
        while (logits := work.logits) is not None:
            events += text.choose(logits)
            if text.is_over:
                break
            work.choose()
        return events

    def _say(self, job: Job, events: list[Event]) -> None:
        job.count()
        if events:
            self._outbox.append((job, events, None))

    def _leave(self, text: Text) -> None:
        """A text is over: what was computed of it is kept for others."""
        work = text.work
        job = self._jobs.pop(work)
        if text in self._running:
            self._running.remove(text)
            self.slots.free(text)
        elif text in self._paused:
            self._paused.remove(text)
        tokens = list(work.tokens)
        try:
            self._steps.leave(work)
            if work.sequence is not None:  # it shares nothing
                work.sequence.close()
        except BaseException:  # a panic as well: the text is over all the same
            LOG.exception("what was computed of a text cannot be kept")
        self.slots.remember(text, tokens)
        self.counters.count_text(text)
        job.count()
        with self._news:
            self._n_wanted -= 1

    def _end(self, job: Job, error: ServiceError | None) -> None:
        """Ends a job before its time.

        Args:
            job: The job.
            error: Why, if anybody wants to know.
        """
        for text in [t for t in job.texts if t.work in self._jobs]:
            self._leave(text)
        self._waiting.remove(lambda other: other is job)
        with self._news:
            self._n_wanted -= job.n_unmade
        self._outbox.append((job, [], error or ServiceError("unavailable", "nobody wanted the rest")))

    def _make_room(self) -> None:
        """Keeps caches within the budget: what is kept goes first, then the text that came last waits."""
        self.prefixes.make_room()
        while self.prefixes.is_over_budget and len(self._running) > 1:
            text = next((t for t in reversed(self._running) if _can_pause(t)), None)
            if text is None:
                return
            self._running.remove(text)
            self.slots.free(text)
            self._steps.drop(text.work)
            self._paused.appendleft(text)
            self.counters.n_paused += 1

    def _do_errand(self) -> None:
        """Does a part of what is to be done beside texts."""
        if not len(self._errands):
            return
        errand = self._errands.pop()
        if not errand.do_part(_told):
            self._errands.add(errand.asker.client, errand, errand.asker.request)

    def _end_errand(self, errand: Errand, error: ServiceError) -> None:
        """Ends a chore before its time."""
        self._errands.remove(lambda other: other is errand)
        try:
            errand.end(error)
        except Exception:
            LOG.exception("a chore could not be ended")

    def _count_errand(self, future: Future[Any]) -> None:
        """A chore is over, or nobody wants it any more; in any thread."""
        with self._news:
            self._n_wanted -= 1

    def _hand_out(self) -> None:
        """Gives events to those who wait for them."""
        outbox, self._outbox = self._outbox, []
        by_loop: dict[asyncio.AbstractEventLoop, list[_News]] = {}
        for news in outbox:
            by_loop.setdefault(news[0].loop, []).append(news)
        for loop, all_news in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_deliver, all_news)


def _deliver(all_news: list[_News]) -> None:
    """Gives events to those who wait, in the thread of their loop."""
    for job, events, error in all_news:
        try:
            job.sink(events, error)
        except Exception:
            LOG.exception("a request could not be told")


def shortest_first(prompts: list[Prompt], room: int) -> Iterable[tuple[Prompt, int]]:
    """Shares a step among prompts: those that are soon read come first, so that most texts begin early.

    A quarter is for the one that came first, so that a long one is not put off for ever.
    """
    if not prompts:
        return []
    first = prompts[0]
    share = max(1, room // 4) if len(prompts) > 1 else room
    shares = {id(first[0]): min(share, n_left(first))}
    room -= shares[id(first[0])]
    for prompt in sorted(prompts, key=n_left):
        more = min(room, n_left(prompt) - shares.get(id(prompt[0]), 0))
        if more > 0:
            shares[id(prompt[0])] = shares.get(id(prompt[0]), 0) + more
            room -= more
    return [(prompt, shares[id(prompt[0])]) for prompt in prompts if id(prompt[0]) in shares]


def _can_pause(text: Text) -> bool:
    """Whether what was computed of a text can be given back and computed again."""
    speculation = text.work.speculation
    return text.plan.shares and (speculation is None or not speculation.drafter.needs_hidden)


def _told(error: BaseException) -> ServiceError:
    """What clients hear of an error."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RefusedError):
        return ServiceError("unavailable", f"there is no memory for this text: {error}", retry_after=10)
    if isinstance(error, (FormatError, ValueError)):
        return ServiceError("invalid_request", str(error))
    if isinstance(error, IkqError):
        return ServiceError("internal", str(error))
    return ServiceError("internal", "the server failed while it computed this text; its log says why")
