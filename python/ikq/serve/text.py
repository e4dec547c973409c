"""`Text`: one text in the making, from logits to events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ikq.sampling import Sampler, SamplingOptions, log_probability, top_logprobs
from ikq.sequence import Sequence
from ikq.serve.events import Event, Finished, FinishReason, Piece, TokenLogprob
from ikq.serve.replies import PlainParser, ReplyParser
from ikq.speculation.text import TextSpeculation
from ikq.steps import Work
from ikq.stopping import StopTexts
from ikq.tokenizer import StreamDecoder, Tokenizer

__all__ = ["Masks", "Text", "TextPlan"]


class Masks(Protocol):
    """Which tokens may come next, for one text; computed beside the model's step."""

    def allowed(self) -> NDArray[np.bool_] | None:
        """`(n_vocab,)`, or `None`: all. Waits for what is being computed."""

    def accept(self, token: int) -> None:
        """Tells the next token."""

    @property
    def must_stop(self) -> bool:
        """Nothing may follow."""


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """A request made ready: all that can be known before anything is computed.

    Attributes:
        tokens: The prompt.
        n_ctx: Most tokens of a text.
        tokenizer: See there.
        sampling: How tokens are chosen.
        max_tokens: Most tokens to choose; `None`: no limit.
        stop: Texts that end it.
        logprobs: As in requests.
        ignore_eos: Never choose a token that ends the text.
        special: Show control tokens.
        new_parser: Makes what tells reasoning and tool calls from content.
        new_masks: Makes what says which tokens may come; `None`: all may.
        new_speculation: Makes what drafts it.
        shares: What is computed may serve other texts, and what was computed for them this one.
        slot: The slot that it shall have.
    """

    tokens: tuple[int, ...]
    n_ctx: int
    tokenizer: Tokenizer
    sampling: SamplingOptions
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    special: bool = False
    new_parser: Callable[[], ReplyParser] = PlainParser
    new_masks: Callable[[], Masks] | None = None
    new_speculation: Callable[[], TextSpeculation | None] = lambda: None
    shares: bool = True
    slot: int | None = None


class Text:
    """One of the texts that a request asks for. It belongs to the engine's thread.

    Attributes:
        index: Which of them.
        work: What the steps of the model know of it.
        n_prompt: Tokens of the prompt.
        n_chosen: Tokens chosen.
        n_reasoning: Those of them that are thoughts.
        begun: Time of its first step; 0 before.
        first: Time at which its first token was chosen.
        last: Time at which the latest one was.
        is_over: It is complete.
        slot: Number of its slot while it has one.
    """

    def __init__(self, plan: TextPlan, index: int, sequence: Sequence | None = None) -> None:
        options = plan.sampling
        if options.seed is not None:
            options = replace(options, seed=(options.seed + index) % 2**64)
        self._ends = frozenset(plan.tokenizer.end_ids)
        if plan.ignore_eos:
            never = dict.fromkeys(self._ends, -math.inf)
            options = replace(options, logit_bias={**options.logit_bias, **never})
        self._plan = plan
        self._sampler = Sampler(options, vocabulary=plan.tokenizer)
        self._sampler.reset(plan.tokens)
        self._stop = StopTexts(plan.stop)
        self._parser = plan.new_parser()
        self._decoder = StreamDecoder(
            plan.tokenizer, skip_special=not (plan.special or self._parser.sees_special)
        )
        self._masks = None if plan.new_masks is None else plan.new_masks()
        # tokens that no piece has told of yet
        self._new_ids: list[int] = []
        self._new_logprobs: list[TokenLogprob] = []
        self.index = index
        self.work = Work(list(plan.tokens), sequence, plan.new_speculation())
        self.work.n_left = plan.max_tokens
        self.n_prompt = len(plan.tokens)
        self.n_chosen = 0
        self.n_reasoning = 0
        self.begun = self.first = self.last = 0.0
        self.is_over = False
        self.slot: int | None = None

    @property
    def plan(self) -> TextPlan:
        """What it was made from."""
        return self._plan

    @property
    def seed(self) -> int:
        """The seed of its random numbers."""
        return self._sampler.seed

    def begin(self) -> list[Event]:
        """What is to be said before anything is computed: it is over if no token is wanted."""
        if self._plan.max_tokens == 0:
            return [self._finished("length")]
        return []

    def choose(self, logits: NDArray[np.float32]) -> list[Event]:
        """Chooses the next token.

        Args:
            logits: float32 `(n_vocab,)`.

        Raises:
            FormatError: no token is possible.
        """
        allowed = None if self._masks is None else self._masks.allowed()
        token = self._sampler.sample(logits if allowed is None else _masked(logits, allowed))
        self._sampler.accept(token)
        self.n_chosen += 1
        self.last = time.perf_counter()
        if self.n_chosen == 1:
            self.first = self.last
        self._new_ids.append(token)
        if self._plan.logprobs is not None:
            top = top_logprobs(logits, self._plan.logprobs) if self._plan.logprobs else ()
            logprob = TokenLogprob(token=token, logprob=log_probability(logits, token), top=top)
            self._new_logprobs.append(logprob)
        events = self._said(token)
        if self._parser.is_reasoning:
            self.n_reasoning += 1
        return events

    def _said(self, token: int) -> list[Event]:
        """Events of a token."""
        plan = self._plan
        reason: FinishReason | None = None
        text = ""
        if token in self._ends:
            reason = "stop"
            text = self._parser.end_text(plan.tokenizer.text_of(token))
        else:
            self.work.tokens.append(token)
            text = self._stop.push(self._decoder.push(token))
            if self._masks is not None:
                self._masks.accept(token)
            if self._stop.found is not None or (self._masks is not None and self._masks.must_stop):
                reason = "stop"
            elif self.n_chosen == plan.max_tokens or len(self.work.tokens) > plan.n_ctx:
                reason = "length"
        if plan.max_tokens is not None:
            self.work.n_left = plan.max_tokens - self.n_chosen
        if reason is not None and self._stop.found is None:
            text = self._stop.push(self._decoder.flush()) + self._stop.flush() + text
        pieces = self._parser.feed(text, self.index)
        if reason is not None:
            pieces += self._parser.finish(self.index)
        if not pieces and (reason is not None or plan.logprobs is not None) and self._new_logprobs:
            pieces = [Piece(index=self.index, kind="content", text="")]
        events: list[Event] = []
        for i, piece in enumerate(pieces):
            if i == 0:
                piece = replace(piece, tokens=tuple(self._new_logprobs), ids=tuple(self._new_ids))
                self._new_logprobs, self._new_ids = [], []
            events.append(piece)
        if reason is not None:
            if reason == "stop" and self._parser.n_calls:
                reason = "tool_calls"
            events.append(self._finished(reason))
        return events

    def _finished(self, reason: FinishReason) -> Finished:
        self.is_over = True
        return Finished(
            index=self.index,
            reason=reason,
            stop_text=self._stop.found,
            n_tokens=self.n_chosen,
            seed=self.seed,
        )


def _masked(logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Logits with `-inf` for tokens that may not come; a vocabulary may be shorter than a model's output."""
    found = np.full_like(logits, -np.inf)
    n = min(len(logits), len(allowed))
    np.copyto(found[:n], logits[:n], where=allowed[:n])
    return found
