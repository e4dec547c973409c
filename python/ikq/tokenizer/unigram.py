"""Unigram vocabularies of SentencePiece ("t5"): the split of a text whose scores have the largest sum.

Scores are logarithms of probabilities, so the split is the likeliest one, of the text as a whole:

    "▁the"  ->  ▁the          if its score is above those of ▁t + he, ▁th + e, ... together

What no token covers becomes byte tokens where the vocabulary has all of them, else the unknown token,
one for a whole run. Sums are float64, and of equal ones the first wins, as in the `tokenizers` library,
which does the search.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram

from ikq.errors import FormatError
from ikq.tokenizer.charsmap import Charsmap
from ikq.tokenizer.spm import SPACE
from ikq.tokenizer.vocab import PREFIX, TokenType, Vocab, read_bool

__all__ = ["Rules", "UnigramEncoder"]

_SPACES = re.compile("  +")


@dataclass(frozen=True)
class Rules:
    """What happens to a text before it is split.

    Attributes:
        charsmap: Replacements of characters.
        space_prefix: A space is put before the text.
        merge_spaces: Runs of spaces become one; those at both ends are dropped.
    """

    charsmap: Charsmap
    space_prefix: bool
    merge_spaces: bool

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> Rules:
        """Those of a file.

        Raises:
            FormatError: one of them is damaged.
        """
        table = metadata.get(f"{PREFIX}precompiled_charsmap", [])
        if not isinstance(table, list) or any(type(b) is not int or not -128 <= b < 256 for b in table):
            raise FormatError(f"`{PREFIX}precompiled_charsmap` is no array of bytes")
        return cls(
            Charsmap(bytes(b & 255 for b in table)),
            read_bool(metadata, "add_space_prefix", False),
            read_bool(metadata, "remove_extra_whitespaces", False),
        )

    def apply(self, text: str) -> str:
        """The text that is split; spaces are U+2581 in it."""
        if not text:
            return ""
        text = self.charsmap.apply(text)
        if self.merge_spaces:
            text = _SPACES.sub(" ", text).strip(" ")
        text = (SPACE if self.space_prefix else "") + text.replace(" ", SPACE)
        return text.rstrip(SPACE) if self.merge_spaces else text


class UnigramEncoder:
    """Encodes pieces of text.

    Attributes:
        rules: What happens to them first.
    """

    def __init__(self, vocab: Vocab, unk: int | None, rules: Rules) -> None:
        """Prepares the search.

        Args:
            vocab: The tokens; as many scores.
            unk: The token for what is no other.
            rules: What happens to a text first.

        Raises:
            FormatError: there are no scores, one is infinite, or there is no unknown token.
        """
        if not vocab.scores:
            raise FormatError(f"`{PREFIX}scores` is missing; a unigram vocabulary needs it")
        if unk is None:
            raise FormatError(f"a unigram vocabulary needs `{PREFIX}unknown_token_id`")
        self.rules = rules
        # control tokens, unknown and unused ones and bytes are never found in a text
        scores = {}
        lowest = math.inf
        for text, token in vocab.ids.items():
            kind, score = vocab.types[token], vocab.scores[token]
            if kind == TokenType.USER_DEFINED:
                scores[text] = 0.0
            elif kind in (TokenType.NORMAL, TokenType.UNDEFINED) and token != unk:
                if math.isinf(score):
                    raise FormatError(f"`{PREFIX}scores`: that of token {token} is infinite")
                scores[text] = score
                lowest = min(lowest, score)
        # no text has a space when it is split; the library rates the unknown token below the lowest score
        self._tokens = [unk, *(vocab.ids[text] for text in scores)]
        self._unk = unk
        self._bytes = _byte_tokens(vocab)
        lowest = lowest if math.isfinite(lowest) else 0.0
        self._tokenizer = Tokenizer(Unigram([(" ", lowest), *scores.items()], 0, False))

    def encode(self, text: str, *, begins: bool) -> list[int]:
        """Ids of a text without special tokens.

        Args:
            text: Any text.
            begins: Makes no difference here: each piece of a text is one for itself.
        """
        del begins
        text = self.rules.apply(text)
        found = self._tokenizer.encode(text, add_special_tokens=False)
        if self._bytes is None or 0 not in found.ids:
            return [self._tokens[i] for i in found.ids]
        ids: list[int] = []
        for i, (start, end) in zip(found.ids, found.offsets, strict=True):
            ids += [self._tokens[i]] if i else [self._bytes[b] for b in text[start:end].encode()]
        return ids


def _byte_tokens(vocab: Vocab) -> list[int] | None:
    """The token of each byte, if the vocabulary has them all."""
    tokens = [vocab.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
    found = [token for token in tokens if token is not None and vocab.types[token] == TokenType.BYTE]
    return found if len(found) == 256 else None
