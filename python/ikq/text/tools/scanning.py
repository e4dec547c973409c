"""Reading a text that comes in pieces: `Scanner`.

Readers are generators. They yield what is certain by now, and `None` where they need more text:

    def call(self):
        mark = yield from text.until(["[ARGS]"], nothing)
        yield from text.json(lambda piece: Delta(...))

What they yield, taken together, does not depend on how the text was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from ikq.text.tools.delta import Delta

__all__ = ["Make", "Scanner", "Steps"]

T = TypeVar("T")
Steps: TypeAlias = Generator[Delta | None, None, T]
"""A reader that returns a `T` at its end."""

Make: TypeAlias = Callable[[str], Delta | None]
"""What becomes of a piece of text; `None` if nothing does yet."""

_SPACE = " \t\r\n"
_PLAIN = re.compile(r'[^"\\{}\[\]]+')
_UNESCAPED = re.compile(r'[^"\\]+')
# what a JSON string writes behind a backslash: a letter, a character by its number, or two that are a pair
_ESCAPE = re.compile(
    r'\\(?:["\\/bfnrt]|u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?![dD][89a-fA-F])[0-9a-fA-F]{4}))'
)
_LONGEST_ESCAPE = 12
_SCALAR_END = re.compile(r"[\s,\]}]|[^\w.+-]")


class Scanner:
    """The text so far and the place of its reader.

    Attributes:
        is_final: No more comes.
        is_cut: ... though the model had not ended: what may have become a mark is none of the text.
    """

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._kept = 0
        self.is_final = False
        self.is_cut = False

    def push(self, text: str) -> None:
        """More text."""
        if not self._kept:
            self._text = self._text[self._at :]
            self._at = 0
        self._text += text

    def keep(self) -> int:
        """Keeps the text from here on; returns the place, for `back_to` or `forget`."""
        self._kept += 1
        return self._at

    def forget(self) -> None:
        """The last place that was kept is no longer needed."""
        self._kept -= 1

    def back_to(self, place: int) -> None:
        """Reads from there again; the place stays kept no longer."""
        self._kept -= 1
        self._at = place

    def since(self, place: int) -> str:
        """The text from a place that is kept."""
        return self._text[place:]

    def rest(self) -> str:
        """What has not been read of the text so far; it is read now."""
        text, self._at = self._text[self._at :], len(self._text)
        return text

    def at_end(self) -> Steps[bool]:
        """Whether nothing more comes; waits until that is known."""
        while self._at == len(self._text):
            if self.is_final:
                return True
            yield None
        return False

    def peek(self) -> Steps[str]:
        """The next character; nothing at the end."""
        return "" if (yield from self.at_end()) else self._text[self._at]

    def space(self) -> Steps[str]:
        """Skips white space; returns it."""
        start = self.keep()
        while (c := (yield from self.peek())) and c in _SPACE:
            self._at += 1
        self.forget()
        return self._text[start : self._at]

    def take(self, mark: str) -> Steps[bool]:
        """Reads a mark if it is next; whether it was."""
        while True:
            there = self._text[self._at : self._at + len(mark)]
            if there == mark:
                self._at += len(mark)
                return True
            if not mark.startswith(there) or self.is_final:
                return False
            yield None

    def until(self, marks: Sequence[str], make: Make) -> Steps[str]:
        """Reads up to the first of some marks, and the mark, of several there the longest.

        Args:
            marks: Not empty texts.
            make: Takes the text before it, in pieces.

        Returns:
            The mark; nothing if the text ended before one came.
        """
        while True:
            place, mark, is_certain = self._next(marks)
            if place > self._at:
                text, self._at = self._text[self._at : place], place
                yield from _made(make(text))
            if is_certain:
                self._at += len(mark)
                return mark
            if self.is_final:
                if not mark:
                    self._at = len(self._text)
                    return ""
                # what might have become a longer mark
                self._at += len(mark)
                return mark
            yield None

    def _next(self, marks: Sequence[str]) -> tuple[int, str, bool]:
        """Place of the next mark or of what may become one, the mark there, and whether it is certain."""
        n = len(self._text)
        place, mark = n, ""
        for m in marks:
            at = self._text.find(m, self._at, place + len(m))
            if at >= 0 and (at < place or (at == place and len(m) > len(mark))):
                place, mark = at, m
        if self.is_final and not self.is_cut:
            return place, mark, bool(mark)
        for m in marks:
            for start in range(max(self._at, n - len(m) + 1), min(place + 1, n)):
                if start == place and len(m) <= len(mark):
                    continue
                if m.startswith(self._text[start:]):
                    return start, mark if start == place else "", False
        return place, mark, bool(mark)

    def json(self, make: Make) -> Steps[bool]:
        """Reads a JSON value.

        Only brackets and quotes are looked at: whether it is valid is for others to say.

        Args:
            make: Takes its text, in pieces.

        Returns:
            Whether it came to its end.
        """
        depth = 0
        while True:
            c = yield from self.peek()
            if not c or (depth == 0 and c in ",]}:"):
                return False
            if c == '"':
                if not (yield from self._string(make)):
                    return False
            elif c in "{[":
                depth += 1
                self._at += 1
                yield from _made(make(c))
            elif c in "}]":
                depth -= 1
                self._at += 1
                yield from _made(make(c))
            elif depth == 0:
                return (yield from self._scalar(make))
            else:
                found = _PLAIN.match(self._text, self._at)
                text = found.group() if found else c
                self._at += len(text)
                yield from _made(make(text))
            if depth == 0:
                return True

    def _scalar(self, make: Make) -> Steps[bool]:
        """A number, or a word; it ends where something else begins."""
        while True:
            found = _SCALAR_END.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            text, self._at = self._text[self._at : end], end
            if text:
                yield from _made(make(text))
            if found or self.is_final:
                return True
            yield None

    def _string(self, make: Make) -> Steps[bool]:
        self._at += 1
        yield from _made(make('"'))
        while c := (yield from self.peek()):
            if c == "\\":
                while len(self._text) < self._at + 2 and not self.is_final:
                    yield None
                text = self._text[self._at : self._at + 2]
            elif c == '"':
                self._at += 1
                yield from _made(make('"'))
                return True
            else:
                ends = [
                    e for e in (self._text.find('"', self._at), self._text.find("\\", self._at)) if e >= 0
                ]
                text = self._text[self._at : min(ends, default=len(self._text))]
            self._at += len(text)
            yield from _made(make(text))
        return False

    def decoded(self, make: Make) -> Steps[bool]:
        """Reads a JSON string.

        Args:
            make: Takes what it says, in pieces.

        Returns:
            Whether it came to its end.
        """
        self._at += 1
        while c := (yield from self.peek()):
            if c == '"':
                self._at += 1
                return True
            if c == "\\":
                while (found := _ESCAPE.match(self._text, self._at)) is None:
                    if len(self._text) >= self._at + _LONGEST_ESCAPE:
                        break
                    if self.is_final:
                        return False
                    yield None
                # half of a pair stands for nothing
                text = json.loads(f'"{found.group()}"') if found else "\ufffd"
                self._at += len(found.group()) if found else len("\\u0000")
            else:
                text = _UNESCAPED.match(self._text, self._at)[0]  # type: ignore[index]
                self._at += len(text)
            yield from _made(make(text))
        return False

    def json_text(self) -> Steps[str | None]:
        """Reads a JSON value whole; `None` if it did not come to its end."""
        parts: list[str] = []

        def collect(text: str) -> None:
            parts.append(text)

        is_whole = yield from self.json(collect)
        return "".join(parts) if is_whole else None

    def json_string(self) -> Steps[str | None]:
        """Reads a JSON string; `None` if it is none."""
        if (yield from self.peek()) != '"':
            return None
        text = yield from self.json_text()
        value = loaded(text)
        return value if isinstance(value, str) else None


def _made(delta: Delta | None) -> Steps[None]:
    if delta is not None:
        yield delta


def loaded(text: str | None) -> Any:  # noqa: ANN401  # JSON
    """The value of a JSON text; `None` if it is none."""
    if text is None:
        return None
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return None
    except RecursionError:
        return None
