"""Measuring speed: `bench` and `sweep`, which the verbs `bench` and `sweep-bench` print."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ikq.errors import UnsupportedError
from ikq.inference.model import Model
from ikq.inference.sequence import Sequence

__all__ = ["SweepRow", "Timings", "Workload", "bench", "sweep"]

_WARM_UP_SECONDS = 0.3


class Workload(NamedTuple):
    """What is timed.

    Attributes:
        n_prompt: Tokens computed in batches.
        n_gen: Tokens computed one by one after them.
        depth: Tokens that the cache holds before, not timed.
        n_parallel: Sequences that do all this at once, in common steps, each with tokens of its own.
    """

    n_prompt: int
    n_gen: int
    depth: int = 0
    n_parallel: int = 1

    @property
    def name(self) -> str:
        """As llama-bench calls it: `pp512`, `tg128`, `pp512+tg128`, `tg128@d4096`."""
        parts = [f"{kind}{n}" for kind, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        return "+".join(parts) + (f"@d{self.depth}" if self.depth else "")

    @property
    def n_tokens(self) -> int:
        """Tokens of a sequence that are timed."""
        return self.n_prompt + self.n_gen


class Timings(NamedTuple):
    """Seconds of each repetition.

    Attributes:
        workload: What was timed.
        seconds: One per repetition.
    """

    workload: Workload
    seconds: tuple[float, ...]

    @property
    def speeds(self) -> tuple[float, ...]:
        """Tokens of all sequences per second of each repetition."""
        n_tokens = self.workload.n_tokens * self.workload.n_parallel
        return tuple(n_tokens / s for s in self.seconds)

    @property
    def median(self) -> float:
        """Median of the speeds."""
        return statistics.median(self.speeds)

    @property
    def deviation(self) -> float:
        """Standard deviation of the speeds; 0 for a single one."""
        return statistics.stdev(self.speeds) if len(self.seconds) > 1 else 0.0


class SweepRow(NamedTuple):
    """Times at a depth.

    Attributes:
        pp: Tokens of the prompt's part.
        tg: Tokens generated.
        n_kv: Tokens that the cache held before.
        t_pp: Seconds for the part of the prompt.
        t_tg: Seconds for the generated tokens.
    """

    pp: int
    tg: int
    n_kv: int
    t_pp: float
    t_tg: float

    @property
    def s_pp(self) -> float:
        """Tokens of the prompt per second."""
        return self.pp / self.t_pp

    @property
    def s_tg(self) -> float:
        """Generated tokens per second; 0 if none."""
        return self.tg / self.t_tg if self.tg else 0.0


def bench(model: Model, workload: Workload, *, repetitions: int = 5, warm_up: bool = True) -> Timings:
    """Times a workload on random tokens, the same ones in each repetition.

    Before that it is run for at least 0.3 s, so that pages, caches, threads and clocks are as in use.

    Raises:
        ShapeError: the context does not hold the workload.
    """
    n = workload.depth + workload.n_tokens
    with ExitStack() as stack:
        if workload.n_parallel > 1:
            tokens = _random_tokens(model, workload.n_parallel * n).reshape(workload.n_parallel, n)
            sequences = [stack.enter_context(model.new_sequence()) for _ in tokens]
            once = partial(_run_parallel, model, workload, tokens, sequences)
        else:
            once = partial(_run, model, workload, _random_tokens(model, n))
        if warm_up:
            start = time.perf_counter()
            while True:
                once()
                if time.perf_counter() - start >= _WARM_UP_SECONDS:
                    break
        return Timings(workload, tuple(once() for _ in range(repetitions)))


def _run(model: Model, workload: Workload, tokens: NDArray[np.int64]) -> float:
    _go_to(model, workload.depth, tokens)
    start = time.perf_counter()
    place = workload.depth
    if workload.n_prompt:
        model.eval(tokens[place : place + workload.n_prompt], want="last")
        place += workload.n_prompt
    for i in range(place, place + workload.n_gen):
        model.eval(tokens[i : i + 1], want="last")
    return time.perf_counter() - start


def _run_parallel(
    model: Model, workload: Workload, tokens: NDArray[np.int64], sequences: list[Sequence]
) -> float:
    """The same for several sequences in common steps; a row of tokens for each."""
    place = workload.depth
    for sequence, row in zip(sequences, tokens, strict=True):
        _rewind(sequence, place)
        if (n_past := sequence.n_past) < place:
            model.step([(sequence, row[n_past:place], "none")])
    start = time.perf_counter()
    widths = ([workload.n_prompt] if workload.n_prompt else []) + [1] * workload.n_gen
    for width in widths:
        parts = tokens[:, place : place + width]
        model.step([(s, part, "last") for s, part in zip(sequences, parts, strict=True)])
        place += width
    return time.perf_counter() - start


def sweep(
    model: Model, *, n_prompt: int, n_gen: int, repetitions: int = 1, warm_up: bool = True
) -> Iterator[SweepRow]:
    """Times a part of a prompt, and generation, at every depth that the context has room for.

    Args:
        model: The model.
        n_prompt: Tokens of each part.
        n_gen: Tokens generated at each depth; they are forgotten again.
        repetitions: The median of this many is given.
        warm_up: Compute both once before.
    """
    tokens = _random_tokens(model, model.n_ctx)
    n_most = max(n_prompt, n_gen)
    if warm_up and n_most <= model.n_ctx:
        bench(model, Workload(n_prompt, min(n_gen, 16)), repetitions=0)
    for n_kv in range(0, model.n_ctx - n_most + 1, n_prompt):
        generating = [_run(model, Workload(0, n_gen, n_kv), tokens) for _ in range(repetitions)]
        reading = [_run(model, Workload(n_prompt, 0, n_kv), tokens) for _ in range(repetitions)]
        t_pp, t_tg = statistics.median(reading), statistics.median(generating)
        yield SweepRow(n_prompt, n_gen, n_kv, t_pp, t_tg)


def _go_to(model: Model, depth: int, tokens: NDArray[np.int64]) -> None:
    """Makes the model's own sequence hold the first `depth` tokens."""
    _rewind(model, depth)
    if model.n_past < depth:
        model.eval(tokens[model.n_past : depth], want="none")


def _rewind(held: Model | Sequence, depth: int) -> None:
    """Goes back to `depth`, or to the beginning where that is not possible."""
    try:
        held.truncate(depth)
    except UnsupportedError:  # recurrent layers, sliding windows
        held.truncate(0)


def _random_tokens(model: Model, n: int) -> NDArray[np.int64]:
    model.truncate(0)
    return np.random.default_rng(0).integers(0, model.spec.n_vocab, n)
