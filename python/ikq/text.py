"""`TextModel`: what `Model` does with text. Tokenizer, chat template and what the cache holds."""

from __future__ import annotations

import abc
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq.asynchronous import in_thread
from ikq.errors import FormatError, UnsupportedError
from ikq.generate import Generation, Piece
from ikq.sampling import SamplingKeywords, SamplingOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ikq.chat import ChatTemplate
    from ikq.gguf import GGUFReader, Metadata
    from ikq.tokenizer import Tokenizer

__all__ = ["TextModel"]

Progress = Callable[[int, int], object]


class TextModel(abc.ABC):
    """Text in and out of a model that can compute logits."""

    def __init__(self, reader: GGUFReader, n_ubatch: int) -> None:
        self._reader = reader
        self._n_ubatch = n_ubatch
        # what the cache holds, and how often that has changed
        self._cached: list[int] = []
        self._epoch = 0
        self._lock = threading.RLock()
        # asynchronous generations run one after the other
        self._turn = threading.Lock()

    @abc.abstractmethod
    def eval(self, tokens: ArrayLike, *, want: Literal["all", "last", "none"] = "all") -> NDArray[np.float32]:
        """As `Model.eval`."""

    @abc.abstractmethod
    def truncate(self, n: int) -> None:
        """As `Model.truncate`."""

    @abc.abstractmethod
    def shift(self, n_keep: int, n_discard: int) -> None:
        """As `Model.shift`."""

    @property
    @abc.abstractmethod
    def n_ctx(self) -> int:
        """As `Model.n_ctx`."""

    @property
    @abc.abstractmethod
    def n_past(self) -> int:
        """As `Model.n_past`."""

    @property
    def metadata(self) -> Metadata:
        """Metadata of the file, a copy that can be changed without effect."""
        return self._reader.metadata.copy()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the file.

        Raises:
            FormatError: the file has none, or it is damaged.
            UnsupportedError: it is of a kind that ikq does not know.
        """
        from ikq.tokenizer import Tokenizer

        return Tokenizer.from_reader(self._reader)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The chat template of the file, or a plain one.

        Raises:
            FormatError: as `tokenizer`; or the template is damaged.
        """
        from ikq.chat import ChatTemplate

        return ChatTemplate.from_reader(self._reader, self.tokenizer)

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Tokens of a text.

        Args:
            text: The text.
            add_special: Add the tokens that texts of this model begin (or end) with.
            parse_special: Take names of control tokens, as `<|im_start|>`, for these tokens.
        """
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Iterable[int]) -> str:
        """Text of tokens."""
        return self.tokenizer.decode(list(tokens))

    def generate(
        self,
        prompt: str | Sequence[int] | NDArray[np.integer],
        *,
        max_tokens: int | None = None,
        stop: str | Iterable[str] = (),
        logprobs: int | None = None,
        sampling: SamplingOptions | None = None,
        add_special: bool = True,
        parse_special: bool = True,
        special: bool = False,
        ignore_eos: bool = False,
        context_shift: bool = False,
        n_keep: int = 0,
        progress: Progress | bool = False,
        **options: Unpack[SamplingKeywords],
    ) -> Generation:
        """Continues a prompt.

        What the cache holds of the prompt already is not computed again.

        Args:
            prompt: A text, or tokens.
            max_tokens: Most tokens to generate; `None`: until the model ends or the context is full.
            stop: Texts that end the generation; they are not part of its text.
            logprobs: Give the log of each token's probability, and those of this many most probable ones.
            sampling: How tokens are chosen; `options` go over it.
            add_special: Begin a text with the tokens that texts of this model begin with.
            parse_special: Names of control tokens in a text stand for these tokens.
            special: Show control tokens in the text.
            ignore_eos: Never choose a token that ends the text.
            context_shift: When the context is full, forget half of what comes after the first `n_keep`
                tokens instead of ending (not for models with recurrent layers).
            n_keep: See there.
            progress: Called with tokens done and in all while the prompt is computed; `True`: a bar.
            **options: Fields of `SamplingOptions`.

        Returns:
            An iterator of `Piece`, which computes as it is asked; `.text()` is all of it.

        Raises:
            ShapeError: the prompt is empty or longer than the context.
            ValueError: an option is out of range.
            FormatError: a text is given, and the file has no tokenizer.

        Examples:
            >>> import ikq
            >>> model = ikq.Model.load("tests/data/tiny-moe-bf16.gguf", n_ctx=64)
            >>> pieces = model.generate([5, 6, 7], max_tokens=3, temperature=0)
            >>> [len(pieces.tokens), *(piece.reason for piece in pieces)]
            [3, None, None, 'length']
        """
        if isinstance(prompt, str):
            tokenizer: Tokenizer | None = self.tokenizer
            tokens = self.tokenize(prompt, add_special, parse_special)
        else:
            tokenizer = self._tokenizer_if_any()
            ids = np.asarray(prompt)
            if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
                raise FormatError(f"a prompt is a text or a flat sequence of tokens, not {ids.dtype}")
            tokens = ids.tolist()
        return Generation(
            self,
            tokens,
            options=replace(sampling or SamplingOptions(), **options),
            tokenizer=tokenizer,
            max_tokens=max_tokens,
            stop=stop,
            logprobs=logprobs,
            ignore_eos=ignore_eos,
            context_shift=context_shift,
            n_keep=n_keep,
            special=special,
            progress=_bar() if progress is True else (progress or None),
        )

    def agenerate(
        self, prompt: str | Sequence[int] | NDArray[np.integer], **options: Any
    ) -> AsyncIterator[Piece]:
        """As `generate`, for `async for`; the event loop goes on while the model computes.

        Several at a time take turns, each from its first piece to its last.
        """
        return in_thread(
            lambda check: self.generate(prompt, **_checked(options, check)), self._turn
        )

    def _tokenizer_if_any(self) -> Tokenizer | None:
        """The tokenizer, for showing text that nobody asked for as such."""
        try:
            return self.tokenizer
        except (FormatError, UnsupportedError):
            return None

    def _changed(self, tokens: list[int]) -> None:
        """Notes what the cache was to hold; after an interruption it may hold less."""
        self._cached = tokens[: self.n_past]
        self._epoch += 1

    def _continue_with(
        self, tokens: list[int], progress: Progress | None
    ) -> tuple[int, NDArray[np.float32]]:
        """Makes the cache hold `tokens`; how many of them it held, and the logits after the last."""
        n = _common(self._cached, tokens[:-1])
        if n < self.n_past:
            try:
                self.truncate(n)
            except UnsupportedError:  # recurrent layers
                self.truncate(0)
                n = 0
        # in steps, so that progress can be told and a wish to stop be heard
        logits = None
        for start in range(n, len(tokens), self._n_ubatch):
            part = tokens[start : start + self._n_ubatch]
            is_last = start + len(part) == len(tokens)
            logits = self.eval(part, want="last" if is_last else "none")
            if progress is not None:
                progress(start + len(part), len(tokens))
        assert logits is not None
        return n, logits


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(different[0]) if len(different) else n


def _bar() -> Progress:
    """A progress bar for a prompt, drawn as notebooks and terminals can."""
    from tqdm.auto import tqdm

    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, unit="token", desc="prompt", leave=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()
            bar = None

    return show


def _checked(options: dict[str, Any], check: Progress) -> dict[str, Any]:
    """Options with `check` called beside what shows progress."""
    given = options.get("progress", False)
    show = _bar() if given is True else given

    def both(done: int, total: int) -> None:
        check(done, total)
        if show:
            show(done, total)

    return {**options, "progress": both}
