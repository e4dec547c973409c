"""`LoadedModel`: a model with its engine, and requests made ready for it; `loading.py` makes them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikq.errors import IkqError, UnsupportedError
from ikq.grammar import Constraint, compile_constraint
from ikq.inference.lora import Scales
from ikq.inference.model import Model
from ikq.sampling.dry import breakers
from ikq.serve.engine import Engine
from ikq.serve.errors import ServiceError
from ikq.serve.replies import ChatParser, PlainParser, ReplyParser
from ikq.serve.request_log import LOG
from ikq.serve.requests import ChatRequest, CompletionRequest, Form, Pooling, TextRequest
from ikq.serve.saved import save_prefixes
from ikq.serve.text import TextPlan
from ikq.speculation.options import Speculation
from ikq.speculation.text import TextSpeculation
from ikq.text.templates import fit
from ikq.text.tools import ReplyForm

__all__ = ["LoadedModel"]

# names that mean something else where templates are rendered
_RESERVED = frozenset(("self", "messages", "tools", "continues"))


@dataclass
class LoadedModel:
    """A model that answers.

    Attributes:
        name: What clients call it.
        path: Its file.
        model: See there.
        engine: The thread that owns it.
        loaded: When it was loaded, in seconds since 1970.
        speculation: What drafts its texts, unless a request says otherwise.
        prefix_dir: Folder in which what is kept of texts outlives the server.
    """

    name: str
    path: Path
    model: Model
    engine: Engine
    loaded: int
    speculation: Speculation
    prefix_dir: Path | None = None

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return sum(self.model.memory[:2])

    @property
    def held(self) -> int:
        """Bytes of memory that are free when it is closed, with what was loaded to draft for it."""
        models = [self.model, *self.model._draft_models.loaded]
        return sum(m.memory.copied + m.memory.cache for m in models)

    # requests made ready: in any thread, the model is not touched

    def plan_chat(self, request: ChatRequest) -> TextPlan:
        """A conversation made ready.

        Raises:
            ServiceError: the template cannot express it, the prompt is too long, a value is out of range.
        """
        prompt, form = self._rendered(request)
        tokens = self.tokens_of(prompt, parameter="messages")
        choice = request.tool_choice
        tools = request.tools if choice.mode != "none" else ()
        schema = _schema_beside(tools, request.form)
        answer = self._constraint(request)
        with _telling("tools"):
            constraint = form.constraint(
                tools,
                choice.mode,
                name=choice.name,
                parallel=choice.parallel,
                json_schema=schema,
                prompt=prompt,
            )
        if answer is not None and not tools:
            constraint = form.answer(answer, prompt)
        if request.reasoning_budget is not None:
            constraint = form.budgeted(constraint, request.reasoning_budget, prompt)

        def new_parser() -> ReplyParser:
            parser = form.parser(prompt, tools, separates_reasoning=request.separates_reasoning)
            return ChatParser(parser)

        return self._plan(request, tokens, new_parser, constraint, parameter="messages")

    def plan_completion(self, request: CompletionRequest) -> TextPlan:
        """A text made ready.

        Raises:
            ServiceError: as `plan_chat`.
        """
        if isinstance(request.prompt, str):
            tokens = self.tokens_of(request.prompt, parameter="prompt", parse_special=request.parse_special)
        else:
            tokens = self.checked_tokens(request.prompt)
        return self._plan(request, tokens, PlainParser, self._constraint(request), parameter="prompt")

    def render(self, request: ChatRequest) -> str:
        """The prompt of a conversation.

        Raises:
            ServiceError: the template cannot express it.
        """
        return self._rendered(request)[0]

    def _rendered(self, request: ChatRequest) -> tuple[str, ReplyForm]:
        """The prompt of a conversation, and the form of the reply."""
        if not request.messages:
            raise ServiceError("invalid_request", "there are no messages", parameter="messages")
        reserved = _RESERVED & request.template_options.keys()
        if reserved:
            sentence = f"chat_template_kwargs: {min(reserved)} is no option of a template"
            raise ServiceError("invalid_request", sentence, parameter="chat_template_kwargs")
        tools = list(request.tools) if request.tools and request.tool_choice.mode != "none" else None
        with _telling("messages"):
            form = self.model.reply_form
            fitted = fit(self.model.chat_template, request.messages, tools, form=form, tells_tools=True)
            prompt = fitted.render(continues=request.continues, **request.template_options)
        return prompt, fitted.form or form

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt of a conversation.

        Raises:
            ServiceError: as `render`.
        """
        return len(self.tokens_of(self.render(request), parameter="messages"))

    def checked_tokens(self, tokens: tuple[int, ...], parameter: str = "prompt") -> list[int]:
        """Tokens that are some of the model's.

        Raises:
            ServiceError: one is not.
        """
        n_vocab = self.model.spec.n_vocab
        for token in tokens:
            if not 0 <= token < n_vocab:
                sentence = f"token {token} is not in the vocabulary of {n_vocab} tokens"
                raise ServiceError("invalid_request", sentence, parameter=parameter)
        return list(tokens)

    def tokens_of(self, text: str, *, parameter: str, parse_special: bool = True) -> list[int]:
        """Tokens of a text, with the one that texts of this model begin with.

        Raises:
            ServiceError: the vocabulary cannot express it.
        """
        with _telling(parameter):
            return self.model._prompt_tokens(text, parse_special)

    def _constraint(self, request: TextRequest) -> Constraint | None:
        """What a text must be.

        Raises:
            ServiceError: it cannot be compiled; the sentence names the keyword.
        """
        form = request.form
        if form.is_free:
            return None
        with _telling(form.parameter):
            return compile_constraint(self.model.tokenizer, **form.keywords)

    def _plan(
        self,
        request: TextRequest,
        tokens: list[int],
        new_parser: Callable[[], ReplyParser],
        constraint: Constraint | None,
        *,
        parameter: str,
    ) -> TextPlan:
        n_ctx = self.model.n_ctx
        if not tokens:
            raise ServiceError("invalid_request", "the prompt is empty", parameter=parameter)
        if len(tokens) > n_ctx:
            raise ServiceError(
                "context_length",
                f"the prompt has {len(tokens)} tokens, the context holds {n_ctx}; shorten it, or start the "
                "server with a larger context (-c)",
                parameter=parameter,
                facts={"n_prompt_tokens": len(tokens), "n_ctx": n_ctx},
            )
        unknown = [t for t in request.sampling.logit_bias if t >= self.model.spec.n_vocab]
        if unknown:
            sentence = f"logit_bias: token {unknown[0]} is not in the vocabulary"
            raise ServiceError("invalid_request", sentence, parameter="logit_bias")
        if request.sampling.dry_multiplier > 0:
            # found here, and remembered: the engine's thread has no time for it
            breakers(request.sampling.dry_sequence_breakers, self.model.tokenizer)
        n_slots = len(self.engine.slots)
        if request.slot is not None and not 0 <= request.slot < n_slots:
            sentence = f"id_slot={request.slot}: there are slots 0 to {n_slots - 1}; -1 is any"
            raise ServiceError("invalid_request", sentence, parameter="id_slot")
        speculation = self.speculation
        if request.speculation is not None:
            with _telling("speculation"):
                speculation = replace(speculation, **request.speculation)

        def new_speculation() -> TextSpeculation | None:
            return speculation.text(self.model)

        return TextPlan(
            tokens=tuple(tokens),
            n_ctx=n_ctx,
            tokenizer=self.model.tokenizer,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            stop=request.stop,
            logprobs=request.logprobs,
            ignore_eos=request.ignore_eos,
            special=request.special,
            new_parser=new_parser,
            constraint=constraint,
            new_speculation=new_speculation,
            shares=request.cache_prompt,
            slot=request.slot,
            lora=self._lora(request),
        )

    def _lora(self, request: TextRequest) -> Scales | None:
        """Scales of the model's adapters for a request.

        Raises:
            ServiceError: it names an adapter that there is not.
        """
        return None if request.lora is None else self.lora_scales(request.lora)

    def lora_scales(self, given: Mapping[int, float]) -> Scales:
        """Scales of the model's adapters by their number; 0 for those that are not named.

        Raises:
            ServiceError: there is no such adapter.
        """
        n = len(self.model.lora_adapters)
        unknown = [number for number in given if number >= n]
        if unknown:
            there = "there is none" if n == 0 else f"there are 0 to {n - 1}"
            sentence = f"lora: there is no adapter {min(unknown)}; {there} (--lora)"
            raise ServiceError("invalid_request", sentence, parameter="lora")
        return tuple(given.get(number, 0.0) for number in range(n))

    # chores: in the engine's thread

    def embeddings(
        self, texts: Sequence[list[int]], pooling: Pooling
    ) -> Generator[None, None, list[NDArray[np.float32]]]:
        """The embedding of each text, one after the other."""
        found = []
        for tokens in texts:
            found.append((yield from self.embedding(tokens, pooling)))
        return found

    def embedding(self, tokens: list[int], pooling: Pooling) -> Generator[None, None, NDArray[np.float32]]:
        """The embedding of a text, computed in parts between which steps come; float32 `(n_embd,)`."""
        total: NDArray[np.float64] | None = None
        first: NDArray[np.float32] | None = None
        last: NDArray[np.float32] | None = None
        with self.model.new_sequence() as sequence:
            for start in range(0, len(tokens), self.model.n_ubatch):
                part = tokens[start : start + self.model.n_ubatch]
                (hidden,) = self.model.step([(sequence, part, "hidden")])
                assert hidden is not None
                first = hidden[0].copy() if first is None else first
                last = hidden[-1].copy()
                summed = hidden.sum(axis=0, dtype=np.float64)
                total = summed if total is None else total + summed
                yield
        assert total is not None, "there are tokens"
        assert first is not None
        assert last is not None
        if pooling == "mean":
            return (total / len(tokens)).astype(np.float32)
        return first if pooling == "cls" else last

    @property
    def pooling(self) -> Pooling:
        """How the file wants states of a text pooled; their mean if it does not say."""
        key = f"{self.model.spec.architecture}.pooling_type"
        value = self.model.metadata.get(key)
        names: dict[object, Pooling] = {1: "mean", 2: "cls", 3: "last"}
        return names.get(value, "mean")

    def close(self) -> None:
        """Ends its texts and frees its memory."""
        self.engine.close()
        if self.prefix_dir is not None:
            n = save_prefixes(self.engine.prefixes, self.prefix_dir)
            LOG.info("kept %d texts of %s in %s", n, self.name, self.prefix_dir)
        self.engine.prefixes.clear()
        self.model.close()


def _schema_beside(tools: Sequence[Mapping[str, Any]], form: Form) -> Mapping[str, Any] | bool | None:
    """The JSON schema of an answer that tools may be called instead of.

    Raises:
        ServiceError: it has a form that is no schema.
    """
    if not tools:
        return None
    if form.gbnf is not None or form.lark is not None or form.regex is not None:
        name = "grammar" if form.regex is None else "regex"
        sentence = f"{name} cannot be had together with tools; response_format can"
        raise ServiceError("invalid_request", sentence, parameter=name)
    return {"type": "object"} if form.json_object else form.json_schema


@contextmanager
def _telling(parameter: str) -> Iterator[None]:
    """Tells errors of ikq as those of a request's field."""
    try:
        yield
    except UnsupportedError as error:
        raise ServiceError("unsupported", str(error), parameter=parameter) from None
    except (IkqError, ValueError) as error:
        raise ServiceError("invalid_request", str(error), parameter=parameter) from None
