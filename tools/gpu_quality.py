"""Statistics of activations that are collected on a GPU, and perplexity and KL divergence that are measured there, beside the CPU's.
Groups of `gpu_check.py`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import SHAPES, Shape, seed, write_model
from numpy.typing import NDArray

import ikq
from ikq.evaluate import ModelBase, cut, measure_divergence, measure_perplexity

Row = dict[str, Any]

CARD = Shape(2, 1024, 16, 4, 64, 32, 4, 512, 4096)
"""The shape of the models on a real card: what a CPU computes in floats in a few seconds."""

# A layer is a chain of some ten products, norms and sums. Each of their results is a sum of up to 2^9 terms in an order of its own,
# off by sqrt(2^9) half units of 2^-24 or so; tiles leave out 2^-19 of a product of floats at most. Errors of layers add up.
FLOATS = 10 * (2**4.5 * 2.0**-24 + 2.0**-19)
FLOATS_OF_CPU: dict[str, Any] = {"compute": "f32", "cache_type_k": "f32", "cache_type_v": "f32"}
FLOATS_OF_GPU: dict[str, Any] = {
    "devices": ["CPU", "CUDA0"], "n_gpu_layers": 99, "cache_type_k": "f32", "cache_type_v": "f32",
}  # fmt: skip


def shape_and_tokens(args: argparse.Namespace) -> tuple[Shape, list[int]]:
    """The model's shape, and a text of random tokens."""
    s = SHAPES["tiny"] if args.emulated else CARD
    n = 24 if args.emulated else 256
    return s, [int(i) for i in np.random.default_rng(seed()).integers(0, s.n_vocab, n)]


class Collected:
    """Statistics of a text, and its logits with and without a collector."""

    def __init__(self, file: Path, ids: list[int], options: dict[str, Any], **collecting: Any) -> None:
        with ikq.Model.load(file, n_ctx=len(ids), **options) as model:
            plain = model.logits(ids)
            with model.collect_activations(**collecting) as collector:
                watched = model.logits(ids)
            self.statistics = collector.statistics()
            self.devices = {p.device for p in model.explain().placement}
        self.shows = not np.array_equal(plain, watched)

    def counts(self, tensor: str) -> NDArray[np.float64]:
        """Tokens of each expert."""
        return self.statistics[tensor].counts


def sums_apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of sums of squares, relative to all of them: at most 2 |x - y| / |y| of what is squared, by Cauchy and Schwarz."""
    return float(np.abs(a - b).sum() / max(b.sum(), np.finfo(np.float64).tiny))


def compared(name: str, found: Collected, want: Collected, n_layer: int, n_choices: int) -> Iterator[Row]:
    """Tensors, counts and sums beside the CPU's, in floats.

    Of two experts that are as good, a device may choose the other one: in one of a thousand choices at most, as scores are off by
    far less than that of their spread. Such a token can be another one from there on.
    """
    yield {
        "name": f"{name}: the bits of logits without a collector",
        "ok": not found.shows and "CUDA0" in found.devices,
    }
    complete = list(found.statistics) == list(want.statistics) and len(want.statistics) > 0
    yield {"name": f"{name}: complete, {len(want.statistics)} tensors", "ok": complete}
    if not complete:
        return
    others = max(float(np.abs(found.counts(t) - want.counts(t)).sum()) / 2 for t in want.statistics)
    same_sums = all(found.counts(t).sum() == want.counts(t).sum() for t in want.statistics)
    ok = bool(same_sums and others <= n_choices // 1000)
    yield {
        "name": f"{name}: counts of tensors and experts",
        "ok": ok,
        "why": f"{others:.0f} choices are others",
    }
    error = max(sums_apart(found.statistics[t].sums, want.statistics[t].sums) for t in want.statistics)
    n_tokens = max(want.counts(t).max() for t in want.statistics)
    most = float(2 * FLOATS * n_layer + 2 * others / n_tokens)
    yield {"name": f"{name}: sums", "ok": error <= most, "error": error}


def statistics(args: argparse.Namespace) -> Iterator[Row]:
    """An imatrix's figures: of weights of floats, of all experts, and of codes that fused kernels multiply."""
    s, ids = shape_and_tokens(args)
    n_choices = len(ids) * s.n_layer * s.n_used
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "floats.gguf"
        write_model(file, s, "BF16", "BF16")
        for what, collecting in (("chosen experts", {}), ("all experts", {"all_experts": True})):
            found, want = (
                Collected(file, ids, options, **collecting) for options in (FLOATS_OF_GPU, FLOATS_OF_CPU)
            )
            yield from compared(f"statistics BF16, {what}", found, want, s.n_layer, n_choices)
            if collecting:
                experts = [found.counts(t) for t in found.statistics if "_exps." in t]
                whole = all(c.shape == (s.n_expert,) and (c == len(ids)).all() for c in experts)
                name = f"statistics BF16, {what}: each has every token"
                yield {"name": name, "ok": whole and len(experts) == 3 * s.n_layer}
        file = Path(folder) / "codes.gguf"
        write_model(file, s, "IQ4_KS")
        exact = Collected(file, ids, FLOATS_OF_CPU).statistics
        cpu = Collected(file, ids, {}).statistics
        places = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": 99}

        def apart(found: ikq.ActivationStatistics) -> float:
            # codes of 8 bits choose other experts for some tokens, on either device
            of_all = ((found[t].sums.sum(axis=0), exact[t].sums.sum(axis=0)) for t in exact)
            return max(sums_apart(a, b) for a, b in of_all)

        for how, options in (("fused", {}), ("separate", {"fused_up_gate": False})):
            got = Collected(file, ids, places | options)
            name = f"statistics IQ4_KS, {how}"
            yield {"name": f"{name}: the bits of logits without a collector", "ok": not got.shows}
            complete = list(got.statistics) == list(exact) and all(
                got.counts(t).shape == exact[t].counts.shape and got.counts(t).sum() == exact[t].counts.sum()
                for t in exact
            )
            yield {"name": f"{name}: complete, {len(exact)} tensors", "ok": complete}
            if complete:
                error = apart(got.statistics)
                yield {
                    "name": f"{name}: sums",
                    "ok": error <= 2 * apart(cpu) + 2 * FLOATS * s.n_layer,
                    "error": error,
                }


