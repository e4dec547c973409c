"""Whole models on a GPU: with the experts in RAM, and beside a reference's llama-bench. Groups of `gpu_check.py`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import SHAPES, Shape, seed, write_model

import ikq

Row = dict[str, Any]

STREAM_FROM = "IKQ_CUDA_STREAM_FROM"
ROUNDS = 2
"""How often ikq and the reference take turns."""
REPETITIONS = 3
"""Of a test in a round."""
REFERENCE_SECONDS = 900


def tokens(s: Shape, n: int) -> list[int]:
    """A text of random tokens."""
    return [int(i) for i in np.random.default_rng(seed()).integers(0, s.n_vocab, n)]


def of_prompt(model: ikq.Model, ids: Sequence[int], repetitions: int) -> tuple[float, np.ndarray]:
    """Seconds of a prompt, the median, and logits behind it."""
    seconds = []
    for _ in range(repetitions + 1):  # the first compiles and loads kernels
        sequence, start = model.new_sequence(), time.perf_counter()
        (last,) = model.step([(sequence, ids, "last")])
        seconds.append(time.perf_counter() - start)
        sequence.close()
    assert last is not None
    return float(np.median(seconds[1:])), last


def of_tokens(model: ikq.Model, ids: Sequence[int], repetitions: int) -> float:
    """Seconds of as many tokens, one by one from an empty text on; the median."""
    seconds = []
    for _ in range(repetitions + 1):
        sequence, start = model.new_sequence(), time.perf_counter()
        for i in ids:
            model.step([(sequence, [i], "last")])
        seconds.append(time.perf_counter() - start)
        sequence.close()
    return float(np.median(seconds[1:]))


def hybrid(args: argparse.Namespace) -> Iterator[Row]:
    """Prompts with the experts in RAM: the bits of experts on the GPU, the time of either way, and where they meet."""
    s = SHAPES["tiny" if args.emulated else args.shape]
    counts = (16,) if args.emulated else (32, 64, 128, 256, 512, 1024)
    places: dict[str, Any] = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": s.n_layer + 1}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = Path(folder) / "model.gguf"
        write_model(file, s, "IQ4_KS")
        options: dict[str, Any] = {"n_ctx": counts[-1], "n_ubatch": counts[-1], **places}
        with ikq.Model.load(file, **options) as model:
            (expected,) = model.step([(model.new_sequence(), tokens(s, counts[-1]), "last")])
        took: dict[str, list[float]] = {}
        for how, first in (("copied", "1"), ("on the CPU", "0")):
            os.environ[STREAM_FROM] = first
            with ikq.Model.load(file, cpu_moe=True, **options) as model:
                took[how] = []
                for n in counts:
                    seconds, last = of_prompt(model, tokens(s, n), 1 if args.emulated else 3)
                    took[how].append(seconds)
                    name = f"prompt of {n}, experts in RAM, {how}"
                    row = {"name": name, "ok": bool(np.isfinite(last).all()), "us": seconds * 1e6}
                    yield row | {"tokens_per_s": n / seconds}
            if first == "1":
                same = expected is not None and np.array_equal(last, expected)
                yield {"name": "copied experts: the bits of those on the GPU", "ok": same}
            del os.environ[STREAM_FROM]
    pairs = zip(counts, took["copied"], took["on the CPU"], strict=True)
    quicker = [n for n, copied, stay in pairs if copied < stay]
    from_ = f"{STREAM_FROM}={min(quicker)}" if quicker else "none of these"
    yield {"name": f"copying is quicker from: {from_}", "ok": True}


def llama_bench(
    args: argparse.Namespace, file: Path, tests: Sequence[str], more: Sequence[str]
) -> dict[str, float]:
    """Tokens per second of tests (`pp512`, `tg128`) by a reference.

    Raises:
        RuntimeError: It did not do what it was asked for.
    """
    of = {kind: ",".join(t[2:] for t in tests if t.startswith(kind)) or "0" for kind in ("pp", "tg")}
    command = [args.compare, "-m", str(file), "-p", of["pp"], "-n", of["tg"], "-ngl", "99", "-o", "json"]
    command += ["-r", str(REPETITIONS), *shlex.split(args.compare_args), *more]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=REFERENCE_SECONDS, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise RuntimeError(str(e)) from e
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it says nothing"])[-1][:300])
    # programs print of what they find, too, before and behind the list
    start, end = done.stdout.find("["), done.stdout.rfind("]")
    try:
        rows = json.loads(done.stdout[start : end + 1])
    except ValueError as e:
        raise RuntimeError(f"no list of results: {done.stdout[:200]!r}") from e
    found = {}
    for row in rows:
        name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        found[name] = float(row["avg_ts"])
    if missing := [t for t in tests if t not in found]:
        raise RuntimeError(f"no result of {', '.join(missing)}")
    return found


def own_speeds(s: Shape, file: Path, tests: Sequence[str], options: dict[str, Any]) -> dict[str, float]:
    """The same of ikq: steps of at most 512 tokens, as llama-bench has them."""
    found = {}
    most = max(int(t[2:]) for t in tests)
    with ikq.Model.load(file, n_ctx=most + 8, n_ubatch=512, n_gpu_layers=s.n_layer + 1, **options) as model:
        for test in tests:
            n = int(test[2:])
            ids = tokens(s, n)
            seconds = (
                of_prompt(model, ids, REPETITIONS)[0]
                if test.startswith("pp")
                else of_tokens(model, ids, REPETITIONS)
            )
            found[test] = n / seconds
    return found


PLACES: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("", {}, ()),
    (", experts in RAM", {"cpu_moe": True}, ("-ot", "exps=CPU")),
)
"""Where the model is: what it is called, and options of ikq and of the reference."""


def compare(args: argparse.Namespace) -> Iterator[Row]:
    """Prompts and decoding by ikq and by a reference, by turns: the reference's time is the bound."""
    if not args.compare:
        yield {"name": "compare", "ok": False, "why": "--compare names the reference's llama-bench"}
        return
    s = SHAPES["tiny" if args.emulated else args.shape]
    tests = ("pp12", "tg3") if args.emulated else ("pp512", "pp2048", "tg128")
    for type_name in args.compare_types.split(","):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            file = Path(folder) / "model.gguf"
            write_model(file, s, type_name)
            for where, options, more in PLACES:
                ours: dict[str, list[float]] = {t: [] for t in tests}
                theirs: dict[str, list[float]] = {t: [] for t in tests}
                why = ""
                for _ in range(1 if args.emulated else ROUNDS):
                    devices = {"devices": ["CPU", "CUDA0"], **options}
                    for test, speed in own_speeds(s, file, tests, devices).items():
                        ours[test].append(speed)
                    try:
                        for test, speed in llama_bench(args, file, tests, more).items():
                            theirs.setdefault(test, []).append(speed)
                    except RuntimeError as e:
                        why = f"the reference: {e}"
                        break
                for test in tests:
                    own = float(np.median(ours[test]))
                    row: Row = {"name": f"{test} {type_name}{where}", "ok": not why, "us": 1e6 / own}
                    row |= {"ikq": own}
                    if theirs[test] and not why:
                        other = float(np.median(theirs[test]))
                        row |= {"reference": other, "bound_us": 1e6 / other, "target": 1.0}
                    yield row | ({"why": why} if why else {})


def compared(rows: Sequence[Row]) -> list[str]:
    """The table of the group `compare`, if there is one."""
    of = [row for row in rows if "ikq" in row and row["group"] == "compare"]
    if not of:
        return []
    lines = ["", f"{'tokens per second':44} {'ikq':>10} {'reference':>10} {'ikq / it':>9}"]
    for row in of:
        other, ratio = "-", "-"
        if "reference" in row:
            other, ratio = f"{row['reference']:.1f}", f"{row['ikq'] / row['reference']:.2f}"
        lines.append(
            f"{row['name'][:44]:44} {row['ikq']:>10.1f} {other:>10} {ratio:>9}  {row.get('why', '')[:60]}".rstrip()
        )
    return lines
