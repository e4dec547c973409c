"""How far the KL divergence from a compact base file is from that of the full form, and how large both are.

    python benches/compact_kld.py base.gguf q1.gguf q2.gguf ... --text heldout.txt [--windows 147]

Without models only distributions over a synthetic vocabulary of 32,000 tokens are compared: ranks with a power law
whose exponent differs from position to position, and noise on the logits for the other model. Exit code 1 if a
divergence is more than 2 % off or a record larger than 3 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import ikq
from ikq.evaluate import (
    BaseFile,
    CompactBase,
    base_writer,
    compact_writer,
    cut,
    log_softmax,
    measure_divergence,
    measure_perplexity,
    text_tokens,
)  # fmt: skip
from ikq.evaluate.base_file import full_row_bytes
from ikq.evaluate.compact import kept, record_type

LIMIT, SHARE = 0.02, 0.03


def shown(name: str, full: float, compact: float, error: float, least: float) -> bool:
    off = compact / full - 1
    print(
        f"| {name} | {full:.6f} | {compact:.6f} | {off:+.2%} | {error / full:.2%} | {least / full:.1%} |",
        flush=True,
    )
    return abs(off) <= LIMIT


def share(n_vocab: int) -> float:
    return record_type(n_vocab, *kept(n_vocab)).itemsize / full_row_bytes(n_vocab)


def with_models(base: Path, others: list[Path], text: Path, n: int, folder: Path) -> Iterator[bool]:
    writers = {folder / "full": base_writer, folder / "compact": compact_writer}
    with ikq.Model.load(base, n_ctx=512) as model:
        windows = cut(text_tokens(model.tokenizer, text.read_text()), chunks=n)
        n_vocab = model.spec.n_vocab
        for path, writer in writers.items():
            with writer(path, windows, n_vocab) as sink:
                for _ in measure_perplexity(model, windows, sink):
                    pass
    print(f"\n{windows.n} windows of 512, vocabulary {n_vocab}, records of {share(n_vocab):.2%}")
    yield share(n_vocab) <= SHARE
    for path in others:
        with ikq.Model.load(path, n_ctx=512) as model:
            *_, full = measure_divergence(model, BaseFile(folder / "full"))
            *_, compact = measure_divergence(model, CompactBase(folder / "compact"))
        yield shown(path.stem, full.mean.value, compact.mean.value, compact.form_error, compact.least_mean)


def synthetic(folder: Path, n_vocab: int = 32_000, n_windows: int = 8, n_ctx: int = 256) -> Iterator[bool]:
    rng = np.random.default_rng(0)
    windows = cut(rng.integers(0, n_vocab, n_windows * n_ctx).astype(np.int32), n_ctx=n_ctx)
    n = len(windows[0].targets)
    noises = (0.01, 0.03, 0.1, 0.3, 1.0)
    found = {noise: np.zeros(4) for noise in noises}
    base = []
    full, compact = folder / "full", folder / "compact"
    with base_writer(full, windows, n_vocab) as a, compact_writer(compact, windows, n_vocab) as b:
        for i in range(n_windows):
            # as float32 logits come from a model
            rank = np.argsort(rng.random((n, n_vocab), np.float32), axis=1).astype(np.float32)
            logits = -rng.uniform(0.6, 2.0, (n, 1)).astype(np.float32) * np.log1p(rank)
            base.append(log_softmax(logits + rng.normal(0, 0.5, (n, n_vocab)).astype(np.float32)))
            for sink in (a, b):
                sink.write(base[i], windows[i].targets)
    files = BaseFile(full), CompactBase(compact)
    for i in range(n_windows):
        for noise in noises:
            q = log_softmax(base[i] + rng.normal(0, noise, base[i].shape).astype(np.float32))
            exact, estimated = (f.compare(i, slice(0, n), q) for f in files)
            found[noise] += (
                exact.divergence.sum(), estimated.divergence.sum(), estimated.variance.sum(), estimated.least.sum()
            )  # fmt: skip
    print(f"\n{n_windows * n} positions, synthetic vocabulary {n_vocab}, records of {share(n_vocab):.2%}")
    yield share(n_vocab) <= SHARE
    for noise, (exact_sum, estimate, variance, least) in found.items():
        yield shown(
            f"noise {noise}", *(x / n / n_windows for x in (exact_sum, estimate, variance**0.5, least))
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, help="the base, then what is measured")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=-1)
    args = parser.parse_args()
    print(
        "| model | KLD | compact | off by | stated error | lower bound |\n| --- | --: | --: | --: | --: | --: |"
    )
    with tempfile.TemporaryDirectory() as folder:
        held = list(synthetic(Path(folder)))
        if args.models:
            held += with_models(args.models[0], args.models[1:], args.text, args.windows, Path(folder))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
