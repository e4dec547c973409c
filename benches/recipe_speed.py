"""Speeds that `ikq recipe` predicts beside those of the engine: prompts of 512 tokens, and 64 tokens one at a time.

    python benches/recipe_speed.py --models FOLDER --types Q8_0 Q4_K IQ4_KS IQ2_XXS --dense IQ4_KS \\
        --results benches/results/recipe_speed.md

Models have random codes (`synthetic_models.py`): of Qwen3-30B-A3B's shape with 6 layers and one type each, of
Llama-3-8B's shape with 4 layers (`--dense`), and mixtures of both shapes (`--mixes`), in which each kind of tensor has
a type of its own, as in a recipe. A machine that others use is faster now and slower then, so predictions and runs are
made by turns: `--turns` times what steps take and a model's types, then a prompt and the generated tokens, and at last
steps and types once more. A run is compared with the mean of the predictions before and after it.
Predicted, measured and their ratio are printed, medians of all turns of all `--rounds`; exit code 1 if a prediction is
off by more than `--most`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from side_by_side import machine
from synthetic_models import SHAPES, Weights, write

import ikq
from ikq.recipes.speed import predicted_speeds
from ikq.recipes.step_speeds import PROBE_TYPE, measure_step_speeds
from ikq.speed.measure import Workload, bench
from ikq.speed.type_speeds import measure_type_speeds

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
LAYERS = {"qwen3-30b-a3b": 6, "llama-3-8b": 4}
"""As many as make a token read more than a large cache keeps for the next one."""

PROMPT, GENERATED = 512, 64
TESTS = (f"pp{PROMPT}", f"tg{GENERATED}")


def write_mix(path: Path, types: dict[str, str], source: Path) -> None:
    """The tensors of a model of one type, with types by kind."""
    weights = {name: Weights(name, 1) for name in set(types.values())}
    with ikq.GGUFReader(source) as reader, ikq.GGUFWriter(path, reader.metadata) as writer:
        for name, tensor in reader.tensors.items():
            kind = name.removesuffix(".weight").rpartition(".")[2]
            wanted = types.get(kind)
            writer.add_tensor(name, tensor if wanted is None else weights[wanted].matrix(*tensor.shape))


def predicted(path: Path, n_threads: int, kept: Path) -> tuple[float, float]:
    """The same of `ikq recipe`, from its types and what steps take as they are now."""
    found = measure_type_speeds({*types_of(path), PROBE_TYPE}, n_threads=n_threads, again=True, path=kept)
    measure_step_speeds(found[PROBE_TYPE], n_threads=n_threads, again=True, path=kept)
    return predicted_speeds(path, n_tokens=PROMPT, n_threads=n_threads, path=kept)


def turns(
    path: Path, n_turns: int, n_threads: int, kept: Path
) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Tokens per second of prompts and of generation, predicted and measured, `n_turns` times one after another."""
    with ikq.Model.load(path, n_ctx=PROMPT, n_threads=n_threads) as model:
        before = predicted(path, n_threads, kept)
        for _ in range(n_turns):
            found = tuple(
                bench(model, w, repetitions=1).median for w in (Workload(PROMPT, 0), Workload(0, GENERATED))
            )
            after = predicted(path, n_threads, kept)
            pp, tg = (2 / (1 / a + 1 / b) for a, b in zip(before, after, strict=True))
            yield (pp, tg), (found[0], found[1])
            before = after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, required=True, help="folder where models are kept")
    parser.add_argument("--types", nargs="*", default=["Q4_K", "IQ4_KS", "IQ2_XXS"])
    parser.add_argument("--dense", nargs="*", default=["IQ4_KS", "Q6_K"])
    parser.add_argument("--mixes", nargs="*", choices=MIXES, default=list(MIXES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=4, help="predictions and runs of a model in a round")
    parser.add_argument("--rounds", type=int, default=2, help="all models by turns, so often; medians count")
    parser.add_argument("--rows", type=Path, help="a file of figures to add to: a long run in parts")
    parser.add_argument("--kept", type=Path, help="a file of speeds; without it all is measured anew")
    parser.add_argument("--make", action="store_true", help="make the models and measure nothing")
    parser.add_argument("--most", type=float, default=0.15, help="bound of |ratio - 1|, for the exit code")
    parser.add_argument("--results", type=Path, help="a file for the table")
    args = parser.parse_args()
    files: dict[str, Path] = {}
    for shape, types in (("qwen3-30b-a3b", args.types), ("llama-3-8b", args.dense)):
        n_layers = LAYERS[shape]
        for name in types:
            path = args.models / f"{shape}-{n_layers}-{name}.gguf"
            if not path.exists():
                write(path, SHAPES[shape], n_layers, 32768, name)
            files[f"{shape}, {n_layers} layers, {name}"] = path
    for name in args.mixes:
        path = args.models / f"recipe-speed-{name}.gguf"
        shape = "llama-3-8b" if name == "dense" else "qwen3-30b-a3b"
        n_layers = LAYERS[shape]
        if not path.exists():
            base = args.models / f"{shape}-{n_layers}-IQ4_KS.gguf"
            if not base.exists():
                write(base, SHAPES[shape], n_layers, 32768, "IQ4_KS")
            write_mix(path, MIXES[name], base)
        files[f"{shape}, {n_layers} layers, mix of {len(set(MIXES[name].values()))} types ({name})"] = path
    if args.make:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        kept = args.kept or Path(folder) / "speeds.json"
        rows = (
            [json.loads(line) for line in args.rows.read_text().splitlines()]
            if args.rows and args.rows.exists()
            else []
        )
        for _ in range(args.rounds):
            for label, path in files.items():
                for predictions, runs in turns(path, args.turns, args.threads, kept):
                    for test, p, m in zip(TESTS, predictions, runs, strict=True):
                        rows.append({"model": label, "test": test, "predicted": p, "measured": m})
                        print(
                            f"{label}, {test}: predicted {p:.2f}, measured {m:.2f}",
                            file=sys.stderr,
                            flush=True,
                        )
                if args.rows:
                    args.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines, ratios = table(rows)
    text = f"{machine()}, {args.threads} threads, {ikq.isa()}; tokens per second\n\n" + "\n".join(lines)
    print(text)
    if args.results:
        args.results.write_text(f"# Speeds that recipes predict, and those of the engine\n\n{text}\n")
    return 0 if float(np.abs(np.array(ratios) - 1).max()) <= args.most else 1


def types_of(path: Path) -> list[ikq.QuantType]:
    """Types of a model's matrices."""
    with ikq.GGUFReader(path) as reader:
        return sorted({ikq.QuantType(t.type) for t in reader.tensors.values() if t.ndim > 1})


def table(rows: list[dict]) -> tuple[list[str], list[float]]:
    """Medians over all turns, and the ratios."""
    lines = [
        "| model | test | predicted | measured | predicted / measured | of all turns |",
        "| --- | --- | --: | --: | --: | --- |",
    ]
    ratios = []
    for key in dict.fromkeys((r["model"], r["test"]) for r in rows):
        mine = [r for r in rows if (r["model"], r["test"]) == key]
        p, m = (float(np.median([r[x] for r in mine])) for x in ("predicted", "measured"))
        of_turns = sorted(r["predicted"] / r["measured"] for r in mine)
        ratios.append(float(np.median(of_turns)))
        cells = [*key, f"{p:.2f}", f"{m:.2f}", f"{ratios[-1]:.3f}", ", ".join(f"{x:.2f}" for x in of_turns)]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(abs(r - 1) for r in ratios)
    lines += [
        "",
        f"{len(ratios)} predictions, the worst {worst:.0%} off, half of them within {np.median(np.abs(np.array(ratios) - 1)):.0%}",
    ]
    return lines, ratios


if __name__ == "__main__":
    sys.exit(main())
