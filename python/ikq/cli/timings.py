"""The lines about time at the end of a run, in the shape that users of llama.cpp (and their scripts) know."""

from __future__ import annotations

import sys

from ikq.text.generate import Stats

__all__ = ["print_timings"]


def print_timings(load_seconds: float, stats: Stats, total_seconds: float) -> None:
    """Prints them on standard error."""
    n_eval = max(0, stats.n_generated - 1)
    lines = [
        _line("load", load_seconds, None, ""),
        _line("sample", stats.sample_seconds, stats.n_generated, "runs"),
        _line("prompt eval", stats.prompt_seconds, stats.n_prompt, "tokens"),
        _line("eval", stats.eval_seconds, n_eval, "runs"),
        _line("total", total_seconds, stats.n_prompt + n_eval, "tokens", speed=False),
    ]
    if stats.n_drafted:
        rate = stats.n_accepted / stats.n_drafted
        counts = f"({stats.n_accepted:5d} accepted / {stats.n_drafted:5d} drafted)"
        lines.append(f"ikq: draft acceptance rate = {rate:.5f} {counts}")
    print("\n" + "\n".join(lines), file=sys.stderr, flush=True)


def _line(name: str, seconds: float, n: int | None, unit: str, *, speed: bool = True) -> str:
    ms = 1000 * seconds
    line = f"ikq: {name:>11} time = {ms:10.2f} ms"
    if n is None:
        return line
    line += f" / {n:5d} {unit:<6}"
    if speed and n and seconds > 0:
        line += f" ({ms / n:8.2f} ms per token, {n / seconds:8.2f} tokens per second)"
    return line
