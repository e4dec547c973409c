"""Special tokens: their ids, which of them end a text, and where they stand in a prompt.

Files name some special tokens by key and leave others to be known by their text. The texts below are
those that model makers use; a file's keys come first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ikq.tokenizer.vocab import TokenType, Vocab, read_id

__all__ = ["SpecialIds", "SpecialSplitter", "end_ids", "shown_ids", "special_ids"]

_EOT = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_utterance>",
)
_END = (
    *_EOT,
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
)
# fill-in-the-middle tokens that a model writes only where another file would begin
_FIM_END = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# the others of that kind: some files call them user-defined, but in a text they are only text
_FIM = (
    *(
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    *(
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    *(
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    *(f"<\uff5cfim\u2581{name}\uff5c>" for name in ("begin", "hole", "end")),
)
# marks around reasoning: shown, since a reader has to see where the answer begins
_REASONING = (
    *(
        "<think>",
        "</think>",
        "<thinking>",
        "</thinking>",
        "<seed:think>",
        "</seed:think>",
        "[THINK]",
        "[/THINK]",
    ),
    *("<mm:think>", "</mm:think>", "\u25c1think\u25b7", "\u25c1/think\u25b7", "<|channel>", "<channel|>"),
    *("<|START_THINKING|>", "<|END_THINKING|>", "<think:opensource>", "</think:opensource>"),
)
# markup of the harmony format that a reader of the answer has to see
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass(frozen=True)
class SpecialIds:
    """Ids of special tokens; `None` where the vocabulary has none."""

    bos: int | None
    eos: int | None
    eot: int | None
    eom: int | None
    unk: int | None
    sep: int | None
    pad: int | None


def special_ids(
    metadata: Mapping[str, Any],
    vocab: Vocab,
    defaults: Mapping[str, int],
) -> SpecialIds:
    """Ids of special tokens.

    Args:
        metadata: The file's.
        vocab: Its tokens.
        defaults: Ids that a kind of tokenizer has where the file names none.

    Raises:
        FormatError: an id is no integer.
    """
    n_vocab = len(vocab.texts)

    def find(name: str, key: str, texts: Iterable[str] = ()) -> int | None:
        token = read_id(metadata, f"{key}_token_id", n_vocab)
        if token is None and defaults.get(name, n_vocab) < n_vocab:
            token = defaults[name]
        return token if token is not None else next((vocab.ids[t] for t in texts if t in vocab.ids), None)

    return SpecialIds(
        bos=find("bos", "bos"),
        eos=find("eos", "eos"),
        eot=find("eot", "eot", _EOT),
        eom=find("eom", "eom", ("<|eom_id|>",)),
        unk=find("unk", "unknown"),
        sep=find("sep", "seperator"),  # spelt so in files
        pad=find("pad", "padding"),
    )


def end_ids(metadata: Mapping[str, Any], vocab: Vocab, special: SpecialIds) -> frozenset[int]:
    """Ids after which nothing more is generated; makes them control tokens in `vocab`.

    Raises:
        FormatError: an id is no integer.
    """
    ends = {vocab.ids[text] for text in _END if text in vocab.ids}
    # where neither it nor its partner is a control token it is HTML
    pair = [vocab.ids[text] for text in ("</s>", "<s>") if text in vocab.ids]
    if "</s>" in vocab.ids and any(vocab.types[token] == TokenType.CONTROL for token in pair):
        ends.add(vocab.ids["</s>"])
    for name, texts in _FIM_END.items():
        token = read_id(metadata, f"{name}_token_id", len(vocab.texts))
        found = [token] if token is not None else [vocab.ids[t] for t in texts if t in vocab.ids][:1]
        ends.update(found)
    ends.update(token for token in (special.eos, special.eot, special.eom) if token is not None)
    for token in (*ends, *(vocab.ids[text] for text in _FIM if text in vocab.ids)):
        vocab.types[token] = TokenType.CONTROL
    names = {vocab.texts[token] for token in ends}
    # harmony closes each of its messages with <|end|>; the answer ends with one of the others
    if "<|end|>" in names and names & {"<|call|>", "<|calls|>"} and names & {"<|return|>", "<|flush|>"}:
        ends.remove(vocab.ids["<|end|>"])
        vocab.types[vocab.ids["<|end|>"]] = TokenType.USER_DEFINED
    for text in _SHOWN:
        if text in vocab.ids:
            vocab.types[vocab.ids[text]] = TokenType.USER_DEFINED
    return frozenset(ends)


def shown_ids(vocab: Vocab) -> frozenset[int]:
    """Control tokens that are part of the text all the same."""
    return frozenset(vocab.ids[text] for text in _REASONING if text in vocab.ids)


class SpecialSplitter:
    """Cuts a text at the tokens that are not to be split.

    The longest token that begins first wins. User-defined tokens are always found, control and
    unknown tokens only when asked for.
    """

    def __init__(self, vocab: Vocab, strip_after: frozenset[int] = frozenset()) -> None:
        """Prepares both kinds of search.

        Args:
            vocab: The tokens.
            strip_after: Tokens that swallow the white space behind them.
        """
        always = [vocab.texts[i] for i, t in enumerate(vocab.types) if t == TokenType.USER_DEFINED]
        asked = [
            vocab.texts[i] for i, t in enumerate(vocab.types) if t in (TokenType.CONTROL, TokenType.UNKNOWN)
        ]
        self._ids = {text: vocab.ids[text] for text in (*always, *asked)}
        self._plain = _search(always)
        self._special = _search([*always, *asked])
        self._strip_after = strip_after

    def split(self, text: str, parse_special: bool) -> Iterator[str | int]:
        """Pieces of text that are not empty, and ids of the tokens between them."""
        search = self._special if parse_special else self._plain
        start = 0
        while search is not None and (found := search.search(text, start)):
            if start < found.start():
                yield text[start : found.start()]
            token = self._ids[found.group()]
            yield token
            start = found.end()
            if token in self._strip_after:
                while start < len(text) and text[start] in " \t\n\v\f\r":
                    start += 1
        if start < len(text):
            yield text[start:]


def _search(texts: list[str]) -> re.Pattern[str] | None:
    """Finds the longest of `texts`.

    They are grouped by their first characters: some vocabularies have thousands of them, and a plain
    list would be tried from end to end at every place.
    """
    groups: dict[str, list[str]] = {}
    for text in sorted(texts, key=len, reverse=True):
        groups.setdefault(text[:4], []).append(re.escape(text))
    # a group of shorter texts must not hide a longer one
    heads = sorted(groups, key=len, reverse=True)
    return re.compile("|".join(f"(?:{'|'.join(groups[head])})" for head in heads)) if heads else None
