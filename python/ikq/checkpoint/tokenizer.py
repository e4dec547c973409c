"""A checkpoint's tokenizer as keys of a GGUF file: `tokenizer_keys`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ikq.checkpoint.config import Config, read_json, read_limited
from ikq.checkpoint.sentencepiece import SentencePieces, read_sentencepiece
from ikq.checkpoint.tokenizer_file import ById, Joined, TokenizerFile, pairs, read_tokenizer_file
from ikq.checkpoint.tokenizer_rules import ends, pre_name
from ikq.checkpoint.unigram import read_unigram, unigram_keys
from ikq.errors import FormatError, UnsupportedError
from ikq.files.gguf import Typed
from ikq.tokenizer.vocab import TokenType

__all__ = ["tokenizer_keys"]

_PREFIX = "tokenizer.ggml."
_SPACE = "\u2581"
# keys of special tokens by the names in tokenizer_config.json; spelt so in files
_SPECIAL = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
# ends of messages to tools, apart from ends of turns
_EOM = ("<|eom_id|>", "<|observation|>")
_GLM = {
    "bos_token_id": "[gMASK]",
    "unknown_token_id": "<|endoftext|>",
    "eot_token_id": "<|user|>",
    "eom_token_id": "<|observation|>",
}
_ADDED_SCORE = -1000.0
_MAX_TEMPLATE_BYTES = 10_000_000


def tokenizer_keys(folder: Path, config: Config, architecture: str) -> dict[str, object]:
    """Tokens, merges or scores, special tokens and chat template.

    Args:
        folder: of the checkpoint.
        config: its configuration.
        architecture: of the file.

    Raises:
        FormatError: a file is damaged, or they do not fit together.
        UnsupportedError: a kind of tokenizer that is not known.
        OSError: there is no tokenizer.
    """
    options = _read_if_there(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    file = read_tokenizer_file(path) if path.exists() else TokenizerFile({})
    whole = file.whole
    texts: Sequence[str]
    n_vocab = config.integer("vocab_size", low=1)
    # Gemma 4's merges are no order of scores, as SentencePiece has them
    stored = None if architecture == "gemma4" else _sentencepiece(folder / "tokenizer.model", whole)
    if stored is not None:
        pieces = _within(_with_added(stored, folder, whole, options, n_vocab), folder, n_vocab)
        keys, texts = _sentencepiece_keys(pieces, n_vocab)
    elif not whole:
        keys, texts = _from_ranks(folder, options, n_vocab)
    else:
        is_plain = architecture == "gemma4"
        keys, texts = _from_json(path, file, n_vocab, is_plain=is_plain)
    # what the tokenizer's own file says counts
    _add(keys, _special_keys(folder, config, options, texts, architecture))
    _add(keys, _begin_and_end(path, file, options, keys))
    if f"{_PREFIX}pre" not in keys:
        keys[f"{_PREFIX}pre"] = _pre_name(path, file, keys)
    return {**_in_order(keys), **_templates(folder, options)}


def _sentencepiece(path: Path, whole: Mapping[str, Any]) -> SentencePieces | None:
    """Pieces of `tokenizer.model`, if there is such a file and nothing better than it."""
    if not path.exists():
        return None
    try:
        pieces = read_sentencepiece(path)
        # what the model's own library runs, which may treat spaces in another way, is in tokenizer.json
        return None if pieces.is_unigram and whole else pieces
    except (FormatError, UnsupportedError):
        from ikq.checkpoint.tiktoken import find_ranks

        # some folders have another kind of file under this name: ranks, or all that matters in tokenizer.json
        if whole or find_ranks(path.parent) is not None:
            return None
        raise


def _add(keys: dict[str, object], more: Mapping[str, object]) -> None:
    """Adds keys behind those that are there, which stay."""
    for key, value in more.items():
        keys.setdefault(key, value)


def _from_ranks(
    folder: Path, options: Mapping[str, Any], n_vocab: int
) -> tuple[dict[str, object], list[str]]:
    """Tokens with ranks, where a folder has them instead of `tokenizer.json`.

    Raises:
        FileNotFoundError: There is no tokenizer.
    """
    # most programs do without the library that they need
    from ikq.checkpoint.ranked_keys import tekken_keys, tiktoken_keys
    from ikq.checkpoint.tiktoken import find_ranks

    if (folder / "tekken.json").exists():
        return tekken_keys(folder / "tekken.json", n_vocab)
    path = find_ranks(folder)
    if path is not None:
        added = _added(folder / "tokenizer_config.json", {}, options)
        return tiktoken_keys(path, {token: text for token, (text, _) in added.items()}, options, n_vocab)
    if (folder / "vocab.json").exists():
        raise UnsupportedError(
            f"{folder / 'vocab.json'}: tokenizers of this form are not converted; save the tokenizer with "
            "`transformers`, which writes tokenizer.json"
        )
    raise FileNotFoundError(2, "no tokenizer.json or tokenizer.model in this folder", str(folder))


def _within(pieces: SentencePieces, folder: Path, n_vocab: int) -> SentencePieces:
    """Pieces without those that the embedding has no row for.

    Raises:
        FormatError: text would be encoded with one of these.
    """
    kinds = pieces.kinds[:n_vocab]
    beyond = (TokenType.NORMAL, TokenType.BYTE, TokenType.UNKNOWN)
    for token in range(n_vocab, len(pieces.kinds)):
        if pieces.kinds[token] in beyond:
            raise _no_row(folder, pieces.texts[token], token, n_vocab)
    return replace(pieces, texts=pieces.texts[:n_vocab], scores=pieces.scores[:n_vocab], kinds=kinds)


def _no_row(path: Path, text: str, token: int, n_vocab: int) -> FormatError:
    return FormatError(f"{path}: {text!r:.40} is token {token}, and the embedding has {n_vocab} rows")


def _in_order(keys: dict[str, object]) -> dict[str, object]:
    first = ("model", "pre", "tokens", "scores", "token_type", "merges")
    head = {f"{_PREFIX}{n}": keys[f"{_PREFIX}{n}"] for n in first if f"{_PREFIX}{n}" in keys}
    return {**head, **keys}


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _added(path: Path, whole: Mapping[str, Any], options: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Text and specialness of tokens that were added to the vocabulary, by token."""
    found: dict[int, tuple[str, bool]] = {}
    decoder = options.get("added_tokens_decoder")
    for entry in whole.get("added_tokens") or []:
        if isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("content"), str):
            found[entry["id"]] = entry["content"], entry.get("special") is True
        else:
            raise FormatError(f"{path}: an added token is {entry!r:.80}")
    for token, entry in decoder.items() if isinstance(decoder, dict) else ():
        if str(token).isdigit() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found.setdefault(int(token), (entry["content"], entry.get("special") is True))
    return found


