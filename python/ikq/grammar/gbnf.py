"""llama.cpp's notation of grammars, GBNF: `parse_gbnf`.

    root  ::= "yes" | "no" why?      # the text
    why   ::= ", " [a-z ]{1,20}

A rule ends with its line, but for what stands in parentheses and behind `::=` or `|`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ikq.errors import GrammarError

__all__ = ["Alternatives", "Characters", "Named", "Node", "Repeat", "Sequence", "SpecialToken", "parse_gbnf"]

_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_NESTED = 200


@dataclass(frozen=True)
class Characters:
    """One character.

    Attributes:
        ranges: First and last code points of those it may be.
        negated: It may be any other.
    """

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


@dataclass(frozen=True)
class Named:
    """A rule, by its name."""

    name: str


@dataclass(frozen=True)
class SpecialToken:
    """A token that a text cannot spell.

    Attributes:
        name: Its text in the vocabulary, or its number.
        negated: Any other token.
    """

    name: str | int
    negated: bool = False


@dataclass(frozen=True)
class Sequence:
    """One after the other; none: the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alternatives:
    """One of them."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """The same several times.

    Attributes:
        part: What.
        least: At least so often.
        most: At most so often; `None`: without end.
    """

    part: Node
    least: int
    most: int | None


Node: TypeAlias = Characters | Named | SpecialToken | Sequence | Alternatives | Repeat


def parse_gbnf(text: str) -> dict[str, Node]:
    """The rules of a grammar.

    Raises:
        GrammarError: it is none; the message has the line and the column.
    """
    rules, uses = _Parser(text).rules()
    for name, place in uses:
        if name not in rules:
            raise GrammarError(f"the grammar uses the rule `{name}` at {place}, but has none of that name",
                               keyword=name, place=place)  # fmt: skip
    if "root" not in rules:
        raise GrammarError("the grammar has no rule `root`, where a text begins", keyword="root")
    return rules


class _Parser:
    """Reads rules from a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._uses: list[tuple[str, str]] = []

    def rules(self) -> tuple[dict[str, Node], list[tuple[str, str]]]:
        """All rules, and which rules they use where."""
        rules: dict[str, Node] = {}
        self._space(lines=True)
        while self._at < len(self._text):
            name = self._name("a rule's name")
            self._space()
            self._expect("::=")
            self._space(lines=True)
            # a rule that comes twice is the later one
            rules[name] = self._alternatives(depth=0)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._error("the end of the line")
            self._space(lines=True)
        return rules, self._uses

    def _alternatives(self, depth: int) -> Node:
        parts = [self._sequence(depth)]
        while self._peek("|"):
            self._at += 1
            self._space(lines=True)
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else Alternatives(tuple(parts))

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while (part := self._item(depth)) is not None:
            self._space(lines=depth > 0)
            while (times := self._times()) is not None:
                part = Repeat(part, *times)
                self._space(lines=depth > 0)
            parts.append(part)
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _item(self, depth: int) -> Node | None:
        """The next part of a sequence; `None` at its end."""
        c = self._text[self._at : self._at + 1]
        if c == '"':
            return self._literal()
        if c == "[":
            return self._class()
        if c == ".":
            self._at += 1
            return Characters((), negated=True)
        if c == "(":
            return self._group(depth)
        if c in ("<", "!") and c:
            return self._token()
        if _is_word(c):
            place = self._place()
            name = self._name("a name")
            self._uses.append((name, place))
            return Named(name)
        return None

    def _group(self, depth: int) -> Node:
        if depth >= _NESTED:
            raise GrammarError(f"the grammar nests more than {_NESTED} parentheses at {self._place()}",
                               keyword="(", place=self._place())  # fmt: skip
        self._at += 1
        self._space(lines=True)
        part = self._alternatives(depth + 1)
        self._expect(")")
        return part

    def _literal(self) -> Node:
        start = self._place()
        self._at += 1
        parts: list[Node] = []
        while not self._peek('"'):
            code = self._character(f'the `"` that ends the text from {start}')
            parts.append(Characters(((code, code),)))
        self._at += 1
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _class(self) -> Characters:
        start = self._place()
        self._at += 1
        negated = self._peek("^")
        self._at += negated
        ranges: list[tuple[int, int]] = []
        end = f"the `]` that ends the characters from {start}"
        while not self._peek("]"):
            first = last = self._character(end)
            if self._peek("-") and not self._text.startswith("-]", self._at):
                self._at += 1
                last = self._character(end)
            if last < first:
                place = self._place()
                range_ = f"from {chr(first)!r} to {chr(last)!r}"
                raise GrammarError(f"the range {range_} before {place} is empty", place=place)
            ranges.append((first, last))
        self._at += 1
        if not ranges and not negated:
            raise GrammarError(f"the characters at {start} are none", keyword="[]", place=start)
        return Characters(tuple(ranges), negated)

    def _character(self, wanted: str) -> int:
        """The code point of the next character, which may be written as an escape."""
        c = self._text[self._at : self._at + 1]
        if not c or c in "\r\n":
            raise self._error(wanted)
        self._at += 1
        if c != "\\":
            return ord(c)
        kind = self._text[self._at : self._at + 1]
        if kind in _ESCAPES:
            self._at += 1
            return ord(_ESCAPES[kind])
        n = _HEX_DIGITS.get(kind)
        if n is None:
            raise self._error('one of \\n \\r \\t \\\\ \\" \\[ \\] \\x \\u \\U')
        digits = self._text[self._at + 1 : self._at + 1 + n]
        try:
            code = int(digits, 16) if len(digits) == n and digits.isalnum() else -1
        except ValueError:
            code = -1
        if not 0 <= code < 0x110000 or 0xD800 <= code < 0xE000:
            raise self._error(f"{n} hexadecimal digits of a character")
        self._at += 1 + n
        return code

    def _token(self) -> SpecialToken:
        negated = self._peek("!")
        self._at += negated
        start = self._place()
        self._expect("<")
        end = self._text.find(">", self._at)
        name = self._text[self._at : end]
        if end < 0 or "\n" in name or not name:
            raise self._error(f"the `>` that ends the token from {start}")
        self._at = end + 1
        if name[0] == "[" and name[-1] == "]" and name[1:-1].isdigit():
            return SpecialToken(int(name[1:-1]), negated)
        return SpecialToken(f"<{name}>", negated)

    def _times(self) -> tuple[int, int | None] | None:
        """How often, if the text says so here."""
        c = self._text[self._at : self._at + 1]
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if c in simple:
            self._at += 1
            return simple[c]
        if c != "{":
            return None
        self._at += 1
        least = self._number()
        most: int | None = least
        if self._peek(","):
            self._at += 1
            self._space()
            most = None if self._peek("}") else self._number()
        self._expect("}")
        if most is not None and most < least:
            raise self._error(f"a number from {least} on before `}}`")
        return least, most

    def _number(self) -> int:
        self._space()
        start = self._at
        while self._text[self._at : self._at + 1].isdecimal():
            self._at += 1
        if start == self._at or self._at - start > 6:
            raise self._error("a number of at most 6 digits")
        number = int(self._text[start : self._at])
        self._space()
        return number

    def _name(self, wanted: str) -> str:
        start = self._at
        while _is_word(self._text[self._at : self._at + 1]):
            self._at += 1
        if start == self._at:
            raise self._error(wanted)
        return self._text[start : self._at]

    def _space(self, *, lines: bool = False) -> None:
        """Skips white space and comments; line ends only if asked to."""
        while self._at < len(self._text):
            c = self._text[self._at]
            if c == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif c in " \t" or (lines and c in "\r\n"):
                self._at += 1
            else:
                return

    def _peek(self, sign: str) -> bool:
        return self._text.startswith(sign, self._at)

    def _expect(self, sign: str) -> None:
        if not self._peek(sign):
            raise self._error(f"`{sign}`")
        self._at += len(sign)

    def _place(self) -> str:
        before = self._text[: self._at]
        return f"line {before.count(chr(10)) + 1}, column {self._at - before.rfind(chr(10))}"

    def _error(self, wanted: str) -> GrammarError:
        found = self._text[self._at : self._at + 1]
        names = {"": "the end", "\n": "the end of the line", "\r": "the end of the line"}
        there = names.get(found, f"`{found}`")
        place = self._place()
        return GrammarError(f"the grammar has {there} at {place}, where {wanted} is expected",
                            keyword=found or None, place=place)  # fmt: skip


def _is_word(c: str) -> bool:
    return bool(c) and c.isascii() and (c.isalnum() or c in "-_")


def parts_of(node: Node) -> Iterator[Node]:
    """What a node is directly made of."""
    if isinstance(node, (Sequence, Alternatives)):
        yield from node.parts
    elif isinstance(node, Repeat):
        yield node.part
