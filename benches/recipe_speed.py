"""Speeds that `ikq recipe` predicts beside those of the engine: prompts of 512 tokens, and 64 tokens one at a time.

    python benches/recipe_speed.py --models FOLDER --types Q8_0 Q4_K IQ4_KS IQ2_XXS --dense IQ4_KS \\
        --results benches/results/recipe_speed.md

Models have random codes (`synthetic_models.py`): of Qwen3-30B-A3B's shape with 2 layers and one type each, of
Llama-3-8B's shape with 4 layers (`--dense`), and mixtures of both shapes (`--mixes`), in which each kind of tensor has
a type of its own, as in a recipe. Types are measured in the same run, before. Predicted, measured (the median of
`--repeat` runs) and their ratio are printed; exit code 1 if a prediction is off by more than `--most`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import machine
from synthetic_models import SHAPES, Weights, write

import ikq
from ikq.measure import Workload, bench
from ikq.recipes.speed import measure_speeds, predicted_speeds

MIXES: dict[str, dict[str, str]] = {
    "low": {
        "attn_q": "IQ4_KS",
        "attn_k": "Q8_0",
        "attn_v": "Q6_K",
        "attn_output": "Q5_K",
        "ffn_gate_exps": "IQ2_XXS",
        "ffn_up_exps": "IQ2_KS",
        "ffn_down_exps": "IQ3_K",
        "output": "Q6_K",
    },
    "high": {
        "attn_q": "Q6_K",
        "attn_k": "Q8_0",
        "attn_v": "Q8_0",
        "attn_output": "IQ5_K",
        "ffn_gate_exps": "Q4_K",
        "ffn_up_exps": "IQ4_KS",
        "ffn_down_exps": "Q5_K",
        "output": "Q8_0",
    },
    "dense": {
        "attn_q": "IQ3_S",
        "attn_k": "Q6_K",
        "attn_v": "Q8_0",
        "attn_output": "Q4_K",
        "ffn_gate": "IQ3_KS",
        "ffn_up": "IQ2_KL",
        "ffn_down": "IQ4_K",
        "output": "Q6_K",
    },
}
PROMPT, GENERATED = 512, 64


def write_mix(path: Path, types: dict[str, str], source: Path) -> None:
    """The tensors of a model of one type, with types by kind."""
    weights = {name: Weights(name, 1) for name in set(types.values())}
    with ikq.GGUFReader(source) as reader, ikq.GGUFWriter(path, reader.metadata) as writer:
        for name, tensor in reader.tensors.items():
            kind = name.removesuffix(".weight").rpartition(".")[2]
            wanted = types.get(kind)
            writer.add_tensor(name, tensor if wanted is None else weights[wanted].matrix(*tensor.shape))


def measured(path: Path, repeat: int, n_threads: int) -> tuple[float, float]:
    """Tokens per second of prompts and of generation."""
    with ikq.Model.load(path, n_ctx=PROMPT, n_threads=n_threads) as model:
        pp = bench(model, Workload(PROMPT, 0), repetitions=repeat).median
        tg = bench(model, Workload(0, GENERATED), repetitions=repeat).median
    return pp, tg


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True, help="folder where models are kept")
    parser.add_argument(
        "--types", nargs="*", default=["Q8_0", "Q4_K", "IQ4_KS", "IQ3_K", "IQ2_XXS", "IQ2_KT"]
    )
    parser.add_argument("--dense", nargs="*", default=["IQ4_KS", "Q6_K", "IQ2_XXS"])
    parser.add_argument("--mixes", nargs="*", choices=MIXES, default=list(MIXES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--make", action="store_true", help="make the models and measure nothing")
    parser.add_argument("--most", type=float, default=0.15, help="bound of |ratio - 1|, for the exit code")
    parser.add_argument("--results", type=Path, help="a file for the table")
    args = parser.parse_args()
    files: dict[str, Path] = {}
    for shape, n_layers, types in (("qwen3-30b-a3b", 2, args.types), ("llama-3-8b", 4, args.dense)):
        for name in types:
            path = args.models / f"{shape}-{n_layers}-{name}.gguf"
            if not path.exists():
                write(path, SHAPES[shape], n_layers, 32768, name)
            files[f"{shape}, {n_layers} layers, {name}"] = path
    for name in args.mixes:
        path = args.models / f"recipe-speed-{name}.gguf"
        shape, n_layers = ("llama-3-8b", 4) if name == "dense" else ("qwen3-30b-a3b", 2)
        if not path.exists():
            base = args.models / f"{shape}-{n_layers}-IQ4_KS.gguf"
            if not base.exists():
                write(base, SHAPES[shape], n_layers, 32768, "IQ4_KS")
            write_mix(path, MIXES[name], base)
        files[f"{shape}, {n_layers} layers, mix of {len(set(MIXES[name].values()))} types ({name})"] = path
    if args.make:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "speeds.json"
        start = time.perf_counter()
        types = set()
        for path in files.values():
            with ikq.GGUFReader(path) as reader:
                types |= {ikq.QuantType(t.type) for t in reader.tensors.values() if t.ndim > 1}
        speeds = measure_speeds(sorted(types), n_threads=args.threads, path=kept)
        seconds = time.perf_counter() - start
        lines = [
            f"{machine()}, {args.threads} threads, {ikq.isa()}; pp{PROMPT} and tg{GENERATED}, tokens per second",
            "",
            "| model | test | predicted | measured | predicted / measured |",
            "| --- | --- | --: | --: | --: |",
        ]
        print("\n".join(lines), flush=True)
        ratios = []
        for label, path in files.items():
            found = measured(path, args.repeat, args.threads)
            for test, p, m in zip(
                (f"pp{PROMPT}", f"tg{GENERATED}"),
                predicted_speeds(path, n_tokens=PROMPT, n_threads=args.threads, path=kept),
                found,
                strict=True,
            ):
                ratios.append(p / m)
                lines.append(f"| {label} | {test} | {p:.2f} | {m:.2f} | {p / m:.3f} |")
                print(lines[-1], flush=True)
    lines += [
        "",
        f"{len(types)} types and the engine's other work were measured in {seconds:.0f} s: {speeds.steps}",
    ]
    print("\n".join(lines[-2:]))
    if args.results:
        args.results.write_text("\n".join(lines) + "\n")
    return 0 if float(np.abs(np.array(ratios) - 1).max()) <= args.most else 1


if __name__ == "__main__":
    sys.exit(main())
