"""Unigram models: `read_unigram` from `tokenizer.json`, `unigram_keys` of a GGUF file.

What `tokenizer.json` does to a text before it is split is a chain of steps that can be written in many
ways, and GGUF files have three switches for it: a table of replacements, a space before the text, runs of
spaces made one. So the switches are found by what they do: those with which a sample of texts gets the
tokens that the checkpoint's tokenizer gives it. If no switches do that, the tokenizer is refused.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ikq.checkpoint.sentencepiece import SentencePieces
from ikq.errors import FormatError, UnsupportedError
from ikq.files.gguf import Typed
from ikq.tokenizer.charsmap import Charsmap
from ikq.tokenizer.vocab import TokenType, Vocab

__all__ = ["read_unigram", "unigram_keys"]

_SPACE = "\u2581"
# what normalizers and pre-tokenizers differ in: spaces at the ends and within, lines, case, accents
# (composed or not), wide letters, ligatures, digits, punctuation, control characters, other scripts
_PROBES = (
    " one",
    "one  two   three ",
    "  spaces at both ends  ",
    "line\nline\n\nline\ttab\r\n",
    "Hello, World! It's 2024-01-02 (12345.678)...",
    "\u00c9t\u00e9 e\u0301te\u0301 na\u00efve \u00df \u0130",
    "\uff21\uff22\uff23 \ufb01ne \u2460 \u00bd \u2026 \u00a8",
    "soft\u00adhyphen zero\u200bwidth\u00a0hard\u3000wide \u0007",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u65e5\u672c\u8a9e\u306e\u6587\u7ae0",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\ud55c\uad6d\uc5b4",
    "\U0001f999 emoji\U0001f468\u200d\U0001f469",
    "def f(x):\n    return x[1:2] != {'a': \"b\"}  # \\",
    "--------========________aaaaaaaaaaaa",
)
# pieces of the vocabulary that are put into texts, and pieces of a text
_SAMPLE, _JOINED = 4000, 8


def unigram_keys(pieces: SentencePieces) -> dict[str, object]:
    """What GGUF files say of a unigram model beside its tokens.

    Args:
        pieces: The model.

    Raises:
        FormatError: it has no unknown token, or the table of replacements is damaged.
    """
    if TokenType.UNKNOWN not in pieces.kinds:
        raise FormatError("the unigram model has no unknown token")
    Charsmap(pieces.charsmap)
    keys: dict[str, object] = {
        "tokenizer.ggml.add_space_prefix": pieces.space_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": pieces.merge_spaces,
        "tokenizer.ggml.unknown_token_id": Typed(pieces.kinds.index(TokenType.UNKNOWN), "uint32"),
    }
    if pieces.charsmap:
        keys["tokenizer.ggml.precompiled_charsmap"] = Typed(list(pieces.charsmap), "array[uint8]")
    return keys


def read_unigram(
    path: Path,
    whole: Mapping[str, Any],
    load: Callable[[Path], Any],
    n_vocab: int,
    added: Mapping[int, tuple[str, bool]],
) -> SentencePieces:
    """Pieces of `tokenizer.json`.

    Args:
        path: of it.
        whole: what is in it.
        load: makes of it the tokenizer of the `tokenizers` library.
        n_vocab: rows of the embedding.
        added: text and specialness of added tokens.

    Raises:
        FormatError: it is damaged, or has tokens that the embedding has no row for.
        UnsupportedError: what it does to texts cannot be said in a GGUF file.
    """
    model = whole["model"]
    # the library is given no damaged ones
    tables = {b"", *_tables(path, whole.get("normalizer"))}
    texts, scores = _vocabulary(path, model)
    unknown = model.get("unk_id")
    if type(unknown) is not int or not 0 <= unknown < len(texts):
        raise UnsupportedError(f"{path}: unigram models without an unknown token are not converted")
    kinds: list[int] = [TokenType.NORMAL] * len(texts)
    for token, text in enumerate(texts):
        if model.get("byte_fallback") is True and len(text) == 6 and text[:3] == "<0x" and text[5] == ">":
            kinds[token] = TokenType.BYTE
    kinds[unknown] = TokenType.UNKNOWN
    for token, (text, special) in sorted(added.items()):
        if token >= n_vocab:
            continue
        gap = token + 1 - len(texts)
        texts += [f"[PAD{len(texts) + i}]" for i in range(gap)]
        scores += [0.0] * gap
        kinds += [TokenType.UNUSED] * gap
        texts[token] = text
        if kinds[token] not in (TokenType.UNKNOWN, TokenType.BYTE):
            kinds[token] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    if len(texts) > n_vocab:
        raise FormatError(
            f"{path}: {texts[n_vocab]!r:.40} is token {n_vocab}, and the embedding has {n_vocab} rows"
        )
    for token, score in enumerate(scores):
        if kinds[token] == TokenType.NORMAL and float(np.float32(score)) != score:
            raise UnsupportedError(
                f"{path}: the score of {texts[token]!r:.40}, {score!r}, is no number of 32 bits, "
                "which GGUF files have; rounded ones would split some texts in another way"
            )
    theirs = load(path)
    other: dict[str, None] = {}
    for charsmap, prefix, merged in itertools.product(
        sorted(tables, key=len, reverse=True), (True, False), (True, False)
    ):
        pieces = SentencePieces(texts, scores, kinds, prefix, True, merged, charsmap)
        differs = _differs(pieces, theirs, {text for text, _ in added.values()})
        if differs is None:
            return pieces
        other[differs] = None
    raise UnsupportedError(
        f"{path}: what this unigram tokenizer does to a text before it splits it cannot be said in a "
        f"GGUF file (tokens of these texts differ: {', '.join(f'{text!r:.40}' for text in other)})"
    )


def _vocabulary(path: Path, model: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    vocab = model.get("vocab")
    texts: list[str] = []
    scores: list[float] = []
    for entry in vocab if isinstance(vocab, list) else ():
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise FormatError(f"{path}: the vocabulary has {entry!r:.80} for a token and its score")
        if type(entry[1]) not in (int, float) or not math.isfinite(entry[1]) or abs(entry[1]) > 3e38:
            raise FormatError(f"{path}: the score of {entry[0]!r:.40} is {entry[1]!r:.40}")
        texts.append(entry[0])
        scores.append(float(entry[1]))
    if not texts:
        raise FormatError(f"{path}: the vocabulary is missing")
    return texts, scores


def _tables(path: Path, normalizer: object) -> Iterator[bytes]:
    """Tables of replacements among the steps of a normalizer."""
    if isinstance(normalizer, dict):
        table = normalizer.get("precompiled_charsmap")
        if isinstance(table, str):
            try:
                found = base64.b64decode(table, validate=True)
            except binascii.Error as e:
                raise FormatError(f"{path}: the table of replacements is no base64: {e}") from None
            Charsmap(found)
            yield found
        for step in normalizer.get("normalizers") or ():
            yield from _tables(path, step)


def _differs(pieces: SentencePieces, theirs: Any, added: set[str]) -> str | None:  # noqa: ANN401
    """The first of a sample of texts that gets other tokens, if there is one."""
    from ikq.tokenizer.unigram import Rules, UnigramEncoder

    ids = {text: token for token, text in enumerate(pieces.texts)}
    kinds = [TokenType(kind) for kind in pieces.kinds]
    vocab = Vocab(pieces.texts, kinds, pieces.scores, [], ids)
    rules = Rules(Charsmap(pieces.charsmap), pieces.space_prefix, pieces.merge_spaces)
    ours = UnigramEncoder(vocab, pieces.kinds.index(TokenType.UNKNOWN), rules)
    for text in (*_PROBES, *_from_vocabulary(pieces)):
        if any(a in text for a in added):
            continue
        try:
            expected = theirs.encode(text, add_special_tokens=False).ids
        except BaseException as e:  # the library stops in this way where a table leads out of itself
            if type(e).__name__ != "PanicException":
                raise
            raise FormatError(f"the tokenizer's library fails at {text!r:.40}: {e}") from None
        if ours.encode(text, begins=True) != expected:
            return text
    return None


def _from_vocabulary(pieces: SentencePieces) -> Iterator[str]:
    """Texts of pieces from all over the vocabulary, and of those that span words."""
    normal = [t for t, kind in zip(pieces.texts, pieces.kinds, strict=True) if kind == TokenType.NORMAL]
    spanning = [text for text in normal if _SPACE in text[1:]][:_SAMPLE]
    chosen = normal[:: max(1, len(normal) // _SAMPLE)]
    for some in (chosen, spanning):
        for i in range(0, len(some), _JOINED):
            yield "".join(some[i : i + _JOINED]).replace(_SPACE, " ")
