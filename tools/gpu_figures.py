"""Tokens per second of whole models on a GPU, beside what the card could do at most. A group of `gpu_check.py`.

Models have the shapes of Qwen3-30B-A3B and GPT-OSS-20B and random codes of four bits, made on the spot; `--layers 0` makes all of
their layers. A prompt's bound are the operations of its products at the tensor cores' rate, a token's the bytes that it reads,
the cache's among them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gpu_cards import bound
from gpu_models import bytes_of_a_token, products_of_a_token, seed
from gpu_whole import of_prompt

import ikq

sys.path.append(str(Path(__file__).resolve().parents[1] / "benches"))
from synthetic_models import SHAPES, Shape, write

Row = dict[str, Any]

MODELS = {"qwen3-30b-a3b": ("IQ4_KS", 48, 151936), "gpt-oss-20b": ("MXFP4", 24, 201088)}
"""Type of the weights, layers and tokens of each."""
PLANS: dict[str, dict[str, Any]] = {
    "fused": {},
    "separate": {"fused_up_gate": False},
    "merged": {"merge_up_gate_experts": True},
}
PROMPTS = (512, 2048)
GENERATED = 128
DEPTHS = (2048, 8192, 32768 - 1024)
"""Positions in the cache before a prompt of 512 and tokens are timed."""
PROMPT_TARGET = 0.35
DECODE_TARGET = 0.5


def cache_bytes(s: Shape, n_layers: int, depth: int) -> int:
    """Bytes of keys and values that a token reads, in halves; every other layer of GPT-OSS sees a window only."""
    window = int(s.keys.get("attention.sliding_window", depth))
    seen: list[int] = [min(window, depth) if i % 2 == 0 else depth for i in range(n_layers)]
    n_bytes: int = sum(seen) * 2 * s.n_head_kv * s.head_dim * 2
    return n_bytes


def of_generated(model: ikq.Model, sequence: ikq.Sequence, ids: list[int]) -> float:
    """Seconds of a token, one after another; the first two load kernels and record graphs."""
    for i in ids[:2]:
        model.step([(sequence, [i], "last")])
    start = time.perf_counter()
    for i in ids[2:]:
        model.step([(sequence, [i], "last")])
    return (time.perf_counter() - start) / (len(ids) - 2)


class Timed:
    """A model whose figures are taken."""

    def __init__(self, args: argparse.Namespace, name: str, folder: Path) -> None:
        self.type, n_layers, vocabulary = MODELS[name]
        self.shape = SHAPES[name]
        if args.emulated:
            self.shape = replace(
                self.shape,
                n_embd=256,
                n_head=4,
                n_head_kv=2,
                head_dim=64,
                n_ff=256,
                n_expert=8,
                n_used=2,
                n_ff_expert=256,
            )
            n_layers, vocabulary = 2, 512
        self.n_layers = args.layers or n_layers
        self.prompts: tuple[int, ...] = (12,) if args.emulated else PROMPTS
        self.depths: tuple[int, ...] = (24,) if args.emulated else DEPTHS
        self.generated = 4 if args.emulated else GENERATED
        self.what = f"{name} {self.type} x{self.n_layers}"
        self.vocabulary = vocabulary
        self.path = folder / "model.gguf"
        write(self.path, self.shape, self.n_layers, vocabulary, self.type)
        self.n_bytes = bytes_of_a_token(self.path, self.shape)
        self.operations = products_of_a_token(self.path, self.shape)

    def tokens(self, n: int) -> list[int]:
        """Random ones."""
        return [int(i) for i in np.random.default_rng(seed()).integers(0, self.vocabulary, n)]

    def load(self, n_ctx: int, **options: Any) -> ikq.Model:
        """All layers on the GPU, unless the options say otherwise."""
        places: dict[str, Any] = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": self.n_layers + 1}
        return ikq.Model.load(self.path, n_ctx=n_ctx, n_ubatch=max(self.prompts), **places, **options)

    def prompt(self, what: str, n: int, seconds: float, ok: bool, bounded: bool = True) -> Row:
        """The row of a prompt of `n` tokens."""
        row: Row = {
            "name": f"pp{n} {self.what}, {what}",
            "ok": ok,
            "us": seconds * 1e6,
            "tokens_per_s": n / seconds,
        }
        if bounded:
            row |= bound("int8", n * self.operations, PROMPT_TARGET)
        return row

    def token(self, what: str, depth: int, seconds: float, bounded: bool = True) -> Row:
        """The row of a generated token behind so many positions."""
        row: Row = {
            "name": f"tg {self.what}, {what}",
            "ok": True,
            "us": seconds * 1e6,
            "tokens_per_s": 1 / seconds,
        }
        if bounded:
            n_bytes = self.n_bytes + cache_bytes(self.shape, self.n_layers, depth)
            row |= bound("bandwidth", n_bytes, DECODE_TARGET)
        return row

    def plans(self) -> Iterator[Row]:
        """Prompts and tokens with each plan of the FFNs, and with the experts in RAM."""
        places = {what: (options, True) for what, options in PLANS.items()}
        places["experts in RAM"] = ({"override_tensor": "exps=CPU"}, False)
        for what, (options, bounded) in places.items():
            with self.load(max(self.prompts) + self.generated, **options) as model:
                for n in self.prompts:
                    seconds, last = of_prompt(model, self.tokens(n), 1 if n < 100 else 3)
                    yield self.prompt(what, n, seconds, bool(np.isfinite(last).all()), bounded)
                with model.new_sequence() as sequence:
                    seconds = of_generated(model, sequence, self.tokens(self.generated))
                yield self.token(what, self.generated // 2, seconds, bounded)

    def sweep(self) -> Iterator[Row]:
        """Prompts and tokens behind long texts."""
        n, n_tokens = min(self.prompts), 8
        n_ctx = self.depths[-1] + n + n_tokens
        with self.load(n_ctx) as model, model.new_sequence() as sequence:
            for depth in self.depths:
                ids, step = self.tokens(depth), max(self.prompts)
                for i in range(sequence.n_past, depth, step):
                    model.step([(sequence, ids[i : min(i + step, depth)], "none")])
                start = time.perf_counter()
                (found,) = model.step([(sequence, self.tokens(n), "last")])
                seconds = time.perf_counter() - start
                ok = found is not None and bool(np.isfinite(found).all())
                yield self.prompt(f"behind {depth}", n, seconds, ok, bounded=False)
                yield self.token(
                    f"behind {depth + n}", depth + n, of_generated(model, sequence, self.tokens(n_tokens))
                )
                sequence.truncate(depth)


def figures(args: argparse.Namespace) -> Iterator[Row]:
    """Both models."""
    for name in MODELS:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            model = Timed(args, name, Path(folder))
            yield from model.plans()
            yield from model.sweep()
