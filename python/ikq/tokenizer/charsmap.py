"""What SentencePiece replaces in a text before it splits it: `Charsmap`.

The rules of a model (such as NFKC) stand in its file as a table that was made beforehand: the size of an
array in bytes, the array, and behind it the replacements, each ended by a zero byte. The array is a trie
of the UTF-8 bytes that are replaced, whose branches may share what is below them. Each of its units, 32
bits, is a node:

```text
bits 0-7, 31   the byte that leads here (bit 31 is set in units that hold a value instead)
bit 8          what leads here is replaced: the value is in the unit at this node's base
bits 10-30     where the children are, relative to here; shifted left by 8 more if bit 9 is set
```

The child by byte `c` of the node whose base is `b` is the unit `b ^ c`; its own base is `b ^ c ^ offset`.
"""

from __future__ import annotations

import re
import struct

from ikq.errors import FormatError

__all__ = ["Charsmap"]

_KEY = "tokenizer.ggml.precompiled_charsmap"
_LABEL, _VALUE = 1 << 31 | 0xFF, 0x7FFFFFFF


class Charsmap:
    """Replaces characters and short runs of them, the longest first."""

    def __init__(self, table: bytes) -> None:
        """Prepares the search.

        Args:
            table: As in SentencePiece's models; nothing replaces nothing.

        Raises:
            FormatError: it is damaged.
        """
        size = int.from_bytes(table[:4], "little")
        if table and (len(table) < 4 or size % 4 or size == 0 or 4 + size >= len(table)):
            raise FormatError(
                f"`{_KEY}` is damaged: its {len(table)} bytes cannot hold a table of {size} bytes"
            )
        self._units = struct.unpack_from(f"<{size // 4}I", table, 4) if table else ()
        self._values = table[4 + size :]
        # most of a text is characters of ASCII that are replaced, if at all, with an accent behind them
        quiet = b"".join(re.escape(bytes([c])) for c in range(128) if self._is_quiet(c))
        some = b"[^" + quiet + b"]" if quiet else b"[\\x00-\\xff]"
        self._places = re.compile(some + b"|[\\x00-\\x7f](?=[\\x80-\\xff])", re.DOTALL)

    def apply(self, text: str) -> str:
        """The text with all replacements.

        Raises:
            FormatError: the table is damaged.
        """
        if not self._units:
            return text
        data = text.encode()
        parts = []
        start = at = 0
        while found := self._places.search(data, at):
            at = found.start()
            n, value = self._longest(data, at)
            if n:
                parts += [data[start:at], self._value(value)]
                start = at = at + n
            else:
                at += _character(data[at])
        return b"".join((*parts, data[start:])).decode(errors="replace")

    def _longest(self, data: bytes, at: int) -> tuple[int, int]:
        """Length of the longest run from a place on that is replaced, and where its replacement is."""
        units = self._units
        best = value = 0
        place = _offset(units[0])
        for end in range(at, len(data)):
            place ^= data[end]
            # a zero would lead to a value
            if place >= len(units) or units[place] & _LABEL != data[end] or not data[end]:
                break
            node = units[place]
            place ^= _offset(node)
            if node >> 8 & 1 and place < len(units):
                best, value = end + 1 - at, units[place] & _VALUE
        return best, value

    def _value(self, at: int) -> bytes:
        end = self._values.find(b"\0", at)
        if at >= len(self._values) or end < 0:
            raise FormatError(f"`{_KEY}` is damaged: a replacement is not in the table")
        return self._values[at:end]

    def _is_quiet(self, c: int) -> bool:
        """Whether a character of ASCII is replaced neither alone nor with another behind it."""
        if not self._units:
            return True
        alone = self._longest(bytes([c]), 0)[0]
        return not alone and not any(self._longest(bytes([c, d]), 0)[0] for d in range(128))


def _offset(node: int) -> int:
    return node >> 10 << ((node >> 9 & 1) << 3)


def _character(first: int) -> int:
    """Bytes of a character by its first one."""
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
