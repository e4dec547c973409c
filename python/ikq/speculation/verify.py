"""`Verified`: the rule by which drafts are kept."""

from __future__ import annotations

from collections.abc import Sequence

from ikq.sampling.candidates import Scores

__all__ = ["Verified"]


class Verified:
    """Logits of a step over the last token of a text and a draft of what follows.

    They are given out position by position. Who chooses a token from them says so (`choose`): if it is the
    drafted one, the logits behind it are those of the text and come next; if not, no more come. So every
    token is chosen from the logits that the model gives after exactly the tokens before it, by the same
    sampler and in the same order as without a draft.

    Attributes:
        draft: What was drafted.
        n_chosen: Tokens chosen from these logits.
        n_accepted: Those of them that were the drafted ones.

    Args:
        logits: Of the positions, one more than are in the draft.
        draft: Tokens.
    """

    def __init__(self, logits: Sequence[Scores], draft: Sequence[int] = ()) -> None:
        assert len(logits) == 1 + len(draft)
        self.draft = list(draft)
        self.n_chosen = 0
        self.n_accepted = 0
        self._logits = logits

    @property
    def logits(self) -> Scores | None:
        """Logits of the position whose token is to be chosen; `None`: a step is needed."""
        return self._logits[self.n_chosen] if self.n_chosen == self.n_accepted <= len(self.draft) else None

    def choose(self, token: int) -> None:
        """Says which token was chosen from `logits`."""
        assert self.logits is not None
        self.n_accepted += self.n_chosen < len(self.draft) and token == self.draft[self.n_chosen]
        self.n_chosen += 1