def most_of(x: NDArray[np.float64]) -> float:
    """The largest, but for one of a hundred: a token for which two experts are as good may be another one."""
    return float(np.sort(np.abs(x))[-1 - len(x) // 100])


def quality(args: argparse.Namespace) -> Iterator[Row]:
    """Perplexity, and KL divergence from the model in exact floats on the CPU: of weights of floats and of codes."""
    s, ids = shape_and_tokens(args)
    n_ctx = len(ids) // 2
    windows = cut(np.array(ids, np.int32), n_ctx=n_ctx)
    for type_name in ("BF16", "IQ4_KS"):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            file = Path(folder) / "model.gguf"
            floats = type_name == "BF16"
            write_model(file, s, type_name, "BF16" if floats else "Q8_0")
            of_gpu = FLOATS_OF_GPU if floats else {"devices": ["CPU", "CUDA0"], "n_gpu_layers": 99}
            with (
                ikq.Model.load(file, n_ctx=n_ctx, **FLOATS_OF_CPU) as exact,
                ikq.Model.load(file, n_ctx=n_ctx, **of_gpu) as gpu,
                ikq.Model.load(file, n_ctx=n_ctx) as cpu,
            ):
                base = ModelBase(exact, windows)
                *_, perplexity = measure_perplexity(gpu, windows)
                *_, found = measure_divergence(gpu, base)
                *_, rounded = measure_divergence(cpu, base)
                largest = float(np.linalg.norm(exact.logits(ids[:n_ctx]), axis=-1).max())
            # Logits that are off by so much change the logarithm of a probability by at most twice that. A divergence is half the
            # mean square of such changes, and these logarithms, of 16 at most, are floats.
            most = 2 * FLOATS * s.n_layer * largest
            most_kld = most**2 / 2 + 2 * 16 * 2.0**-24
            apart = found.loss - found.loss_base
            error, kld = most_of(apart), most_of(found.divergence)
            if not floats:
                # two draws of the same roundings
                error, kld = float(np.median(np.abs(apart))), float(np.median(found.divergence))
                most += 2 * float(np.median(np.abs(rounded.loss - rounded.loss_base)))
                most_kld += 4 * float(np.median(rounded.divergence))
            yield {"name": f"perplexity {type_name}: each token's part", "ok": error <= most, "error": error}
            whole = found.n_windows == windows.n and len(found.loss) == perplexity.n_scored
            same = bool(np.isclose(perplexity.value, np.exp(found.loss.mean()), rtol=1e-9))
            told = f"{perplexity.value:.4f}, the CPU's in floats {np.exp(found.loss_base.mean()):.4f}"
            yield {"name": f"perplexity {type_name}", "ok": whole and same, "why": told}
            yield {"name": f"KL divergence {type_name}", "ok": abs(kld) <= most_kld, "error": abs(kld)}
