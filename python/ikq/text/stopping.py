"""`StopTexts`: ends a stream of text at given texts, also where they cross the borders of its pieces."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["StopTexts"]


class StopTexts:
    """Passes text on, but for what may be the beginning of a stop text.

    Attributes:
        found: The stop text that ended the stream, `None` so far.

    Examples:
        >>> stop = StopTexts(["END"])
        >>> stop.push("the E"), stop.push("N"), stop.push("ough: EN"), stop.push("D it is"), stop.found
        ('the ', '', 'ENough: ', '', 'END')
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        if isinstance(texts, str):
            texts = (texts,)
        self._texts = tuple(texts)
        if any(not isinstance(text, str) or not text for text in self._texts):
            raise ValueError(f"stop={self._texts!r}: expected texts of at least one character")
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Takes text; returns what can be shown: nothing of a stop text, nor anything after it."""
        if self.found is not None:
            return ""
        held = self._held + text
        # the one that is complete first, so that it does not matter in how many pieces the text comes
        places = [(held.find(stop) + len(stop), -len(stop), stop) for stop in self._texts if stop in held]
        if places:
            end, _, self.found = min(places)
            self._held = ""
            return held[: end - len(self.found)]
        n = max((_overlap(held, stop) for stop in self._texts), default=0)
        self._held = held[len(held) - n :]
        return held[: len(held) - n]

    def flush(self) -> str:
        """What was held back: no stop text came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
