"""`TextSpeculation`: speculation for one text, between its generation and the model's steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ikq.speculation.depth import Depth, StepTimes
from ikq.speculation.drafter import MANY_UNREAD, Drafter, Drafting
from ikq.speculation.verify import Verified

__all__ = ["TextSpeculation"]


class TextSpeculation:
    """What drafts a text, and what became of its drafts.

    Attributes:
        drafter: See there.
        draft_times: Takes the times of drafting.
        n_drafted: Drafted tokens that were compared with chosen ones.
        n_accepted: Those of them that were chosen.
        n_allowed: Tells how many tokens of a draft the text may have; the others are not computed.

    Args:
        drafter: Of this text alone.
        depth: How many tokens to draft; of this text alone.
        draft_times: See there; texts that are drafted alike share it.
        n_min: Shorter drafts are not used.
    """

    def __init__(self, drafter: Drafter, depth: Depth, draft_times: StepTimes, n_min: int = 0) -> None:
        self.drafter = drafter
        self.draft_times = draft_times
        self.n_drafted = 0
        self.n_accepted = 0
        self.n_allowed: Callable[[Sequence[int]], int] = len
        self._depth = depth
        self._n_min = n_min
        self._is_closed = False
        # of drafting and reading in the present round; of reading a token
        self._seconds = 0.0, 0.0
        self._read_seconds = 0.0

    def reading(self, tokens: Sequence[int], n: int) -> Drafting:
        """While a prompt is computed: reads it as well, unless drafts do not seem to pay.

        Args:
            tokens: The prompt.
            n: How many of its tokens are computed.
        """
        if self.drafter.needs_hidden or self._depth.is_promising:
            yield from self.drafter.read(tokens, n)
        return []

    def drafting(self, tokens: Sequence[int], n_most: int, n_texts: int, n_other: int) -> Drafting:
        """Drafts what may follow.

        Args:
            tokens: The text so far.
            n_most: Most tokens that there is room and need for.
            n_texts: As for `Depth.choose`.
            n_other: As for `Depth.choose`.
        """
        start = time.perf_counter()
        n_unread = self.drafter.n_unread(tokens)
        n = min(n_most, self._depth.choose(n_texts, n_other, n_unread * self._read_seconds))
        if n > 0 or self.drafter.needs_hidden:
            yield from self.drafter.read(tokens, len(tokens))
        begun = time.perf_counter()
        self._seconds = 0.0, begun - start
        if n_unread >= MANY_UNREAD:
            self._read_seconds = (begun - start) / n_unread
        draft: list[int] = []
        if n > 0:
            draft = yield from self.drafter.propose(tokens, n)
            seconds = time.perf_counter() - begun
            # finding that there is nothing to draft takes as long as a draft of one token
            self.draft_times.add(max(1, len(draft)), seconds)
            self._seconds = seconds, begun - start
            draft = draft[: self.n_allowed(draft)]
        return draft if len(draft) >= self._n_min else []

    def done(self, verified: Verified, n_tokens: int, seconds: float | None) -> None:
        """Tells what was chosen from the logits of a step.

        Args:
            verified: These logits; nothing more will be chosen from them.
            n_tokens: Tokens of the text before the draft.
            seconds: As for `Depth.done`.
        """
        n_draft, n_accepted = len(verified.draft), verified.n_accepted
        n_compared = min(verified.n_chosen, n_draft)
        self.n_drafted += n_compared
        self.n_accepted += n_accepted
        self.drafter.keep(n_tokens + n_accepted)
        if n_compared == n_draft or n_accepted < n_compared:  # a text may end before
            self._depth.done(n_draft, n_accepted, seconds, *self._seconds)
        self._seconds = 0.0, 0.0

    def close(self) -> None:
        """The text is over."""
        if not self._is_closed:
            self._is_closed = True
            self.drafter.close()