def _kind_of_added(text: str, special: bool) -> TokenType:
    # some checkpoints leave out that these are no text
    looks = text.startswith(("<|", "<\uff5c")) and text.endswith(("|>", "\uff5c>"))
    return TokenType.CONTROL if special or looks else TokenType.USER_DEFINED


def _fill(texts: list[str | None], kinds: list[int], n_vocab: int) -> list[str]:
    """Names for ids that no token has, up to the rows of the embedding."""
    texts += [None] * (n_vocab - len(texts))
    kinds += [TokenType.UNUSED] * (n_vocab - len(kinds))
    return [f"[PAD{i}]" if text is None else text for i, text in enumerate(texts)]


def _from_json(
    path: Path, file: TokenizerFile, n_vocab: int, *, is_plain: bool = False
) -> tuple[dict[str, object], Sequence[str]]:
    """BPE (of bytes, or of plain text: `is_plain` with its merges), or unigram, from `tokenizer.json`."""
    whole = file.whole
    kind = _kind_of_json(whole)
    if kind in ("BPE", "Unigram"):
        _refuse_marks(path, whole["model"])
    if kind == "Unigram":
        pieces = read_unigram(path, whole, _load, n_vocab, _added(path, whole, {}))
        return _sentencepiece_keys(pieces, n_vocab)
    if kind != "BPE":
        raise UnsupportedError(
            f"{path}: tokenizers of kind {kind!r:.40} are not converted; BPE and Unigram are"
        )
    model = whole["model"]
    vocab, numbers, halves = _vocabulary(path, file)
    added = _added(path, whole, {})
    if any(not 0 <= number < 2**24 for number in numbers):
        raise FormatError(f"{path}: an token in the vocabulary is no number")
    n = max([n_vocab, max(numbers, default=-1) + 1, *(token + 1 for token in added)])
    if n > 16 * (len(vocab) + len(added)) + n_vocab:
        raise FormatError(f"{path}: ids go up to {n}, for {len(vocab) + len(added)} tokens")
    for place, number in enumerate(numbers):
        if number >= n_vocab and number not in added:
            raise _no_row(path, vocab[place], number, n_vocab)
    # added tokens that the embedding has no row for cannot be run
    added = {token: entry for token, entry in added.items() if token < n_vocab}
    texts = ById(vocab, numbers, n_vocab)
    kinds: list[int] = [TokenType.NORMAL if has else TokenType.UNUSED for has in texts.has()]
    is_bytes = "ByteLevel" in json.dumps(whole.get("pre_tokenizer"))
    if not is_bytes:
        _plain_kinds(texts, kinds, model)
    for token, (text, special) in added.items():
        texts.added[token] = text
        if kinds[token] not in (TokenType.UNKNOWN, TokenType.BYTE):
            kinds[token] = _kind_of_added(text, special)
    if is_bytes:
        keys: dict[str, object] = {
            f"{_PREFIX}model": "gpt2",
            f"{_PREFIX}tokens": Typed(texts, "array[string]"),
            f"{_PREFIX}token_type": Typed([int(k) for k in kinds], "array[int32]"),
            # a space within a token would be taken for the one between two
            f"{_PREFIX}merges": Typed(Joined(halves), "array[string]"),
        }
        return keys, texts
    if not model.get("byte_fallback"):
        raise UnsupportedError(
            f"{path}: BPE that works neither on bytes nor falls back to them is not converted"
        )
    if is_plain:
        kinds = [
            TokenType.USER_DEFINED if text in _SHOWN else kind
            for text, kind in zip(texts, kinds, strict=True)
        ]
        return _plain_keys(texts, kinds, halves), texts
    rank: dict[str, int] = {}
    for i, (a, b) in enumerate(pairs(halves)):
        rank.setdefault(a + b, i)
    scores = [
        -float(rank.get(text, len(halves) // 2)) if kind == TokenType.NORMAL else 0.0
        for text, kind in zip(texts, kinds, strict=True)
    ]
    prefix = any(
        word in json.dumps([whole.get("normalizer"), whole.get("pre_tokenizer")]) for word in _PREPENDS
    )
    return _sentencepiece_keys(SentencePieces(list(texts), scores, [int(k) for k in kinds], prefix), n_vocab)


def _refuse_marks(path: Path, model: Mapping[str, Any]) -> None:
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        # the library may even end the process over those
        if model.get(key):
            raise UnsupportedError(
                f"{path}: `{key}` is {model[key]!r:.40}, and GGUF files have no form for marks within words"
            )


def _vocabulary(path: Path, file: TokenizerFile) -> tuple[Sequence[str], Sequence[int], Sequence[str]]:
    """Tokens of BPE, their ids, and the two parts of every merge."""
    if file.texts is not None and file.ids is not None and file.halves is not None:
        return file.texts, file.ids, file.halves
    model = file.whole["model"]
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise FormatError(f"{path}: the vocabulary or the merges are missing")
    halves = [part for merge in merges for part in _pair(path, merge)]
    if any(type(token) is not int or not 0 <= token < 2**24 for token in vocab.values()):
        raise FormatError(f"{path}: an token in the vocabulary is no number")
    return list(vocab), list(vocab.values()), halves


def _plain_keys(texts: Sequence[str], kinds: list[int], halves: Sequence[str]) -> dict[str, object]:
    """BPE on plain text with its merges: Gemma 4, whose spaces are U+2581 and whose words are lines."""
    return {
        f"{_PREFIX}model": "gemma4",
        # no other rule belongs to this model
        f"{_PREFIX}pre": "gemma4",
        f"{_PREFIX}tokens": Typed(texts, "array[string]"),
        f"{_PREFIX}scores": Typed([_ADDED_SCORE] * len(texts), "array[float32]"),
        f"{_PREFIX}token_type": Typed([int(k) for k in kinds], "array[int32]"),
        f"{_PREFIX}merges": Typed(Joined(halves), "array[string]"),
        f"{_PREFIX}add_space_prefix": False,
        f"{_PREFIX}add_bos_token": True,
    }


# tokens of Gemma 4 that parsers of replies have to see, though they are control tokens
_SHOWN = frozenset(
    (
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    )
)


def _kind_of_json(whole: Mapping[str, Any]) -> object:
    model = whole.get("model")
    return model.get("type", "BPE") if isinstance(model, dict) else model


# how normalizers and pre-tokenizers say that a space is put before the text
_PREPENDS = ('"Prepend"', '"prepend_scheme": "always"', '"prepend_scheme": "first"')


def _pair(path: Path, merge: object) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
        raise FormatError(f"{path}: the merge {merge!r:.80} is not two tokens")
    return parts[0], parts[1]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _plain_kinds(texts: Sequence[str], kinds: list[int], model: Mapping[str, Any]) -> None:
    for token, text in enumerate(texts):
        if kinds[token] == TokenType.UNUSED:
            continue
        if _is_byte(text):
            kinds[token] = TokenType.BYTE
        elif text == model.get("unk_token"):
            kinds[token] = TokenType.UNKNOWN


def _with_added(
    pieces: SentencePieces, folder: Path, whole: Mapping[str, Any], options: Mapping[str, Any], n_vocab: int
) -> SentencePieces:
    """Pieces with the tokens below `n_vocab` that other files add or rename."""
    added = _added(folder / "tokenizer.json", whole, options)
    for text, token in _read_if_there(folder / "added_tokens.json").items():
        if type(token) is int:
            added.setdefault(token, (text, False))
    texts, scores, kinds = list(pieces.texts), list(pieces.scores), list(pieces.kinds)
    for token in sorted(token for token in added if token < n_vocab):
        text, special = added[token]
        if token < len(texts):
            if texts[token] != text or kinds[token] in (TokenType.NORMAL, TokenType.USER_DEFINED):
                texts[token], kinds[token], scores[token] = text, _kind_of_added(text, special), _ADDED_SCORE
            continue
        if token > len(texts) + 2**20:
            raise FormatError(
                f"{folder}: the added token {text!r:.40} has the token {token}, far behind the others"
            )
        gap = token - len(texts)
        texts += [f"[PAD{len(texts) + i}]" for i in range(gap)] + [text]
        scores += [_ADDED_SCORE] * (gap + 1)
        kinds += [int(TokenType.UNUSED)] * gap + [int(_kind_of_added(text, special))]
    return replace(pieces, texts=texts, scores=scores, kinds=kinds)


def _sentencepiece_keys(pieces: SentencePieces, n_vocab: int) -> tuple[dict[str, object], list[str]]:
    kinds = list(pieces.kinds)
    given: list[str | None] = list(pieces.texts)
    texts = _fill(given, kinds, n_vocab)
    scores = [*pieces.scores, *([_ADDED_SCORE] * (len(texts) - len(pieces.scores)))]
    keys: dict[str, object] = {
        f"{_PREFIX}model": "t5" if pieces.is_unigram else "llama",
        f"{_PREFIX}pre": "default",
        f"{_PREFIX}tokens": texts,
        f"{_PREFIX}scores": Typed(scores, "array[float32]"),
        f"{_PREFIX}token_type": Typed([int(k) for k in kinds], "array[int32]"),
    }
    if pieces.is_unigram:
        keys |= unigram_keys(pieces)
    elif not pieces.space_prefix:
        keys[f"{_PREFIX}add_space_prefix"] = False
    return keys, texts


def _special_keys(
    folder: Path, config: Config, options: Mapping[str, Any], texts: Sequence[str], architecture: str
) -> dict[str, object]:
    """Ids of special tokens: as tokenizer_config.json names them, else as config.json numbers them."""
    named = {name: options.get(f"{name}_token") for name in _SPECIAL}
    contents = {name: n.get("content") if isinstance(n, dict) else n for name, n in named.items()}
    wanted = {*_GLM.values(), *(c for c in contents.values() if isinstance(c, str))}
    ids: dict[str, int] = {}
    for token, text in enumerate(texts):
        if text in wanted:
            ids.setdefault(text, token)
    found: dict[str, int] = {}
    for name, key in _SPECIAL.items():
        content = contents[name]
        number = config.get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(content, str) and content in ids:
            found[key] = ids[content]
        elif type(number) is int and 0 <= number < len(texts):
            found[key] = number
    generation = _read_if_there(folder / "generation_config.json")
    for more in (config.get("eos_token_id"), generation.get("eos_token_id")):
        for token in more if isinstance(more, list) else ():
            if type(token) is int and 0 <= token < len(texts) and token != found.get("eos_token_id"):
                found.setdefault("eom_token_id" if texts[token] in _EOM else "eot_token_id", token)
    if architecture == "glm4moe" or _is_glm(config):
        # its prompts begin with this one, and it has no unknown token
        for key in ("bos_token_id", "unknown_token_id"):
            if _GLM[key] in ids:
                found[key] = ids[_GLM[key]]
        for key in ("eot_token_id", "eom_token_id"):
            if _GLM[key] in ids:
                found.setdefault(key, ids[_GLM[key]])
    return {f"{_PREFIX}{key}": Typed(token, "uint32") for key, token in found.items()}


def _is_glm(config: Config) -> bool:
    """Whether the checkpoint is a GLM of another architecture."""
    names = config.whole.get("architectures")
    return isinstance(names, list) and str(names[0] if names else "").startswith(("Glm4Moe", "GlmMoe"))


def _begin_and_end(
    path: Path, file: TokenizerFile, options: Mapping[str, Any], keys: Mapping[str, object]
) -> dict[str, object]:
    """Whether prompts get BOS and EOS: as tokenizer_config.json says, else by what the tokenizer does."""
    is_plain = keys[f"{_PREFIX}model"] in ("llama", "t5")
    found = {"bos": is_plain, "eos": False}
    if file.whole:
        for name, token in zip(found, _ends(path, file), strict=True):
            own = keys.get(f"{_PREFIX}{name}_token_id")
            found[name] = token is not None and isinstance(own, Typed) and own.value == token
    for name in found:
        if isinstance(options.get(f"add_{name}_token"), bool):
            found[name] = options[f"add_{name}_token"]
    return {f"{_PREFIX}add_{name}_token": value for name, value in found.items()}


def _ends(path: Path, file: TokenizerFile) -> tuple[int | None, int | None]:
    """The first and the last of the tokens of a text, where they are not of the text itself."""
    known = None if file.texts is None else ends(file.whole)
    if known is not None:
        return known
    encoded = _rules(path, file).encode("a", add_special_tokens=True).ids
    return (encoded[0], encoded[-1]) if len(encoded) > 1 else (None, None)


def _pre_name(path: Path, file: TokenizerFile, keys: Mapping[str, object]) -> str:
    whole_words = file.whole["model"].get("ignore_merges") is True
    add_bos = keys[f"{_PREFIX}add_bos_token"] is True
    known = None if file.texts is None else pre_name(file.whole, whole_words=whole_words, add_bos=add_bos)
    if known is not None:
        return known
    from ikq.checkpoint.pre_tokenizer import recognise  # with the library

    try:
        return recognise(_rules(path, file).pre_tokenizer, whole_words=whole_words, add_bos=add_bos)
    except UnsupportedError as e:
        raise UnsupportedError(f"{path}: {e}") from None


def _rules(path: Path, file: TokenizerFile) -> Any:  # noqa: ANN401  # of `tokenizers`
    """The tokenizer of the library, or one with its rules but without most of its vocabulary.

    What stands before and behind a text, and where it is split, does not depend on tokens of several letters.
    """
    if file.texts is None or file.ids is None:
        return _load(path)
    from tokenizers import Tokenizer  # most programs do without

    model = file.whole["model"]
    kept = {model.get("unk_token"), *(text for text, _ in _added(path, file.whole, {}).values())}
    vocab = {
        text: file.ids[place]
        for place, text in enumerate(file.texts)
        if len(text) == 1 or text in kept or _is_byte(text)
    }
    small = {**file.whole, "model": {**model, "vocab": vocab, "merges": []}}
    try:
        return Tokenizer.from_str(json.dumps(small))
    except BaseException as e:  # the library raises nothing narrower, and panics in places
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise FormatError(f"{path} is no tokenizer: {e}") from None


def _load(path: Path) -> Any:  # noqa: ANN401  # of `tokenizers`
    from tokenizers import Tokenizer  # most programs do without

    try:
        return Tokenizer.from_file(str(path))
    except BaseException as e:  # the library raises nothing narrower, and panics in places
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise FormatError(f"{path} is no tokenizer: {e}") from None


def _template(path: Path) -> str:
    try:
        return read_limited(path, _MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError as e:
        raise FormatError(f"{path} is no text in UTF-8: {e}") from None


def _templates(folder: Path, options: Mapping[str, Any]) -> dict[str, object]:
    """The chat template, and others by their names."""
    found: dict[str, str] = {}
    given = options.get("chat_template")
    apart = folder / "chat_template.json"
    if given is None and apart.exists():
        given = read_json(apart).get("chat_template")
    if isinstance(given, str):
        found["default"] = given
    for entry in given if isinstance(given, list) else ():
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("template"), str)
        ):
            found[entry["name"]] = entry["template"]
    # where there are files they count
    if (folder / "chat_template.jinja").exists():
        found["default"] = _template(folder / "chat_template.jinja")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _template(path)
    keys: dict[str, object] = {}
    default = found.pop("default", None)
    if default is not None:
        keys["tokenizer.chat_template"] = default
    if found:
        keys["tokenizer.chat_templates"] = sorted(found)
        keys |= {f"tokenizer.chat_template.{name}": text for name, text in sorted(found.items())}
    return keys
