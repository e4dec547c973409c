"""Text of tokens as they are generated: `StreamDecoder`."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ikq.tokenizer import Tokenizer

__all__ = ["StreamDecoder"]


class StreamDecoder:
    """Turns token ids into text, one by one.

    A token may end within a UTF-8 character; its bytes wait until the character is whole, so that no
    piece ever shows half of one. Bytes that can be no part of a character become U+FFFD.

    The text continues what came before: a leading space is kept.

    Examples:
        >>> decoder = StreamDecoder(tokenizer)  # doctest: +SKIP
        >>> for id in ids:  # doctest: +SKIP
        ...     print(decoder.push(id), end="")
        >>> print(decoder.flush())  # doctest: +SKIP
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        """Begins a text.

        Args:
            tokenizer: What knows the bytes of each token.
            skip_special: Control tokens have no text.
        """
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that this token completes, maybe none.

        Raises:
            FormatError: there is no such token.
        """
        if self._skip_special and self._tokenizer.is_control(id):
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """The end of the text: U+FFFD if a character was left unfinished. A new text may follow."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
