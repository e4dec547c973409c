"""`tokenizer.json` with its vocabulary as bytes: `read_tokenizer_file`.

As Python objects a vocabulary takes many times the memory of its text. Those of BPE are read into arrays, a
part of the file at a time; whatever is written in an unusual way is left to the reader of JSON, which has the
messages.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from ikq import _ikq
from ikq.checkpoint.config import MAX_JSON_BYTES, check_file, read_json

__all__ = ["ById", "Joined", "Texts", "TokenizerFile", "pairs", "read_tokenizer_file"]

_PART = 1 << 18
# what is longer than this is no token
_MAX_ITEM = 1 << 20
_MAX_REST = 20_000_000
# stand for what was taken out; integers, for a number of JSON without fraction is spelled in one way only
_VOCAB, _MERGES = 7_150_461_390_275_518_833, 7_150_461_390_275_518_834
_GAP, _TEXT = rb"[ \t\r\n]*", rb'"([^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*)"'
_BEGIN = re.compile(
    rb'(?<!\\)"(?:(vocab)"' + _GAP + b":" + _GAP + rb'\{|(merges)"' + _GAP + b":" + _GAP + rb"\[)"
)
_ENTRY = re.compile(
    _GAP + _TEXT + _GAP + b":" + _GAP + rb"(0|[1-9][0-9]{0,7})" + _GAP + rb"([,}])", re.DOTALL
)
_MERGE = re.compile(
    _GAP
    + b"(?:"
    + _TEXT
    + rb"|\["
    + _GAP
    + _TEXT
    + _GAP
    + b","
    + _GAP
    + _TEXT
    + _GAP
    + rb"\])"
    + _GAP
    + rb"([,\]])",
    re.DOTALL,
)


class Texts(Sequence[str]):
    """Texts that are kept as bytes of UTF-8, and made when they are asked for."""

    def __init__(self, raw: bytes | bytearray, bounds: Sequence[int]) -> None:
        """Takes the bytes of all texts, and where each begins in them, with the end of the last."""
        self._raw, self._bounds = raw, bounds

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return self._raw[self._bounds[at] : self._bounds[at + 1]].decode()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[str]:
        return (self._raw[start:end].decode() for start, end in pairwise(self._bounds))


class ById(Sequence[str]):
    """Tokens by id: those of a vocabulary, tokens that were added, and names for ids without a token.

    Attributes:
        added: Texts that stand in place of those of the vocabulary.
    """

    def __init__(self, texts: Sequence[str], ids: Iterable[int], n_vocab: int) -> None:
        """Takes the tokens of a vocabulary and the id of each; those from `n_vocab` on are left out."""
        self.added: dict[int, str] = {}
        self._texts, self._places = texts, array("i", [-1]) * n_vocab
        for place, token in enumerate(ids):
            # of texts with the same id the last one counts
            if token < n_vocab:
                self._places[token] = place

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        place = self._places[at]
        if at in self.added:
            return self.added[at]
        return f"[PAD{at}]" if place < 0 else self._texts[place]

    def __len__(self) -> int:
        return len(self._places)

    def has(self) -> Iterator[bool]:
        """Which ids the vocabulary has a token for, from 0 on."""
        return (place >= 0 for place in self._places)


class Joined:
    """Merges as GGUF files have them: two parts with a space between."""

    def __init__(self, halves: Sequence[str]) -> None:
        """Takes the parts of all merges, two of each."""
        self._halves = halves

    def __iter__(self) -> Iterator[str]:
        return (f"{a} {b}" for a, b in pairs(self._halves))


def pairs(halves: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The two parts of every merge."""
    each = iter(halves)
    return zip(each, each, strict=True)


@dataclass(frozen=True)
class TokenizerFile:
    """What a `tokenizer.json` holds.

    Attributes:
        whole: Its object; without vocabulary and merges where these are below.
        texts: Tokens in order of the file; None where all is in `whole`.
        ids: Their ids.
        halves: Parts of merges, two of each.
    """

    whole: dict[str, Any]
    texts: Texts | None = None
    ids: Sequence[int] | None = None
    halves: Texts | None = None


class _UnusualError(Exception):
    """The file is damaged, or not written as these files are."""


