"""What a model on a GPU does besides plain prompts and tokens: the largest logits, drafts, several GPUs, and bits that do not depend on
the step, with what these cost. A group of `gpu_check.py`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import SHAPES, seed, write_model

import ikq
from ikq import cuda
from ikq.inference.sequence import Best
from ikq.sampling import Candidates

Row = dict[str, Any]

MMQ_FROM = "IKQ_CUDA_MMQ_FROM"
N_BEST = 8


def best(model: ikq.Model, ids: list[int]) -> Row:
    """The largest logits of each token, which the GPU finds itself, beside all of them."""
    with model.new_sequence() as sequence:
        (found,) = model.step([(sequence, ids, Best(N_BEST, each=True))])
    with model.new_sequence() as sequence:
        (want,) = model.step([(sequence, ids, "all")])
    assert isinstance(found, list)
    assert isinstance(want, np.ndarray)
    largest = -np.sort(-want, axis=1)[:, :N_BEST]
    same = all(
        isinstance(f, Candidates) and np.array_equal(f.logits, w) for f, w in zip(found, largest, strict=True)
    )
    return {"name": f"the {N_BEST} largest logits of each token", "ok": same}


def drafts(model: ikq.Model, ids: list[int], n: int) -> Row:
    """A text with drafts from itself is the text without."""

    def text(**options: Any) -> list[int]:
        pieces = model.generate(ids, max_tokens=n, temperature=0, ignore_eos=True, **options)
        return [piece.token for piece in pieces if piece.token is not None]

    always = {"draft_adapt": False, "draft_p_min": 0.0, "draft_max": 4}
    return {"name": "a text with drafts", "ok": text(lookup=1, **always) == text()}


def seconds_of_steps(
    file: Path, sizes: tuple[int, ...], ids: list[int], rounds: int, **places: Any
) -> dict[int, float]:
    """Of a step of so many tokens behind an empty text; the median."""
    found = {}
    with ikq.Model.load(file, n_ctx=512, **places) as model:
        for n in sizes:
            took = []
            for _ in range(rounds + 2):
                with model.new_sequence() as sequence:
                    start = time.perf_counter()
                    model.step([(sequence, ids[:n], "last")])
                    took.append(time.perf_counter() - start)
            found[n] = float(np.median(took[2:]))
    return found


def features(args: argparse.Namespace) -> Iterator[Row]:
    """All of it, with a small model."""
    s = SHAPES["tiny" if args.emulated else "small"]
    places: dict[str, Any] = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": s.n_layer + 1}
    ids = [int(i) for i in np.random.default_rng(seed()).integers(0, s.n_vocab, 128)]
    n = 12 if args.emulated else 64
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "model.gguf"
        write_model(file, s, "IQ4_KS")
        with ikq.Model.load(file, n_ctx=512, **places) as model:
            yield best(model, ids[:n])
            yield drafts(model, ids[:n], n)
            whole = model.logits(ids[:n])
        sizes, rounds = ((1, 4), 1) if args.emulated else ((1, 4, 8, 16, 64, 128), 20)
        usual = seconds_of_steps(file, sizes, ids, rounds, **places)
        os.environ[MMQ_FROM] = "1"
        invariant = seconds_of_steps(file, sizes, ids, rounds, **places)
        del os.environ[MMQ_FROM]
        for size in sizes:
            name = f"step of {size}, bits that depend on no step"
            yield {"name": name, "ok": True, "us": invariant[size] * 1e6, "usual_us": usual[size] * 1e6}
        usable = [d["name"] for d in cuda.require()["devices"] if d["usable"]]
        if len(usable) < 2:
            yield {"name": "two GPUs: the bits of one", "ok": True, "why": "not checked: there is one"}
            return
        places["devices"] = ["CPU", "CUDA0", "CUDA1"]
        with ikq.Model.load(file, n_ctx=512, tensor_split=[1, 1], **places) as model:
            same = np.array_equal(model.logits(ids[:n]), whole)
        yield {"name": "two GPUs: the bits of one", "ok": bool(same)}
