"""`TextSpeculation`: speculation for one text, between its generation and the model's steps."""

from __future__ import annotations

from collections.abc import Sequence

from ikq.speculation.depth import Depth, StepTimes
from ikq.speculation.drafter import Drafter, Drafting
from ikq.speculation.verify import Verified

__all__ = ["TextSpeculation"]


class TextSpeculation:
    """What drafts a text, and what became of its drafts.

    Attributes:
        drafter: See there.
        draft_times: Takes times of drafting.
        n_drafted: Drafted tokens that were compared with chosen ones.
        n_accepted: Those of them that were chosen.

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
        self._depth = depth
        self._n_min = n_min
        self._is_closed = False

    def drafting(self, tokens: Sequence[int], n_most: int, n_texts: int, n_other: int) -> Drafting:
        """Drafts what may follow.

        Args:
            tokens: The text so far.
            n_most: Most tokens that there is room and need for.
            n_texts: As for `Depth.choose`.
            n_other: As for `Depth.choose`.
        """
        n = min(n_most, self._depth.choose(n_texts, n_other)) if n_most > 0 else 0
        draft = yield from self.drafter.propose(tokens, n)
        return draft if len(draft) >= self._n_min else []

    def done(self, verified: Verified, n_tokens: int, seconds: float | None, draft_seconds: float) -> None:
        """Tells what was chosen from the logits of a step.

        Args:
            verified: These logits; nothing more will be chosen from them.
            n_tokens: Tokens of the text before the draft.
            seconds: As for `Depth.done`.
            draft_seconds: As for `Depth.done`.
        """
        n_draft, n_accepted = len(verified.draft), verified.n_accepted
        n_compared = min(verified.n_chosen, n_draft)
        self.n_drafted += n_compared
        self.n_accepted += n_accepted
        self.drafter.keep(n_tokens + n_accepted)
        if n_compared == n_draft or n_accepted < n_compared:  # a text may end before
            self._depth.done(n_draft, n_accepted, seconds, draft_seconds)

    def close(self) -> None:
        """The text is over."""
        if not self._is_closed:
            self._is_closed = True
            self.drafter.close()
