"""WordPiece ("bert"): the longest token that begins a word, then the longest that continues it."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from ikq.errors import FormatError
from ikq.tokenizer.spm import SPACE
from ikq.tokenizer.vocab import TokenType, Vocab

__all__ = ["WpmEncoder"]


class WpmEncoder:
    """Encodes pieces of text. Case and accents are lost, as the models want it."""

    def __init__(self, vocab: Vocab, unk: int | None) -> None:
        """Prepares the search.

        Args:
            vocab: The tokens; those that begin a word are written with U+2581 before them.
            unk: The token for words that cannot be expressed.

        Raises:
            FormatError: there is no unknown token.
        """
        if unk is None:
            raise FormatError("a WordPiece vocabulary needs `tokenizer.ggml.unknown_token_id`")
        words = {}
        for token, (text, kind) in enumerate(zip(vocab.texts, vocab.types, strict=True)):
            if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
                words[text] = token
            else:
                words[text[1:] if text.startswith(SPACE) else f"##{text}"] = token
        self._tokenizer = Tokenizer(
            WordPiece(words, unk_token=vocab.texts[unk], max_input_chars_per_word=1 << 20)
        )
        self._tokenizer.normalizer = BertNormalizer()
        self._tokenizer.pre_tokenizer = BertPreTokenizer()

    def encode(self, text: str, *, begins: bool) -> list[int]:
        """Ids of a text without special tokens.

        Args:
            text: Any text.
            begins: Makes no difference here.
        """
        del begins
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
