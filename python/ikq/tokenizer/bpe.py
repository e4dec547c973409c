"""BPE: pairs of characters, then of tokens, merge in the order of a list.

Byte-level BPE ("gpt2") writes each byte of the text as a character and splits the text by the rule of
its pre-tokenizer; merges never cross the pieces. The other kind ("gemma4") works on plain text, lines
apart, and falls back to byte tokens.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from ikq.errors import FormatError
from ikq.tokenizer.pre_tokenizers import PreTokenizer as Rule
from ikq.tokenizer.spm import SPACE, byte_of
from ikq.tokenizer.vocab import TokenType, Vocab

__all__ = ["BpeEncoder", "RawBpeEncoder", "byte_text", "token_bytes"]


# Characters from which on a text takes milliseconds.
_LONG = 4096


class BpeEncoder:
    """Encodes pieces of text."""

    def __init__(self, vocab: Vocab, rule: Rule) -> None:
        """Prepares the merges.

        Args:
            vocab: The tokens and merges.
            rule: How text is split.

        Raises:
            FormatError: there are no merges, or one makes no token.
        """
        self._tokenizer = Tokenizer(_model(vocab, ignore_merges=rule.whole_words))
        splits: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in rule.patterns]
        self._tokenizer.pre_tokenizer = Sequence(
            [*splits, ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    def encode(self, text: str, *, begins: bool) -> list[int]:
        """Ids of a text without special tokens.

        Args:
            text: Any text.
            begins: Makes no difference here.
        """
        del begins
        return _ids(self._tokenizer, text)


class RawBpeEncoder:
    """Encodes pieces of text with BPE on plain text."""

    def __init__(self, vocab: Vocab) -> None:
        """Prepares the merges.

        Raises:
            FormatError: there are no merges, or one makes no token.
        """
        self._ids = vocab.ids
        self._tokenizer = Tokenizer(_model(vocab, byte_fallback=True))

    def encode(self, text: str, *, begins: bool) -> list[int]:
        """Ids of a text without special tokens.

        Args:
            text: Any text.
            begins: Makes no difference here.
        """
        del begins
        ids: list[int] = []
        for piece in re.findall(r"\n+|[^\n]+", text.replace(" ", SPACE)):
            # line ends that are a token together are not made by merges
            whole = self._ids.get(piece) if piece[0] == "\n" else None
            ids += _ids(self._tokenizer, piece) if whole is None else [whole]
        return ids


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text. Other threads go on while a long one is encoded."""
    if len(text) < _LONG:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    else:
        found = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return found


def _model(vocab: Vocab, **options: bool) -> BPE:
    if not vocab.merges:
        raise FormatError("`tokenizer.ggml.merges` is missing; a BPE vocabulary needs it")
    try:
        return BPE(vocab.ids, vocab.merges, **options)
    except Exception as e:  # the library raises nothing more precise
        raise FormatError(f"`tokenizer.ggml.merges`: {e}") from e


def _byte_characters() -> dict[str, int]:
    """The byte of each character: visible Latin-1 stands for itself, the others follow from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_characters()
_CHARACTERS = {byte: character for character, byte in _BYTES.items()}


def byte_text(token: bytes) -> str:
    """How byte-level BPE writes bytes: a character for each."""
    return "".join([_CHARACTERS[byte] for byte in token])


def token_bytes(text: str, kind: TokenType) -> bytes:
    """What a token stands for.

    Args:
        text: As in the vocabulary.
        kind: Normal tokens write bytes as characters, byte tokens are `<0xE2>`, others are literal.
    """
    if kind == TokenType.BYTE:
        return byte_of(text)
    if kind != TokenType.NORMAL:
        return text.encode()
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in text)
