"""GBNF in the notation that llguidance reads: `lark_of_gbnf`.

llguidance cuts a text into lexemes, the longest first, before rules are looked at; in GBNF only rules
count. So a grammar that does not call itself becomes one regular expression, and in the others each lexeme
is a character. Both ways the texts are exactly those of the grammar.
"""

from __future__ import annotations

import re

from ikq.grammar.gbnf import Alternatives, Characters, Named, Node, Repeat, Sequence, SpecialToken, parse_gbnf

__all__ = ["lark_of_gbnf"]

# longer ones are not worth it
_LONGEST_REGEX = 20_000


class _NotRegularError(Exception):
    """A rule calls itself, has tokens, or is too long as a regular expression."""


def lark_of_gbnf(text: str) -> str:
    """The same grammar for llguidance.

    Args:
        text: A grammar in llama.cpp's notation.

    Raises:
        GrammarError: it is none; the message has the line and the column.
    """
    rules = parse_gbnf(text)
    try:
        return f"start: /{_Regular(rules).of(rules['root'])}/\n"
    except (_NotRegularError, RecursionError):
        return _rules(rules)


class _Regular:
    """Writes nodes as regular expressions."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules = rules
        self._known: dict[str, str] = {}
        self._open: set[str] = set()

    def of(self, node: Node) -> str:
        text = self._of(node)
        if len(text) > _LONGEST_REGEX:
            raise _NotRegularError
        return text

    def _of(self, node: Node) -> str:
        if isinstance(node, Characters):
            return characters(node)
        if isinstance(node, Sequence):
            return "(?:" + "".join(map(self.of, node.parts)) + ")"
        if isinstance(node, Alternatives):
            return "(?:" + "|".join(map(self.of, node.parts)) + ")"
        if isinstance(node, Repeat):
            most = "" if node.most is None else str(node.most)
            return f"(?:{self.of(node.part)}){{{node.least},{most}}}"
        if isinstance(node, SpecialToken) or node.name in self._open:
            raise _NotRegularError
        if node.name not in self._known:
            self._open.add(node.name)
            self._known[node.name] = self.of(self._rules[node.name])
            self._open.remove(node.name)
        return self._known[node.name]


def characters(node: Characters) -> str:
    """A character as a regular expression."""
    if not node.ranges:
        return "(?s:.)"
    if not node.negated and len(node.ranges) == 1 and node.ranges[0][0] == node.ranges[0][1]:
        return _code(node.ranges[0][0])
    inside = "".join(_code(a) if a == b else f"{_code(a)}-{_code(b)}" for a, b in node.ranges)
    return f"[{'^' if node.negated else ''}{inside}]"


def _code(code: int) -> str:
    c = chr(code)
    return c if c.isascii() and c.isalnum() else f"\\x{{{code:X}}}"


def _rules(rules: dict[str, Node]) -> str:
    names = {name: f"r{i}_{re.sub('[^a-z0-9]', '_', name.lower())}" for i, name in enumerate(rules)}
    lines = [f"start: {names['root']}"]
    lines += [f"{names[name]}: {_lark(node, names)}" for name, node in rules.items()]
    return "\n".join(lines) + "\n"


def _lark(node: Node, names: dict[str, str]) -> str:
    if isinstance(node, Characters):
        return f"/{characters(node)}/"
    if isinstance(node, Named):
        return names[node.name]
    if isinstance(node, SpecialToken):
        name = node.name if isinstance(node.name, str) else f"<[{node.name}]>"
        return f"<[^{node.name}]>" if node.negated and isinstance(node.name, int) else name
    if isinstance(node, Repeat):
        most = "" if node.most is None else str(node.most)
        return f"({_lark(node.part, names)}){{{node.least},{most}}}"
    parts = [_lark(part, names) for part in node.parts]
    if isinstance(node, Sequence):
        return " ".join(parts) if parts else '""'
    return "(" + " | ".join(parts) + ")"
