"""`Mtp`: drafts of the model's own multi-token prediction head (MTP)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq.errors import IkqError, RefusedError
from ikq.inference.kept import common_length
from ikq.sampling.candidates import Candidates, candidates
from ikq.speculation.drafter import MANY_UNREAD, Ask, Drafting, most_probable, n_compared

if TYPE_CHECKING:
    from ikq import _ikq
    from ikq.models import ModelSpec

__all__ = ["Mtp", "MtpHead"]

_MOST_KEPT = 4


class Predicted(NamedTuple):
    """The output of the head at a position.

    Attributes:
        hidden: What its last norm gives, float32 `(n_embd,)`: its input for drafting one token more.
        best: The largest logits of the token after the next one.
    """

    hidden: NDArray[np.float32]
    best: Candidates


@dataclass
class _Past:
    """What the head knows of a text.

    Attributes:
        sequence: Of the head. It holds positions `first..end` of the text, and maybe drafted ones behind.
        rows: The model's hidden states at the positions behind `end`, which the head has not computed yet.
        first: Position of the text at which the sequence begins; later than 0 where the model went on with a
            sequence whose hidden states are not there.
        end: See there.
    """

    sequence: _ikq.Sequence
    rows: NDArray[np.float32]
    first: int = 0
    end: int = 0

    @property
    def n_known(self) -> int:
        """Positions of the text whose hidden states are in it."""
        return self.end + len(self.rows)

    def cut(self, n: int) -> None:
        """Forgets what comes behind the first `n` positions of the text."""
        self.end = max(self.first, min(self.end, n))
        self.rows = self.rows[: max(0, n - self.end)]

    def restart(self, at: int, rows: NDArray[np.float32]) -> None:
        """Forgets everything; the hidden states `rows` begin at a position of the text."""
        self.sequence.truncate(0)
        self.first = self.end = at
        self.rows = rows


class MtpHead:
    """The head of a loaded model; made by `Model.mtp`.

    At position i it takes the token i + 1 and the model's hidden state after token i, and says what token i +
    2 is. Whatever the head has no tensor for is the model's.

    Attributes:
        spec: The head as data.

    Args:
        engine: The head.
        spec: See there.
        model: The model.
    """

    def __init__(self, engine: _ikq.Engine, spec: ModelSpec, model: _ikq.Engine) -> None:
        self.spec = spec
        self._engine = engine
        self._output = model if spec.output is None else engine
        self._lock = threading.Lock()
        self._kept: list[tuple[list[int], _Past]] = []  # the latest last

    @property
    def n_ctx(self) -> int:
        """Positions that a text can have."""
        return self._engine.n_ctx

    @property
    def memory(self) -> tuple[int, int, int]:
        """Bytes, as in `Model.memory`."""
        return self._engine.memory

    def placement(self) -> list[tuple[str, str, int, str]]:
        """Where its stages are computed, as in `Model.explain`."""
        return self._engine.placement()

    def sequence_bytes(self, n: int) -> int:
        """Bytes of the cache of a text of so many tokens."""
        return self._engine.sequence_bytes(n)

    def set_collector(self, collector: _ikq.StatisticsCollector | None) -> None:
        """Lets a collector (or none) see what the weights are multiplied with."""
        self._engine.set_collector(collector)

    def read(self, tokens: Sequence[int], hidden: NDArray[np.float32]) -> None:
        """Reads a text, as far as it can say something about it; for statistics.

        Args:
            tokens: The text.
            hidden: The model's hidden states after these tokens, float32 `(n, n_embd)`.
        """
        if len(tokens) > 1:
            sequence = self._engine.new_sequence()
            self._engine.step([(sequence, list(tokens[1:]), "none", np.ascontiguousarray(hidden[:-1]))])
            sequence.close()

    def run(self, asks: Sequence[Ask]) -> list[Predicted | None]:
        """As `Runner.run`: what it says behind the tokens of each."""
        entries = [(a.sequence, a.tokens, "hidden" if a.n_best else "none", a.hidden) for a in asks]
        try:
            found = self._engine.step(entries)
        except RefusedError:
            if not self.forget():
                raise
            found = self._engine.step(entries)
        rows = [hidden[-1] for hidden in found if hidden is not None]
        if not rows:
            return [None for _ in found]
        ids, logits = self._output.head_best(np.stack(rows), max(a.n_best for a in asks))
        best = iter(candidates(ids, logits))
        return [
            None if hidden is None else Predicted(hidden[-1], next(best).first(a.n_best))
            for a, hidden in zip(asks, found, strict=True)
        ]

    def past(self, tokens: Sequence[int], n: int) -> _Past:
        """What is known of the first `n` positions of a text."""
        past: _Past | None = None
        with self._lock:
            for known, kept in reversed(self._kept):
                if kept.first == 0 and kept.n_known >= n and common_length(known, list(tokens[:n])) == n:
                    past = _Past(kept.sequence.fork(), kept.rows, end=kept.end)
                    past.cut(n)
                    break
        return past or _Past(self._engine.new_sequence(), self.no_rows(), first=n, end=n)

    def no_rows(self) -> NDArray[np.float32]:
        """No hidden states."""
        return np.empty((0, self.spec.n_embd), np.float32)

    def keep(self, tokens: list[int], past: _Past) -> None:
        """Takes back what is known of a text, for those that begin alike."""
        with self._lock:
            self._kept.append((tokens, past))
            surplus = self._kept[:-_MOST_KEPT]
            del self._kept[:-_MOST_KEPT]
        for _, old in surplus:
            old.sequence.close()

    def forget(self) -> bool:
        """Frees what is kept of texts that have ended, and returns whether there was any."""
        with self._lock:
            found, self._kept = self._kept, []
        for _, past in found:
            past.sequence.close()
        return bool(found)

    def close(self) -> None:
        """Frees its weights and caches."""
        self.forget()
        self._engine.close()


class Mtp:
    """Proposes what the head says; of two and more tokens, from the head's own hidden states.

    Args:
        head: The head of the text's model.
        p_min: A draft ends before a token that the head gives less than this probability.
    """

    needs_hidden = True

    def __init__(self, head: MtpHead, p_min: float) -> None:
        self._head = head
        self._p_min = p_min
        self._n_best = n_compared(p_min)
        self._past: _Past | None = None
        self._tokens: Sequence[int] = ()

    def observe(self, tokens: Sequence[int], first: int, hidden: NDArray[np.float32]) -> None:
        """As `Drafter.observe`."""
        past, self._tokens = self._past, tokens
        if past is None:
            past = self._past = self._head.past(tokens, first)
        if past.first <= first <= past.n_known:
            past.cut(first)
            past.rows = np.concatenate([past.rows, hidden])
        else:
            past.restart(first, hidden)

    def n_unread(self, tokens: Sequence[int]) -> int:
        """As `Drafter.n_unread`."""
        return 0 if self._past is None else len(self._past.rows)

    def read(self, tokens: Sequence[int], n: int) -> Drafting:
        """As `Drafter.read`; hidden states do not pile up."""
        past = self._past
        if past is not None and len(past.rows) >= MANY_UNREAD:
            ask, n_rows = self._ask(past, tokens, n_best=0)
            if n_rows:
                yield ask
                self._was_read(past, n_rows)
        return []

    def propose(self, tokens: Sequence[int], n: int) -> Drafting:
        """As `Drafter.propose`."""
        past = self._past
        if past is None:
            return []
        ask, n_rows = self._ask(past, tokens, n_best=self._n_best)
        n = min(n, self._head.n_ctx - (past.n_known - past.first))
        if n_rows == 0 or n <= 0 or past.n_known < len(tokens) - 1:
            return []  # nothing is new, there is no room, or it would guess from the wrong place
        said = yield ask
        self._was_read(past, n_rows)
        draft: list[int] = []
        while True:
            token, p = most_probable(said.best)
            if p < self._p_min:
                break
            draft.append(token)
            if len(draft) == n:
                break
            hidden = said.hidden[np.newaxis]
            said = yield Ask(self._head, past.sequence, [token], self._n_best, hidden)
        return draft

    def _ask(self, past: _Past, tokens: Sequence[int], *, n_best: int) -> tuple[Ask, int]:
        """To have the hidden states computed whose next tokens are there; and how many they are."""
        # the last token's hidden state is what the model's next step gives
        past.cut(len(tokens) - 1)
        past.sequence.truncate(past.end - past.first)
        n_rows = len(past.rows)
        inputs = list(tokens[past.end + 1 : past.end + 1 + n_rows])
        return Ask(self._head, past.sequence, inputs, n_best, past.rows), n_rows

    def _was_read(self, past: _Past, n_rows: int) -> None:
        past.end += n_rows
        past.rows = self._head.no_rows()

    def keep(self, n: int) -> None:
        """Forgets hidden states after tokens that are not the text's."""
        if self._past is not None:
            self._past.cut(n)

    def shift(self, n_keep: int, n_discard: int) -> None:
        """As `Drafter.shift`; the head starts anew where it cannot follow."""
        past = self._past
        if past is None:
            return
        if past.first <= n_keep and n_keep + n_discard <= past.end:
            try:
                past.sequence.truncate(past.end - past.first)
                past.sequence.shift(n_keep - past.first, n_discard)
            except IkqError:
                past.restart(past.end - n_discard, past.rows)
            else:
                past.end -= n_discard
        else:
            past.restart(max(n_keep, past.end - n_discard), past.rows)

    def close(self) -> None:
        """Keeps its sequence for texts with the same beginning."""
        if self._past is not None:
            self._head.keep(list(self._tokens), self._past)
            self._past = None
