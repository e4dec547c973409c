"""`Job`: a request that an engine works on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeAlias

from ikq.inference.lora import Scales
from ikq.inference.sequence import Sequence
from ikq.serve.asking import Asker
from ikq.serve.errors import ServiceError
from ikq.serve.events import Event, Usage
from ikq.serve.text import Text, TextPlan

__all__ = ["Chore", "Errand", "Job", "Sink"]

Sink: TypeAlias = Callable[[list[Event], ServiceError | None], None]
"""Takes events of a job, and why the rest does not come."""

Chore: TypeAlias = Generator[None, None, Any]
"""Work on the model beside texts, in parts between which steps come."""


class Errand:
    """A chore that somebody waits for.

    Attributes:
        asker: Whose it is.
        future: What comes of it. Whoever waits may cancel it at any time.

    Args:
        chore: See there.
        asker: See there.
    """

    def __init__(self, chore: Chore, asker: Asker) -> None:
        self.asker = asker
        self.future: Future[Any] = Future()
        self._chore = chore

    @property
    def is_unwanted(self) -> bool:
        """Whether nobody waits for it, or no longer."""
        return self.future.cancelled() or self.asker.is_late

    def do_part(self, told: Callable[[BaseException], Exception]) -> bool:
        """Does the next part of it; whether that was the last one.

        Args:
            told: What whoever waits hears of an error.
        """
        try:
            next(self._chore)
        except StopIteration as done:
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                self.future.set_result(done.value)
        except BaseException as error:
            self._fail(told(error))
        else:
            return False
        return True

    def end(self, error: Exception) -> None:
        """Ends it before its time."""
        try:
            self._chore.close()
        finally:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            self.future.set_exception(error)


class Job:
    """A request for texts.

    Attributes:
        plan: The request made ready.
        texts: The texts that are being generated; made when the first one begins.
        usage: Tokens and seconds, kept up to date by the engine.
        asker: Whose it is.
        arrived: When the engine took it.
        is_cancelled: Nobody wants it any more.

    Args:
        plan: See there.
        n: How many texts.
        loop: The event loop in which somebody waits for it.
        sink: Takes what comes of it, in that loop's thread.
        asker: See there.
    """

    def __init__(
        self,
        plan: TextPlan,
        n: int,
        loop: asyncio.AbstractEventLoop,
        sink: Sink,
        asker: Asker,
    ) -> None:
        self.plan = plan
        self.loop = loop
        self.n = n
        self.sink = sink
        self.asker = asker
        self.arrived = time.perf_counter()
        self.usage = Usage(n_prompt=len(plan.tokens))
        self.texts: list[Text] = []
        self.is_cancelled = False

    def next_text(self, new_sequence: Callable[[Scales | None], Sequence]) -> Text:
        """Makes the next text; `new_sequence` is given its scales of adapters."""
        sequence = None if self.plan.shares else new_sequence(self.plan.lora)
        text = Text(self.plan, len(self.texts), sequence)
        self.texts.append(text)
        return text

    @property
    def n_unmade(self) -> int:
        """Texts that are not made yet."""
        return self.n - len(self.texts)

    @property
    def is_over(self) -> bool:
        """All texts are complete."""
        return not self.n_unmade and all(text.is_over for text in self.texts)

    def count(self) -> None:
        """Brings `usage` up to date."""
        usage, texts = self.usage, self.texts
        usage.n_completion = sum(text.n_chosen for text in texts)
        usage.n_reasoning = sum(text.n_reasoning for text in texts)
        if not texts:
            return
        first = texts[0]
        usage.n_cached = first.work.n_reused
        speculations = [t.work.speculation for t in texts if t.work.speculation is not None]
        usage.n_drafted = sum(s.n_drafted for s in speculations)
        usage.n_accepted = sum(s.n_accepted for s in speculations)
        if first.begun:
            usage.queue_seconds = first.begun - self.arrived
        if first.first:
            usage.prompt_seconds = first.first - first.begun
            usage.completion_seconds = max(text.last for text in texts) - first.first
