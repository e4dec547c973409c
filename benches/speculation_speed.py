"""Tokens per second with drafts over those without, in the same run, by turns.

    python benches/speculation_speed.py -m model.gguf --lookup --repeat 7
    python benches/speculation_speed.py -m model.gguf --draft-model small.gguf --mtp -p prompt.txt

Two texts: greedy ones, which are easy to draft, and sampled ones of a high temperature, which nothing drafts: those
show what trying costs (bound: 0.98). Each of `--repeat` rounds has one text per way to draft, the ways in another order
each time; speeds and their ratios to the same round's text without drafts are medians. The time of the prompt is left
out. Texts are compared: they must be the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import ikq

TEXTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
}
PROMPT = [(7919 * i) % 1000 for i in range(64)]


def measured(
    model: ikq.Model, prompt: str | list[int], options: dict[str, Any]
) -> tuple[float, list[int], ikq.text.generate.Stats]:
    """Tokens per second behind the prompt, the tokens, and what was drafted."""
    generation = model.generate(prompt, ignore_eos=True, **options)
    next(generation)
    start = time.perf_counter()
    n = sum(piece.token is not None for piece in generation)
    return n / (time.perf_counter() - start), generation.tokens, generation.stats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-p", "--prompt", type=Path, help="a text file; a few token ids unless given")
    parser.add_argument("-n", type=int, default=256, help="tokens of a text")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--draft-model")
    parser.add_argument("--lookup", action="store_true")
    parser.add_argument("--mtp", action="store_true")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    ways: dict[str, dict[str, Any]] = {"plain": {}}
    if args.lookup:
        ways["lookup"] = {"lookup": True}
    if args.mtp:
        ways["mtp"] = {"mtp": True}
    prompt = PROMPT if args.prompt is None else args.prompt.read_text()
    with ikq.Model.load(args.model, n_ctx=4096, n_threads=args.threads) as model:
        if args.draft_model:
            ways["draft model"] = {"draft_model": args.draft_model}
        for name, options in TEXTS.items():
            speeds: dict[str, list[float]] = {way: [] for way in ways}
            counts = dict.fromkeys(ways, (0, 0))
            for seed in range(args.repeat):
                texts = []
                order = list(ways.items())
                for way, drafts in order[seed % len(order) :] + order[: seed % len(order)]:
                    speed, text, stats = measured(
                        model, prompt, options | drafts | {"max_tokens": args.n, "seed": seed}
                    )
                    speeds[way].append(speed)
                    texts.append(text)
                    counts[way] = (counts[way][0] + stats.n_drafted, counts[way][1] + stats.n_accepted)
                assert all(text == texts[0] for text in texts), "drafts have changed a text"
            for way in ways:
                speed, (n_drafted, n_accepted) = statistics.median(speeds[way]), counts[way]
                ratios = [
                    with_drafts / plain
                    for with_drafts, plain in zip(speeds[way], speeds["plain"], strict=True)
                ]
                rate = f"{n_accepted / n_drafted:.2f} of {n_drafted}" if n_drafted else "nothing drafted"
                print(
                    f"{name:8} {way:12} {speed:8.2f} tokens/s  {statistics.median(ratios):5.3f}  accepted {rate}"
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
