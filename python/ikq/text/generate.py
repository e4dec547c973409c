"""`Generation`: text from a model, piece by piece."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypedDict

from ikq.errors import ShapeError, UnsupportedError
from ikq.inference.batching import Work
from ikq.sampling import Candidates, Sampler, SamplingOptions, Scores, log_probability, top_logprobs
from ikq.text.stopping import StopTexts
from ikq.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from ikq.grammar import Constraint
    from ikq.inference.sequence import Sequence
    from ikq.speculation.text import TextSpeculation
    from ikq.text.model import TextModel
    from ikq.text.reasoning import ReasoningSplitter

__all__ = ["Generation", "Limits", "Piece", "Reason", "Stats"]

Reason: TypeAlias = Literal["end", "stop", "length", "context"]
"""Why a text ends: the model ended it; a stop text came; `max_tokens`; the context is full."""

Progress: TypeAlias = Callable[[int, int], object]
"""Takes the number of tokens done, and of all."""


class Piece(NamedTuple):
    """The text that a token adds.

    Attributes:
        text: New text. May be empty: half a character, or what may become a stop text, is held back.
        token: The token; `None` for a second piece of the same token.
        reasoning: The text belongs to the thoughts before the answer of a chat, or is a mark around them.
        logprob: Log of the probability that the model gives the token before any sampler, if asked for.
        top_logprobs: The most probable tokens with the same, as many as asked for.
        reason: Why the text ends here; `None` before the last piece.
    """

    text: str
    token: int | None
    reasoning: bool = False
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    reason: Reason | None = None


@dataclass
class Stats:
    """Tokens and seconds of a generation.

    Attributes:
        n_prompt: Tokens of the prompt that were computed.
        n_reused: Tokens of the prompt that a sequence held already.
        n_generated: Tokens chosen.
        prompt_seconds: Time of the steps that computed the prompt, whatever else they computed.
        eval_seconds: Time of the steps for the tokens after the first, whose logits the prompt gives.
        sample_seconds: Time for choosing.
        n_drafted: Tokens that were drafted and compared with what was chosen.
        n_accepted: Those of them that were chosen.
    """

    n_prompt: int = 0
    n_reused: int = 0
    n_generated: int = 0
    prompt_seconds: float = 0.0
    eval_seconds: float = 0.0
    sample_seconds: float = 0.0
    n_drafted: int = 0
    n_accepted: int = 0

    def add(self, other: Stats) -> None:
        """Adds the numbers of another generation."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Limits(TypedDict, total=False):
    """Keywords of `Model.generate` beside those of sampling, all optional."""

    max_tokens: int | None
    """The largest number of tokens to generate; `None`: until the model ends or the context is full."""
    stop: str | Iterable[str]
    """Texts that end the generation; they are not part of its text."""
    logprobs: int | None
    """Give the logarithm of each token's probability, and those of this many most probable tokens."""
    special: bool
    """Show control tokens in the text."""
    ignore_eos: bool
    """Never choose a token that ends the text."""
    context_shift: bool
    """When the context is full, drop half of the tokens after the first `n_keep` instead of ending (not for
    models with recurrent layers)."""
    n_keep: int
    """The number of tokens that `context_shift` keeps; -1: all of the prompt."""
    progress: Progress | bool
    """Called with tokens done and in all while the prompt is computed; `True`: a bar."""
    sequence: Sequence | None
    """A sequence of the model to work on: what it holds of the prompt is not computed again, and at the end
    it holds all but the last token. Until then it belongs to the generation. `None`: one that the model keeps
    for texts with the same beginning."""


