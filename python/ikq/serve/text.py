"""`Text`: one text that is being generated, from logits to events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ikq.grammar import Constraint
from ikq.inference.lora import Scales
from ikq.inference.sequence import Sequence
from ikq.inference.steps import Work
from ikq.sampling import Candidates, Sampler, SamplingOptions, Scores, log_probability, top_logprobs
from ikq.serve.ahead import Ahead
from ikq.serve.events import Event, Finished, FinishReason, Piece, TokenLogprob
from ikq.serve.replies import PlainParser, ReplyParser
from ikq.speculation.text import TextSpeculation
from ikq.text.stopping import StopTexts
from ikq.tokenizer import StreamDecoder, Tokenizer

__all__ = ["Text", "TextPlan"]


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """A request made ready: all that can be known before anything is computed.

    Attributes:
        tokens: The prompt.
        n_ctx: The largest number of tokens of a text.
        tokenizer: See there.
        sampling: How tokens are chosen.
        max_tokens: The largest number of tokens to choose; `None`: no limit.
        stop: Texts that end it.
        logprobs: As in requests.
        ignore_eos: Never choose a token that ends the text.
        special: Show control tokens.
        new_parser: Makes what tells reasoning and tool calls from content.
        constraint: What the text must be; every text has a clone of it.
        new_speculation: Makes what drafts it.
        shares: Whether it may reuse the KV caches of other texts, and they its own.
        slot: The slot that it shall have.
        lora: Scales of the model's adapters; `None`: those that the model has when it begins.
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
    constraint: Constraint | None = None
    new_speculation: Callable[[], TextSpeculation | None] = lambda: None
    shares: bool = True
    slot: int | None = None
    lora: Scales | None = None


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
        self._constraint = None if plan.constraint is None else Ahead(plan.constraint.clone())
        self._sampler = Sampler(options, vocabulary=plan.tokenizer, constraint=self._constraint)
        self._sampler.reset(plan.tokens)
        self._stop = StopTexts(plan.stop)
        self._parser = plan.new_parser()
        self._decoder = StreamDecoder(
            plan.tokenizer, skip_special=not (plan.special or self._parser.sees_special)
        )
        # tokens that no piece has told of yet
        self._new_ids: list[int] = []
        self._new_logprobs: list[TokenLogprob] = []
        self.index = index
        speculation = plan.new_speculation()
        if speculation is not None and self._constraint is not None:
            speculation.n_allowed = self._constraint.n_allowed
        self.work = Work(list(plan.tokens), sequence, speculation)
        if sequence is None:
            self.work.lora = plan.lora
        self.work.n_left = plan.max_tokens
        self.work.n_best = self._sampler.n_best if plan.logprobs is None else None
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

    def choose(self, logits: Scores) -> list[Event]:
        """Chooses the next token.

        Args:
            logits: Those that its work needs.

        Raises:
            FormatError: no token is possible.
        """
        token = self._sampler.sample(logits)
        self._sampler.accept(token)
        self.n_chosen += 1
        self.last = time.perf_counter()
        if self.n_chosen == 1:
            self.first = self.last
        self._new_ids.append(token)
        if self._plan.logprobs is not None:
            assert not isinstance(logits, Candidates), "all were asked for"
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
        else:
            self.work.tokens.append(token)
            text = self._stop.push(self._decoder.push(token))
            must_stop = self._constraint is not None and self._constraint.must_stop
            if self._stop.found is not None or must_stop:
                reason = "stop"
            elif self.n_chosen == plan.max_tokens or len(self.work.tokens) > plan.n_ctx:
                reason = "length"
        if plan.max_tokens is not None:
            self.work.n_left = plan.max_tokens - self.n_chosen
        if reason is not None and self._stop.found is None:
            text += self._stop.push(self._decoder.flush()) + self._stop.flush()
        pieces = self._parser.feed(text, self.index)
        if reason is not None:
            is_cut = reason == "length" or self._stop.found is not None
            pieces += self._parser.finish(self.index, is_cut=is_cut)
        if not pieces and (reason is not None or plan.logprobs is not None) and self._new_logprobs:
            pieces = [Piece(index=self.index, kind="content", text="")]
        events: list[Event] = []
        for i, piece in enumerate(pieces):
            if i == 0:
                piece = replace(piece, tokens=tuple(self._new_logprobs), ids=tuple(self._new_ids))
                self._new_logprobs, self._new_ids = [], []
            events.append(piece)
        if reason is not None:
            if reason == "stop" and self._parser.n_calls and not self._parser.is_call_open:
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
