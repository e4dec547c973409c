"""`Slots`: the slots of texts that are computed together, as programs for llama-server know them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ikq.inference.lora import Scales
from ikq.serve.text import Text

__all__ = ["Slot", "Slots"]


@dataclass
class Slot:
    """A slot.

    Attributes:
        id: Its number.
        text: The text that is computed in it.
        tokens: The tokens of the last text that was computed in it. The slot only remembers these; the KV
            cache is kept for all requests.
        lora: Scales of adapters that these were computed with.
        n_texts: The number of texts that were computed in it.
    """

    id: int
    text: Text | None = None
    tokens: list[int] = field(default_factory=list)
    lora: Scales = ()
    n_texts: int = 0


class Slots:
    """A number of slots.

    Args:
        n: How many.
    """

    def __init__(self, n: int) -> None:
        self._all = [Slot(i) for i in range(n)]

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, id: int) -> Slot:
        return self._all[id]

    @property
    def n_free(self) -> int:
        """The number of free slots."""
        return sum(slot.text is None for slot in self._all)

    def take(self, text: Text) -> None:
        """Gives a text a free slot, the one that it wants if that is free. There must be one."""
        free = [slot for slot in self._all if slot.text is None]
        wanted = [slot for slot in free if slot.id == text.plan.slot]
        slot = (wanted or sorted(free, key=lambda s: s.n_texts))[0]
        slot.text, text.slot = text, slot.id

    def free(self, text: Text) -> None:
        """Frees the slot of a text."""
        if text.slot is not None:
            self._all[text.slot].text = None

    def remember(self, text: Text, tokens: list[int]) -> None:
        """Remembers the tokens of a text that has ended, in its slot."""
        if text.slot is not None:
            slot = self._all[text.slot]
            slot.tokens, slot.lora = tokens, text.work.lora or ()
            slot.n_texts += 1