def read_tokenizer_file(path: Path) -> TokenizerFile:
    """Reads a `tokenizer.json`.

    Raises:
        FormatError: it is no JSON object.
        OSError: it cannot be read.
    """
    check_file(path, MAX_JSON_BYTES)
    try:
        with path.open("rb") as file:
            return _Reader(file).read()
    except (_UnusualError, ValueError, RecursionError):
        return TokenizerFile(read_json(path))


class _Strings:
    """Collects texts."""

    def __init__(self) -> None:
        self.raw, self.bounds, self.hashes = bytearray(), array("I", [0]), array("q")

    def add(self, text: bytes) -> bytes:
        """Adds what stands between quotes in a file of JSON; returns the bytes of the text."""
        if b"\\" in text:
            text = json.loads(b'"%s"' % text).encode()
        self.raw += text
        self.bounds.append(len(self.raw))
        self.hashes.append(hash(text))
        return text

    def texts(self) -> Texts:
        """All of them.

        Raises:
            UnicodeDecodeError: one is no UTF-8.
        """
        found = Texts(self.raw, self.bounds)
        for _ in found:
            pass
        return found


class _Reader:
    """Reads a file of JSON from its beginning, a part at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._part, self._at, self._is_over = file, b"", 0, False

    def read(self) -> TokenizerFile:
        """All of the file.

        Raises:
            _UnusualError: it has to be read in another way.
            ValueError: the same; it is no JSON, or no UTF-8.
        """
        rest = bytearray()
        vocab, ids, merges, joined = _Strings(), array("q"), _Strings(), array("q")
        while not self._is_over:
            self._more()
            while (found := _BEGIN.search(self._part, self._at)) is not None:
                is_vocab = found[1] is not None
                if len(vocab.hashes if is_vocab else merges.hashes):
                    raise _UnusualError
                rest += self._part[self._at : found.end() - 1] + b"%d" % (_VOCAB if is_vocab else _MERGES)
                self._at = found.end()
                if is_vocab:
                    self._vocab(vocab, ids)
                else:
                    self._merges(merges, joined)
            # a beginning may lie across the end of a part
            keep = max(self._at, len(self._part) - 256) if not self._is_over else len(self._part)
            rest += self._part[self._at : keep]
            self._at = keep
            if len(rest) > _MAX_REST:
                raise _UnusualError
        whole = json.loads(rest)
        model = whole.get("model") if isinstance(whole, dict) else None
        if not isinstance(model, dict):
            raise _UnusualError
        for key, stand_in in (("vocab", _VOCAB), ("merges", _MERGES)):
            # what was taken out may have been elsewhere, or of a `model` that another one replaces
            if type(model.get(key)) is not int or model[key] != stand_in or rest.count(b"%d" % stand_in) != 1:
                raise _UnusualError
            model[key] = 0
        if model.get("type", "BPE") != "BPE" or model.get("continuing_subword_prefix"):
            raise _UnusualError
        known, *parts = (np.frombuffer(values, np.int64) for values in (vocab.hashes, merges.hashes, joined))
        if not _ikq.distinct_and_hold(known, parts):
            raise _UnusualError
        return TokenizerFile(whole, vocab.texts(), ids, merges.texts())

    def _vocab(self, texts: _Strings, ids: array[int]) -> None:
        while True:
            item = self._item(_ENTRY)
            texts.add(item[1])
            ids.append(int(item[2]))
            if item[3] == b"}":
                return

    def _merges(self, halves: _Strings, joined: array[int]) -> None:
        # the `tokenizers` library reads no list of both forms
        are_texts: bool | None = None
        while True:
            item = self._item(_MERGE)
            if are_texts not in (None, item[1] is not None):
                raise _UnusualError
            are_texts = item[1] is not None
            a, b = item[2], item[3]
            if item[1] is not None:
                a, separator, b = item[1].partition(b" ")
                # an escape may stand for a space
                if not separator or b" " in b or b"\\u0020" in item[1]:
                    raise _UnusualError
            if not a or not b:
                raise _UnusualError
            joined.append(hash(halves.add(a) + halves.add(b)))
            if item[4] == b"]":
                return

    def _item(self, form: re.Pattern[bytes]) -> re.Match[bytes]:
        while (found := form.match(self._part, self._at)) is None:
            if self._is_over or len(self._part) - self._at > _MAX_ITEM:
                raise _UnusualError
            self._more()
        self._at = found.end()
        return found

    def _more(self) -> None:
        part = self._file.read(_PART)
        self._is_over = not part
        self._part, self._at = self._part[self._at :] + part, 0
