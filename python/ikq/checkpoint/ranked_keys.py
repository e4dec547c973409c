"""Keys of GGUF files for tokenizers whose tokens have ranks: `tiktoken_keys`, `tekken_keys`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from ikq.checkpoint.pre_tokenizer import recognise
from ikq.checkpoint.ranks import RankedTokens
from ikq.checkpoint.tekken import read_tekken
from ikq.checkpoint.tiktoken import read_pattern, read_ranks, reserved_names
from ikq.errors import FormatError, UnsupportedError
from ikq.files.gguf import Typed
from ikq.tokenizer.vocab import TokenType

__all__ = ["tekken_keys", "tiktoken_keys"]

_PREFIX = "tokenizer.ggml."


def tiktoken_keys(
    path: Path, added: Mapping[int, str], options: Mapping[str, Any], n_vocab: int
) -> tuple[dict[str, object], list[str]]:
    """Keys of a tokenizer of ranks, and the texts of its tokens.

    Args:
        path: The file of ranks; the code that says how text is split lies beside it.
        added: Texts of tokens behind the ranks, by id.
        options: Of `tokenizer_config.json`.
        n_vocab: Rows of the embedding.

    Raises:
        FormatError: A file is damaged, or a token has no row.
        UnsupportedError: The splitting rule is missing or not known.
        OSError: A file cannot be read.
    """
    ranked = read_ranks(path)
    _check_rows(ranked, 0, n_vocab)
    special = reserved_names(options, max(ranked.ranks.values()) + 1, n_vocab)
    special |= {token: text for token, text in added.items() if token < n_vocab}
    pre = _pre_name(path, read_pattern(path.parent, options))
    return _keys(ranked, 0, special, pre, ranked.merges(), n_vocab)


def tekken_keys(path: Path, n_vocab: int) -> tuple[dict[str, object], list[str]]:
    """Keys of `tekken.json`, special tokens by their roles among them, and the texts of its tokens.

    Args:
        path: The file.
        n_vocab: Rows of the embedding.

    Raises:
        FormatError: The file is damaged, or a token has no row.
        UnsupportedError: Its splitting rule is not known.
        OSError: It cannot be read.
    """
    found = read_tekken(path)
    first = len(found.special)
    _check_rows(found.tokens, first, n_vocab)
    pre = _pre_name(path, found.pattern)
    keys, texts = _keys(
        found.tokens, first, dict(enumerate(found.special)), pre, found.tokens.all_merges(), n_vocab
    )
    # of no use to BPE; files that people have carry them
    keys[f"{_PREFIX}scores"] = Typed([0.0] * n_vocab, "array[float32]")
    keys |= {f"{_PREFIX}{role}_token_id": Typed(token, "uint32") for role, token in found.roles.items()}
    return keys | {f"{_PREFIX}add_bos_token": True, f"{_PREFIX}add_eos_token": False}, texts


def _check_rows(ranked: RankedTokens, first: int, n_vocab: int) -> None:
    token, rank = max(ranked.ranks.items(), key=lambda entry: entry[1])
    if first + rank >= n_vocab:
        raise FormatError(
            f"{ranked.source}: {token!r:.40} is token {first + rank}, and the embedding has {n_vocab} rows"
        )


def _keys(
    ranked: RankedTokens,
    first: int,
    special: Mapping[int, str],
    pre: str,
    merges: list[str],
    n_vocab: int,
) -> tuple[dict[str, object], list[str]]:
    """Keys of tokens, the first of which has this id, and special ones."""
    texts = [f"[PAD{i}]" for i in range(n_vocab)]
    kinds = [int(TokenType.UNUSED)] * n_vocab
    by_text: dict[str, int] = {}
    for named, kind in (
        ({first + rank: text for rank, text in ranked.texts().items()}, TokenType.NORMAL),
        # none of them is ever made of text
        (special, TokenType.CONTROL),
    ):
        for token, text in named.items():
            if by_text.setdefault(text, token) != token or kinds[token] != TokenType.UNUSED:
                raise FormatError(f"{ranked.source}: {text!r:.40} is there twice, or its id {token} is")
            texts[token], kinds[token] = text, int(kind)
    if not merges:
        raise FormatError(f"{ranked.source}: no token is made of others, which is no vocabulary of BPE")
    keys: dict[str, object] = {
        f"{_PREFIX}model": "gpt2",
        f"{_PREFIX}pre": pre,
        f"{_PREFIX}tokens": texts,
        f"{_PREFIX}token_type": Typed(kinds, "array[int32]"),
        f"{_PREFIX}merges": merges,
    }
    return keys, texts


def _pre_name(path: Path, pattern: str) -> str:
    """The name of a splitting rule: of one that takes words which are tokens as they are, if there is one."""
    try:
        split = Split(Regex(pattern), "isolated")
    except Exception as e:  # the library raises nothing narrower
        raise FormatError(f"{path}: the splitting rule {pattern!r:.60} cannot be read: {e}") from None
    rule = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    try:
        return recognise(rule, whole_words=True, add_bos=True)
    except UnsupportedError:
        pass
    try:
        return recognise(rule, whole_words=False, add_bos=False)
    except UnsupportedError as e:
        raise UnsupportedError(f"{path}: {e}") from None
