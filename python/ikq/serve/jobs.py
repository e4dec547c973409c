"""`Job`: a request on its way through an engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from ikq.sequence import Sequence
from ikq.serve.errors import ServiceError
from ikq.serve.events import Event, Usage
from ikq.serve.text import Text, TextPlan

__all__ = ["Chore", "Job", "Sink"]

Sink: TypeAlias = Callable[[list[Event], ServiceError | None], None]
"""Takes events of a job, and why the rest does not come."""

Chore: TypeAlias = Generator[None, None, Any]
"""Work on the model beside texts, in parts between which steps come."""


class Job:
    """A request for texts.

    Attributes:
        plan: The request made ready.
        texts: The texts in the making; made when the first one begins.
        usage: Tokens and seconds, kept up to date by the engine.
        client: Whose it is.
        arrived: When it came.
        deadline: When it ends as an error.
        too_late: What the error says.
        is_cancelled: Nobody wants it any more.

    Args:
        plan: See there.
        n: How many texts.
        loop: The event loop in which somebody waits for it.
        sink: Takes what comes of it, in that loop's thread.
        client: See there.
        seconds: Time until the deadline; `None`: there is none.
        too_late: See there.
    """

    def __init__(
        self,
        plan: TextPlan,
        n: int,
        loop: asyncio.AbstractEventLoop,
        sink: Sink,
        client: str,
        seconds: float | None,
        too_late: str = "",
    ) -> None:
        self.plan = plan
        self.loop = loop
        self.n = n
        self.sink = sink
        self.client = client
        self.arrived = time.perf_counter()
        self.deadline = float("inf") if seconds is None else self.arrived + seconds
        self.too_late = too_late
        self.usage = Usage(n_prompt=len(plan.tokens))
        self.texts: list[Text] = []
        self.is_cancelled = False
        self._finished_seconds: float | None = None

    def next_text(self, new_sequence: Callable[[], Sequence]) -> Text:
        """Makes the next text."""
        text = Text(self.plan, len(self.texts), None if self.plan.shares else new_sequence())
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