class Generation(Iterator[Piece]):
    """An iterator of pieces; made by `Model.generate` and `Model.chat`.

    The model computes when a piece is asked for. Several generations of one model are computed together,
    whether one thread takes their pieces by turns or each has a thread: a step has the next token of each.
    Their texts are the same as one by one.

    Attributes:
        stats: Tokens and seconds so far.
        reason: Why the text ended; `None` before that.
        is_over: Nothing will be computed any more.
        tokens: Tokens of the prompt and those generated, without what a context shift has dropped.
        seed: The seed of the random numbers, also where none was given.
    """

    def __init__(
        self,
        model: TextModel,
        tokens: list[int],
        *,
        options: SamplingOptions,
        tokenizer: Tokenizer | None,
        splitter: ReasoningSplitter | None = None,
        max_tokens: int | None = None,
        stop: str | Iterable[str] = (),
        logprobs: int | None = None,
        special: bool = False,
        ignore_eos: bool = False,
        context_shift: bool = False,
        n_keep: int = 0,
        progress: Progress | bool = False,
        sequence: Sequence | None = None,
        speculation: TextSpeculation | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        if not tokens:
            raise ShapeError("the prompt is empty")
        if len(tokens) > model.n_ctx:
            raise ShapeError(
                f"the prompt has {len(tokens)} tokens, the context holds {model.n_ctx}; "
                "shorten it or load the model with a larger n_ctx (-c)"
            )
        if max_tokens is not None and max_tokens < 0:
            raise ValueError(f"max_tokens={max_tokens}: expected 0 or more, or None for no limit")
        if logprobs is not None and logprobs < 0:
            raise ValueError(f"logprobs={logprobs}: expected 0 (of the token only) or more")
        self._model = model
        self._tokenizer = tokenizer
        self._ends = frozenset(tokenizer.end_ids) if tokenizer is not None else frozenset()
        if ignore_eos:
            never = dict.fromkeys(self._ends, -math.inf)
            options = replace(options, logit_bias={**options.logit_bias, **never})
        self._constraint = constraint
        self._sampler = Sampler(options, vocabulary=tokenizer, constraint=constraint)
        self._sampler.reset(tokens)
        self._stop = StopTexts(stop)
        self._decoder = _decoder(tokenizer, special=special)
        self._max_tokens = max_tokens
        self._logprobs = logprobs
        self._shifts = context_shift
        self._n_keep = len(tokens) if n_keep < 0 else n_keep
        self._progress = progress_of(progress)
        self._splitter = splitter
        self._waiting: deque[Piece] = deque()
        self.tokens: list[int] = list(tokens)
        self.stats = Stats()
        self.reason: Reason | None = None
        self.seed: int = self._sampler.seed
        self._is_prompt_done = False
        self.is_over = False
        self._batcher = model._batcher
        self._speculation = speculation
        if speculation is not None and constraint is not None:
            speculation.n_allowed = constraint.n_allowed
        self._work = Work(self.tokens, sequence, speculation)
        self._work.n_left = max_tokens
        self._work.n_best = self._sampler.n_best if logprobs is None else None
        self._batcher.watch(self, self._work)
        if sequence is not None:
            sequence._lend(self)

    def text(self) -> str:
        """All text from here on; runs to the end."""
        return "".join(piece.text for piece in self)

    def __iter__(self) -> Generation:
        return self

    def close(self) -> None:
        """Ends the text here. What was computed for it may be reused by a text with the same beginning."""
        self.is_over = True
        self._waiting.clear()
        self._batcher.leave(self._work)

    def __next__(self) -> Piece:
        if self._waiting:
            return self._waiting.popleft()
        if self.is_over:
            raise StopIteration
        logits = self._logits()
        goes_on = False
        try:
            if self._max_tokens == 0:
                self.reason = "length"
            else:
                self._choose(logits)
            goes_on = self.reason is None
        finally:
            self._batcher.chosen(self._work, goes_on=goes_on)
            if self.reason is not None:
                self.is_over = True
                self._batcher.leave(self._work)
            if self._speculation is not None:
                self.stats.n_drafted = self._speculation.n_drafted
                self.stats.n_accepted = self._speculation.n_accepted
        if not self._waiting:
            raise StopIteration
        return self._waiting.popleft()

    def _choose(self, logits: Scores) -> None:
        """Chooses the next token; its pieces wait."""
        start = time.perf_counter()
        token = self._sampler.sample(logits)
        self._sampler.accept(token)
        self.stats.n_generated += 1
        if self._max_tokens is not None:
            self._work.n_left = self._max_tokens - self.stats.n_generated
        self.stats.sample_seconds += time.perf_counter() - start
        self._waiting.extend(self._pieces(token, logits))

    def _pieces(self, token: int, logits: Scores) -> Iterator[Piece]:
        text = ""
        reason: Reason | None = None
        if token in self._ends:
            reason = "end"
        else:
            self.tokens.append(token)
            text = self._stop.push(self._decoder.push(token))
            if self._stop.found is not None:
                reason = "stop"
            elif self._constraint is not None and self._constraint.must_stop:
                reason = "end"
            elif self._max_tokens is not None and self.stats.n_generated >= self._max_tokens:
                reason = "length"
            elif len(self.tokens) > self._model.n_ctx and not self._make_room():
                reason = "context"
        if reason not in (None, "stop"):
            text += self._stop.push(self._decoder.flush()) + self._stop.flush()
        self.reason = reason
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if self._logprobs is not None:
            assert not isinstance(logits, Candidates), "all were asked for"
            logprob = log_probability(logits, token)
            top = top_logprobs(logits, self._logprobs) if self._logprobs else ()
        parts = self._split(text)
        for i, (part, reasoning) in enumerate(parts):
            ends = reason if i == len(parts) - 1 else None
            if i == 0:
                yield Piece(part, token, reasoning, logprob, top, ends)
            else:
                yield Piece(part, None, reasoning, reason=ends)

    def _split(self, text: str) -> list[tuple[str, bool]]:
        """Text with whether it is reasoning; at least one part."""
        if self._splitter is None:
            return [(text, False)]
        parts = self._splitter.push(text)
        if self.reason is not None:
            parts += self._splitter.flush()
        return [(part.text, part.reasoning) for part in parts] or [("", False)]

    def _logits(self) -> Scores:
        """Logits after the last token."""
        logits = self._batcher.logits(self._work, None if self._is_prompt_done else self._progress)
        if self._is_prompt_done:
            self.stats.eval_seconds = self._work.seconds - self.stats.prompt_seconds
        else:
            self.stats.n_reused = self._work.n_reused
            self.stats.n_prompt = len(self.tokens) - self._work.n_reused
            self.stats.prompt_seconds = self._work.seconds
            self._is_prompt_done = True
        return logits

    def _make_room(self) -> bool:
        """Forgets half of what comes after the tokens to keep; whether that was possible."""
        if not self._shifts:
            return False
        # the last token is not in the sequence yet
        n_held = len(self.tokens) - 1
        n_keep = min(self._n_keep, n_held - 1)
        try:
            self._batcher.shift(self._work, n_keep, max(1, (n_held - n_keep) // 2))
        except UnsupportedError:
            return False
        return True


def progress_of(progress: Progress | bool) -> Progress | None:
    """What shows progress: the caller's function, a bar, or nothing."""
    if isinstance(progress, bool):
        return _bar() if progress else None
    return progress


def _bar() -> Progress:
    """A progress bar for a prompt, drawn as notebooks and terminals can."""
    from tqdm.auto import tqdm

    bar = tqdm(unit="token", desc="prompt", leave=False)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


class _Decoder(Protocol):
    def push(self, token: int, /) -> str: ...

    def flush(self) -> str: ...


class _Silent:
    """Decodes nothing: the file has no tokenizer."""

    def push(self, token: int, /) -> str:
        return ""

    def flush(self) -> str:
        return ""


def _decoder(tokenizer: Tokenizer | None, *, special: bool) -> _Decoder:
    if tokenizer is None:
        return _Silent()
    return StreamDecoder(tokenizer, skip_special=not special)
