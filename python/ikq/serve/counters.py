"""`Counters`: sums of the work that an engine has done."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ikq.serve.text import Text

__all__ = ["Counters"]


@dataclass
class Counters:
    """Sums since the start. The engine's thread writes them, anybody may read them.

    Attributes:
        n_prompt: Tokens of prompts that were computed.
        n_cached: Tokens of prompts that were in a KV cache already.
        n_chosen: Tokens that were chosen.
        n_drafted: Tokens that were drafted and compared.
        n_accepted: Those of them that were chosen.
        prompt_seconds: From the first step of a text to its first token.
        chosen_seconds: From there to its last one.
        n_texts: Texts that have ended.
        n_refused: Requests that were refused because too many others were waiting.
        n_cancelled: Requests that were cancelled.
        n_paused: How often a text had to wait for lack of memory.
        n_steps: Steps of the model.
        n_entries: Texts that took part in them.
        step_seconds: Their time.
    """

    n_prompt: int = 0
    n_cached: int = 0
    n_chosen: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    prompt_seconds: float = 0.0
    chosen_seconds: float = 0.0
    n_texts: int = 0
    n_refused: int = 0
    n_cancelled: int = 0
    n_paused: int = 0
    n_steps: int = 0
    n_entries: int = 0
    step_seconds: float = 0.0

    def count_step(self, n_entries: int, seconds: float) -> None:
        """Counts a finished step."""
        self.n_steps += 1
        self.n_entries += n_entries
        self.step_seconds += seconds

    def count_text(self, text: Text) -> None:
        """Counts a finished text."""
        self.n_texts += 1
        self.n_chosen += text.n_chosen
        speculation = text.work.speculation
        if speculation is not None:
            self.n_drafted += speculation.n_drafted
            self.n_accepted += speculation.n_accepted
        if text.n_chosen:
            self.n_cached += text.work.n_reused
            self.n_prompt += text.n_prompt - text.work.n_reused
            self.prompt_seconds += text.first - text.begun
            self.chosen_seconds += text.last - text.first

    def seconds_per_text(self, n_slots: int) -> int:
        """Seconds after which a slot may be free again, judging by the texts so far; at least 1."""
        seconds = (self.prompt_seconds + self.chosen_seconds) / max(1, self.n_texts)
        return min(60, max(1, math.ceil(seconds / max(1, n_slots))))
