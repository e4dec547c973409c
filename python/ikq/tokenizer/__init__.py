"""Text to tokens and back: `Tokenizer`, `StreamDecoder`.

vocab.py           tokens, scores and merges from a file's metadata
special.py         special tokens: ids, ends of texts, finding them in a prompt
pre_tokenizers.py  how text is split before merging: one table
bpe.py             byte-level BPE ("gpt2") and BPE on plain text ("gemma4")
spm.py             SentencePiece with scores ("llama")
unigram.py         SentencePiece's unigram models ("t5")
charsmap.py        what they replace in a text
wpm.py             WordPiece ("bert")
stream.py          text of tokens one by one
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ikq.errors import FormatError, UnsupportedError
from ikq.files.gguf import GGUFReader
from ikq.tokenizer import spm
from ikq.tokenizer.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, pre_tokenizer
from ikq.tokenizer.special import SpecialSplitter, end_ids, shown_ids, special_ids
from ikq.tokenizer.stream import StreamDecoder
from ikq.tokenizer.vocab import TokenType, Vocab, read_bool, read_text

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "StreamDecoder", "TokenType", "Tokenizer"]

_MODEL_KEY, _PRE_KEY = "tokenizer.ggml.model", "tokenizer.ggml.pre"
# ids that models of this kind have where the file names none
_SPM_IDS = {"bos": 1, "eos": 2, "unk": 0}
_UNIGRAM_IDS = {"eos": 1, "unk": 2, "pad": 0}
_WPM_IDS = {"bos": 101, "sep": 102, "unk": 100, "pad": 0}


class _Encoder(Protocol):
    def encode(self, text: str, *, begins: bool) -> list[int]: ...


class Tokenizer:
    """A model's tokenizer. May be used from several threads.

    Text is taken as it is: it is not normalized (NFC), and decoding cleans up no spaces, so that what
    was encoded comes back. Of unigram models the replacements of characters and spaces that the file
    names are made, as the models want it.

    Attributes:
        model: Kind of vocabulary: `gpt2` (byte-level BPE), `llama` (SentencePiece), `t5` (unigram),
            `gemma4`, `bert`.
        pre: Name of the pre-tokenizer; empty where there is none.
        special: Ids of special tokens.
        end_ids: Tokens after which a text ends (end of text, of turn, of message, ...).
        add_bos: `encode(..., add_special=True)` puts BOS first.
        add_eos: ... and EOS last.

    Examples:
        >>> import ikq
        >>> tokenizer = ikq.Tokenizer.from_reader(ikq.GGUFReader("tests/data/tiny-moe-bf16.gguf"))
        >>> ids = tokenizer.encode("import math")
        >>> ids, tokenizer.decode(ids)
        ([970, 313, 483], 'import math')
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Builds a tokenizer from metadata as in GGUF files.

        Raises:
            FormatError: the metadata hold no tokenizer, or a damaged one.
            UnsupportedError: the kind of tokenizer or the pre-tokenizer is not known.
        """
        model = read_text(metadata, _MODEL_KEY)
        if model is None and metadata.get("general.type") == "adapter":
            raise FormatError("the file is an adapter, which has no tokenizer: that of its model counts")
        if model is None:
            raise FormatError(f"the file has no tokenizer (`{_MODEL_KEY}` is missing)")
        if model == "no_vocab":
            raise FormatError(
                f"the file has no tokenizer (`{_MODEL_KEY}` is no_vocab); token ids still work: "
                "Model.logits, Model.eval and Model.generate take them, ikq bench makes its own"
            )
        if model not in ("gpt2", "llama", "t5", "gemma4", "bert"):
            raise UnsupportedError(
                f"tokenizer model {model!r} is not supported; ikq knows gpt2 (byte-level BPE), llama"
                " (SentencePiece), t5 (unigram), gemma4 and bert (WordPiece)"
            )
        from ikq.tokenizer import (
            bpe,
            unigram,
            wpm,
        )  # with the `tokenizers` library, which most programs do without

        self.model = model
        self._vocab = vocab = Vocab.read(metadata)
        defaults = {"llama": _SPM_IDS, "t5": _UNIGRAM_IDS, "bert": _WPM_IDS}.get(model, {})
        self.special = special = special_ids(metadata, vocab, defaults)
        self._shown = shown_ids(vocab)
        self.end_ids = end_ids(metadata, vocab, special)
        self.pre = ""
        space_prefix, add_bos, self._token_bytes = False, model in ("llama", "bert"), spm.token_bytes
        self._encoder: _Encoder
        if model == "llama":
            space_prefix = read_bool(metadata, "add_space_prefix", True)
            self._encoder = spm.SpmEncoder(vocab, special.unk, space_prefix)
        elif model == "t5":
            rules = unigram.Rules.read(metadata)
            space_prefix = rules.space_prefix
            self._encoder = unigram.UnigramEncoder(vocab, special.unk, rules)
        elif model == "bert":
            space_prefix = True  # each word is written with one
            self._encoder = wpm.WpmEncoder(vocab, special.unk)
        else:
            self.pre = "gemma4" if model == "gemma4" else _pre(metadata)
            rule = pre_tokenizer(self.pre)
            add_bos = rule.add_bos
            self._encoder = bpe.RawBpeEncoder(vocab) if rule.raw else bpe.BpeEncoder(vocab, rule)
            if not rule.raw:
                self._token_bytes = bpe.token_bytes
        self._space_prefix = space_prefix
        self.add_bos = read_bool(metadata, "add_bos_token", add_bos) and special.bos is not None
        if model == "gemma4":
            self.add_bos = special.bos is not None  # files say false, and the model is lost without
        self._last = special.sep if model == "bert" else special.eos
        self.add_eos = (
            read_bool(metadata, "add_eos_token", model in ("bert", "t5")) and self._last is not None
        )
        self._splitter = SpecialSplitter(vocab, _stripping(metadata, vocab))

    @classmethod
    def from_reader(cls, reader: GGUFReader) -> Tokenizer:
        """The tokenizer of a file.

        Raises:
            FormatError: the file has none, or a damaged one.
            UnsupportedError: the kind of tokenizer or the pre-tokenizer is not known.
        """
        return cls(reader.metadata)

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self._vocab.texts)

    @property
    def bos(self) -> int | None:
        """The token that begins a text, if there is one."""
        return self.special.bos

    @property
    def eos(self) -> int | None:
        """The token that ends a text."""
        return self.special.eos

    @property
    def eot(self) -> int | None:
        """The token that ends a turn of a conversation."""
        return self.special.eot

    def encode(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Ids of the tokens of a text.

        Args:
            text: Any text.
            add_special: Put BOS first and EOS last if the model wants them. They are not doubled where
                the text itself brings them.
            parse_special: Control tokens may stand in the text (`<|im_start|>`); otherwise these are
                characters like any others. User-defined tokens are always found.

        Raises:
            FormatError: the text holds half a surrogate pair, or what the vocabulary cannot express.
        """
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise FormatError(f"the text is not Unicode: half a surrogate pair at {e.start}") from e
        ids: list[int] = []
        begins = True
        for piece in self._splitter.split(text, parse_special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._encoder.encode(piece, begins=begins)
            begins = isinstance(piece, int)
        if add_special and self.add_bos and self.special.bos is not None and ids[:1] != [self.special.bos]:
            ids.insert(0, self.special.bos)
        if add_special and self.add_eos and self._last is not None and ids[-1:] != [self._last]:
            ids.append(self._last)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of tokens.

        Args:
            ids: Token ids.
            skip_special: Control tokens have no text; otherwise they are shown as in prompts.

        Returns:
            The text; U+FFFD stands for bytes that are not UTF-8. A space that `encode` put before the
            text is taken away.

        Raises:
            FormatError: an id is not in the vocabulary.
        """
        return self.decode_bytes(ids, skip_special).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int], skip_special: bool = True) -> bytes:
        """As `decode`, but bytes, which need not be whole characters."""
        parts = []
        begins = self._space_prefix
        for token in ids:
            control = self.is_control(token)
            piece = self.token_bytes(token)
            if begins and not control:
                piece = piece.removeprefix(b" ")
                begins = False
            if not (control and skip_special):
                parts.append(piece)
        return b"".join(parts)

    def token_bytes(self, id: int) -> bytes:
        """What a token stands for; of a special token its name.

        Raises:
            FormatError: there is no such token.
        """
        self._check(id)
        return self._token_bytes(self._vocab.texts[id], self._vocab.types[id])

    def token_type(self, id: int) -> TokenType:
        """The kind of a token.

        Raises:
            FormatError: there is no such token.
        """
        self._check(id)
        return self._vocab.types[id]

    def is_control(self, id: int) -> bool:
        """Whether a token is no part of the text, such as BOS, the end of a turn, or the unknown token.

        Marks around reasoning (`[THINK]`) are part of it, whatever the file calls them.

        Raises:
            FormatError: there is no such token.
        """
        return self.token_type(id) in (TokenType.CONTROL, TokenType.UNKNOWN) and id not in self._shown

    def id_of(self, text: str) -> int | None:
        """The token whose text in the vocabulary is this, such as `<|im_end|>`."""
        return self._vocab.ids.get(text)

    def text_of(self, id: int | None) -> str:
        """The text of a token in the vocabulary; nothing for no token."""
        if id is None:
            return ""
        self._check(id)
        return self._vocab.texts[id]

    def _check(self, id: int) -> None:
        if not 0 <= id < len(self._vocab.texts):
            raise FormatError(f"token {id} is not in the vocabulary of {self.n_vocab} tokens")

    def __repr__(self) -> str:
        pre = f", {self.pre}" if self.pre else ""
        return f"Tokenizer({self.model}{pre}, {self.n_vocab} tokens)"


def _pre(metadata: Mapping[str, Any]) -> str:
    name = read_text(metadata, _PRE_KEY)
    if not name:
        warnings.warn(
            f"the file does not name its pre-tokenizer (`{_PRE_KEY}`); text is split by a rule that may not"
            " be the model's",
            UserWarning,
            stacklevel=4,
        )
        return "default"
    return name


def _stripping(metadata: Mapping[str, Any], vocab: Vocab) -> frozenset[int]:
    """Tokens that swallow the white space behind them; files do not say so, Phi-3's are known by name."""
    name = metadata.get("general.name")
    if not isinstance(name, str) or not any(n in name.lower() for n in ("phi-3", "phi3")):
        return frozenset()
    special = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    keep = {"<unk>", "<s>", "<|endoftext|>"}
    return frozenset(
        token for token, kind in enumerate(vocab.types) if kind in special and vocab.texts[token] not in keep
    )
