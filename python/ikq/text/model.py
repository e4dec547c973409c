"""`TextModel`: the methods of `Model` for text, with tokenizer and chat template."""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ikq.errors import FormatError, UnsupportedError
from ikq.grammar.keywords import GrammarKeywords, constraint_of
from ikq.inference.batching import Batcher
from ikq.sampling import SamplingKeywords, SamplingOptions
from ikq.sampling.candidates import Candidates
from ikq.speculation.options import Speculation, SpeculationKeywords
from ikq.text.asynchronous import in_thread
from ikq.text.chat import ChatTemplate
from ikq.text.generate import Generation, Limits, Piece, Progress, progress_of
from ikq.text.reasoning import ReasoningSplitter
from ikq.text.templates import fit
from ikq.text.tools import ReplyForm, form_of
from ikq.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ikq.files.gguf import GGUFReader, Metadata
    from ikq.grammar import Constraint
    from ikq.inference import sequence
    from ikq.inference.lora import Scales

__all__ = ["GenerateKeywords", "TextModel"]


class GenerateKeywords(Limits, SamplingKeywords, SpeculationKeywords, GrammarKeywords, total=False):
    """Keywords of `Model.generate` and `Model.chat`."""


class TextModel(abc.ABC):
    """Text in and out of a model that can compute logits."""

    def __init__(self, reader: GGUFReader, n_ubatch: int) -> None:
        self._reader = reader
        self._batcher = Batcher(self, n_ubatch)

    @abc.abstractmethod
    def new_sequence(self, *, lora: Iterable[float] | None = None) -> sequence.Sequence:
        """As `Model.new_sequence`."""

    @overload
    @abc.abstractmethod
    def step(
        self, entries: Iterable[tuple[sequence.Sequence, ArrayLike, sequence.Want]]
    ) -> list[NDArray[np.float32] | None]: ...

    @overload
    @abc.abstractmethod
    def step(
        self, entries: Iterable[tuple[sequence.Sequence, ArrayLike, sequence.Want | sequence.Best]]
    ) -> Sequence[sequence.Wanted]: ...

    @abc.abstractmethod
    def step(
        self, entries: Iterable[tuple[sequence.Sequence, ArrayLike, sequence.Want | sequence.Best]]
    ) -> Sequence[sequence.Wanted]:
        """As `Model.step`."""

    @property
    @abc.abstractmethod
    def n_ctx(self) -> int:
        """As `Model.n_ctx`."""

    @abc.abstractmethod
    def _head(self, hidden: NDArray[np.float32], lora: Scales | None = None) -> NDArray[np.float32]:
        """Logits `(n, n_vocab)` from hidden states `(n, n_embd)`, for drafters that need these.

        `lora` are the scales of adapters that the states were computed with; `None`: the model's.
        """

    @abc.abstractmethod
    def _head_best(self, hidden: NDArray[np.float32], n: int, lora: Scales | None = None) -> list[Candidates]:
        """The `n` largest of these logits, of each hidden state."""

    def _lora_scales(self) -> Scales:
        """Scales of the model's adapters for texts that begin."""
        return ()

    def _own_sequences(self) -> tuple[sequence.Sequence, ...]:
        """Sequences that are no generation's, but that a text may share a beginning with."""
        return ()

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
        return Tokenizer.from_reader(self._reader)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The chat template of the file, or a plain one.

        Raises:
            FormatError: as `tokenizer`; or the template is damaged.
        """
        return ChatTemplate.from_reader(self._reader, self.tokenizer)

    @cached_property
    def reply_form(self) -> ReplyForm:
        """How the model writes reasoning and calls of tools, by its chat template.

        Raises:
            FormatError: as `chat_template`.
        """
        return form_of(self.chat_template, self.tokenizer)

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
        sampling: SamplingOptions | None = None,
        parse_special: bool = True,
        **options: Unpack[GenerateKeywords],
    ) -> Generation:
        """Continues a prompt.

        The beginning of the prompt is not computed again if a sequence of the model holds it already. Several
        generations are computed in common steps, see `ikq.Generation`.

        Args:
            prompt: A text, or tokens. A text gets the token that texts of this model begin with.
            sampling: How tokens are chosen; `options` override it.
            parse_special: Names of control tokens in a text stand for these tokens.
            **options: `max_tokens`, `stop`, `logprobs`, ... (`ikq.text.generate.Limits`), fields of
                `ikq.sampling.SamplingOptions` (`temperature`, `seed`, ...), of
                `ikq.speculation.Speculation` (`draft_model`, `lookup`, `mtp`, ...), which change the time but
                not the text, and what the text must be (`json_schema`, `grammar`, ...,
                `ikq.grammar.keywords.GrammarKeywords`).

        Returns:
            An iterator of `Piece`, which computes as it is asked; `.text()` is all of it.

        Raises:
            ShapeError: the prompt is empty or longer than the context.
            ValueError: an option is out of range.
            FormatError: a text is given, and the file has no tokenizer.
            GrammarError: what the text must be cannot be compiled; nothing has been computed.

        Examples:
            >>> import ikq
            >>> model = ikq.Model.load("tests/data/tiny-moe-bf16.gguf", n_ctx=64)
            >>> pieces = list(model.generate("import sys", max_tokens=4, seed=1))
            >>> len(pieces), pieces[-1].reason
            (4, 'length')
        """
        if isinstance(prompt, str):
            tokens = self._prompt_tokens(prompt, parse_special)
        else:
            ids = np.asarray(prompt)
            if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
                raise FormatError(f"a prompt is a text or a flat sequence of tokens, not {ids.dtype}")
            tokens = ids.tolist()
        return self._generation(tokens, None, sampling, options)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        sampling: SamplingOptions | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> Generation:
        """Answers a conversation, in the form of the model's chat template.

        Args:
            messages: With `role` (`system`, `user`, `assistant`, ...) and `content`, in the form of OpenAI's
                chat completions. They are made to fit the template (`ikq.text.templates`).
            tools: Descriptions of functions that the model may call.
            template_options: Further variables of the template, such as `{"enable_thinking": False}`.
            sampling: As for `generate`.
            **options: As for `generate`. A constraint on the text applies to the answer, not to the reasoning
                before it.

        Returns:
            As `generate`; pieces say whether they are reasoning.

        Raises:
            TemplateLimit: the template cannot express the conversation, or refuses it.
            FormatError: a message is malformed; and as `generate`.
            GrammarError: as `generate`.
            ShapeError: as `generate`.
            ValueError: as `generate`.
        """
        form = self.reply_form
        prompt = fit(self.chat_template, messages, tools, form=form).render(**(template_options or {}))
        tokens = self._prompt_tokens(prompt, parse_special=True)
        return self._generation(
            tokens, ReasoningSplitter(prompt), sampling, options, form=form, prompt=prompt
        )

    def agenerate(
        self,
        prompt: str | Sequence[int] | NDArray[np.integer],
        *,
        sampling: SamplingOptions | None = None,
        parse_special: bool = True,
        **options: Unpack[GenerateKeywords],
    ) -> AsyncGenerator[Piece, None]:
        """As `generate`, for `async for`; the event loop goes on while the model computes.

        Several at a time are computed in common steps.
        """
        return in_thread(
            lambda check: self.generate(
                prompt, sampling=sampling, parse_special=parse_special, **_checked(options, check)
            )
        )

    def achat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        sampling: SamplingOptions | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> AsyncGenerator[Piece, None]:
        """As `chat`, for `async for`; see `agenerate`."""
        return in_thread(
            lambda check: self.chat(
                messages,
                tools=tools,
                template_options=template_options,
                sampling=sampling,
                **_checked(options, check),
            )
        )

    def _prompt_tokens(self, prompt: str, parse_special: bool) -> list[int]:
        """Tokens of a prompt. An end of text, which some models ask for, would end it."""
        tokens = self.tokenizer.encode(prompt, parse_special=parse_special)
        bos = self.tokenizer.bos
        if self.tokenizer.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def _generation(
        self,
        tokens: list[int],
        splitter: ReasoningSplitter | None,
        sampling: SamplingOptions | None,
        options: GenerateKeywords,
        *,
        form: ReplyForm | None = None,
        prompt: str = "",
    ) -> Generation:
        changes = {k: v for k, v in options.items() if k in SamplingKeywords.__annotations__}
        drafts = {k: v for k, v in options.items() if k in SpeculationKeywords.__annotations__}
        forms = {k: v for k, v in options.items() if k in GrammarKeywords.__annotations__}
        others = (changes, drafts, forms)
        limits = cast("Limits", {k: v for k, v in options.items() if not any(k in other for other in others)})
        tokenizer = self._tokenizer_if_any()
        constraint: Constraint | None = constraint_of(tokenizer, cast("GrammarKeywords", forms))
        if constraint is not None and form is not None:
            constraint = form.answer(constraint, prompt)
        speculation = Speculation(**cast("SpeculationKeywords", drafts))
        return Generation(
            self,
            tokens,
            options=replace(sampling or SamplingOptions(), **cast("SamplingKeywords", changes)),
            tokenizer=tokenizer,
            splitter=splitter,
            speculation=speculation.text(self),
            constraint=constraint,
            **limits,
        )

    def _tokenizer_if_any(self) -> Tokenizer | None:
        """The tokenizer, for showing text that nobody asked for as such."""
        try:
            return self.tokenizer
        except (FormatError, UnsupportedError):
            return None


def _checked(options: GenerateKeywords, check: Progress) -> GenerateKeywords:
    """Options with `check` called before what shows progress."""
    show = progress_of(options.get("progress", False))

    def both(done: int, total: int) -> None:
        check(done, total)
        if show is not None:
            show(done, total)

    return {**options, "progress": both}
