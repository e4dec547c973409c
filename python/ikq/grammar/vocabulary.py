"""A tokenizer's vocabulary in the form that llguidance reads: `Words`."""

from __future__ import annotations

import bisect
import re
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ikq.errors import UnsupportedError
from ikq.tokenizer import Tokenizer, TokenType

if TYPE_CHECKING:
    import llguidance

__all__ = ["Words", "library", "words_of"]

# longer than any token
_LONGEST = 1 << 10

_NO_TEXT = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)


def library() -> type[llguidance.LLMatcher]:
    """What compiles grammars.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise UnsupportedError(
            "grammars and schemas need the package llguidance: pip install 'ikq[serve]' brings it"
        ) from None
    return llguidance.LLMatcher


class Words:
    """The tokens of a vocabulary as llguidance sees them.

    A token is the bytes that `StreamDecoder` shows for it, so that what a grammar allows is what a reader
    gets, byte for byte. Control tokens, unknown and unused ones are no text: a grammar allows them only where
    it names them.

    Attributes:
        tokenizer: Of the model.
        n_vocab: Number of its tokens.
        compiled: The vocabulary for llguidance.
        specials: Tokens that are no text, by their name.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        library()
        import llguidance

        self.tokenizer = tokenizer
        self.n_vocab = n = tokenizer.n_vocab
        ends = sorted(tokenizer.end_ids)
        tokens = _Tokens(tokenizer, ends)
        self._by_bytes = sorted((text, token) for token, text in enumerate(tokens.tokens[:n]))
        self.specials = {tokenizer.text_of(t): t for t in tokens.special_token_ids if t < n}
        names = sorted((re.escape(name.encode()) for name in self.specials if name), key=len, reverse=True)
        self._special = re.compile(b"(" + b"|".join(names) + b")") if names else None
        self._completions: dict[bytes, list[list[tuple[int, bytes]]]] = {}
        self.compiled = llguidance.LLTokenizer(
            tokens,  # type: ignore[arg-type]  # it only looks like one
            n_vocab=n + (not ends),
            eos_token=ends or [n],
        )

    def split(self, text: bytes) -> list[int | bytes]:
        """A text cut at the names of tokens that are no text."""
        parts = self._special.split(text) if self._special is not None else [text]
        return [self.specials.get(part.decode(errors="replace"), part) for part in parts if part]

    def spelled(self, texts: Iterable[bytes]) -> list[int]:
        """Tokens that stand for one of these texts."""
        found = []
        for text in set(texts):
            first = bisect.bisect_left(self._by_bytes, (text, 0))
            last = bisect.bisect_left(self._by_bytes, (text, self.n_vocab))
            found += [token for _, token in self._by_bytes[first:last]]
        return found

    def completions(self, mark: bytes) -> list[list[tuple[int, bytes]]]:
        """Tokens that complete a mark and go on behind it, with what they say there.

        Returns:
            For each length of the beginning of the mark that is there already, from 0.
        """
        found = self._completions.get(mark)
        if found is None:
            inside = [(t, b[b.index(mark) + len(mark) :]) for b, t in self._by_bytes if mark in b[:-1]]
            found = [[(t, rest) for t, rest in inside if rest]]
            for n in range(1, len(mark)):
                end = mark[n:]
                first = bisect.bisect_left(self._by_bytes, (end, 0))
                last = bisect.bisect_left(self._by_bytes, (end + b"\xff" * _LONGEST, 0))
                same = self._by_bytes[first:last]
                found.append([(token, text[len(end) :]) for text, token in same if text != end])
            self._completions[mark] = found
        return found


class _Tokens:
    """What llguidance asks a tokenizer for."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, ends: list[int]) -> None:
        n = tokenizer.n_vocab
        self.tokens = [tokenizer.token_bytes(token) for token in range(n)]
        self.special_token_ids = [token for token in range(n) if is_special(tokenizer, token)]
        if not ends:  # a grammar must be able to end: a token that no model has
            self.tokens.append(b"<end>")
            self.special_token_ids.append(n)
        self.eos_token_id = ends[0] if ends else n
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def is_special(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token is no text: it stands in a reply only where a grammar names it.

    The harmony format's marks are shown, and are none all the same.
    """
    kind = tokenizer.token_type(token)
    if kind == TokenType.USER_DEFINED:
        name = tokenizer.text_of(token)
        return name.startswith("<|") and name.endswith("|>")
    return token in tokenizer.end_ids or kind in _NO_TEXT


_known: WeakKeyDictionary[Tokenizer, Words] = WeakKeyDictionary()
_lock = threading.Lock()


def words_of(tokenizer: Tokenizer) -> Words:
    """The words of a tokenizer; made once, which takes a second for a large vocabulary.

    Raises:
        UnsupportedError: llguidance is not installed.
    """
    with _lock:
        found = _known.get(tokenizer)
        if found is None:
            found = _known[tokenizer] = Words(tokenizer)
        return found
