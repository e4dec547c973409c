"""Recipes beside mixes with names and beside controls: KL divergence at the same size, predicted and measured.

    python benches/recipe_quality.py --chunks 10 --out benches/results/recipe_quality.jsonl

For the size of each mix: `ikq recipe`'s choice, the mix itself, and controls of at most that size: the best single
type, mixes by the energy of inputs alone, by relative errors alone, and random ones. All files are measured in
ikq's engine against the unquantized model on the same windows. Printed: divergences, the recipe's over the mix's, and
how predictions and measurements of all files rank (Spearman). Exit code 1 if a recipe is above `--most` times its mix
or a control is better than the recipe.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import ikq
from ikq.evaluate import BaseFile, base_writer, cut, measure_divergence, measure_perplexity, text_tokens
from ikq.recipes.choose import choose
from ikq.recipes.covariances import InputCovariances
from ikq.recipes.probes import probe
from ikq.recipes.problem import DEFAULT_TYPES, parse_types
from ikq.recipes.recipe import Budget, Costs, measure_costs, open_problem, solve
from ikq.recipes.rules import recipe_rules
from ikq.recipes.tables import read_sensitivities

TOP = Path(__file__).resolve().parent.parent
DATA = TOP / "tests" / "data"
MIXES = ["Q2_K", "IQ2_M", "IQ3_XXS", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M"]


class Measure:
    """Makes files and measures them."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.source, self.imatrix, self.chunks = args.model, args.imatrix, args.chunks
        self.n_threads, self.folder = args.threads, folder
        with ikq.Model.load(self.source, n_ctx=512, n_threads=args.threads) as model:
            windows = cut(text_tokens(model.tokenizer, args.text.read_text()), chunks=args.chunks)
            with base_writer(folder / "base", windows, model.spec.n_vocab) as sink:
                for _ in measure_perplexity(model, windows, sink):
                    pass
        self.base = BaseFile(folder / "base")

    def __call__(self, type_name: str, rules: list[str]) -> tuple[float, int]:
        out = self.folder / "q.gguf"
        ikq.quantize_file(
            self.source,
            out,
            type_name,
            imatrix=self.imatrix,
            tensor_type=rules,
            n_threads=self.n_threads,
            restart=True,
        )
        with ikq.Model.load(out, n_ctx=512, n_threads=self.n_threads) as model:
            *_, found = measure_divergence(model, self.base, self.chunks)
        return found.mean.value, out.stat().st_size


def random_mix(costs: Costs, budget: int, rng: np.random.Generator) -> np.ndarray:
    """Types at random, then changed at random places until they fill the budget to 1 %."""
    tensors = costs.problem.tensors
    index = np.array([rng.integers(0, len(t.types)) for t in tensors])
    for _ in range(10000):
        size = costs.problem.total_bytes(index)
        if 0.99 * budget <= size <= budget:
            return index
        t = int(rng.integers(0, len(tensors)))
        step = -1 if size > budget else 1
        index[t] = min(max(index[t] + step, 0), len(tensors[t].types) - 1)
    return index


def control_costs(costs: Costs) -> dict[str, np.ndarray]:
    """What simpler methods minimise."""
    problem, sizes = costs.problem, costs.sizes
    energies = np.array(
        [
            1.0 if t.imatrix is None else float(problem.imatrix[t.imatrix].values.mean()) * t.n_weights
            for t in problem.tensors
        ]
    )
    bits = 8 * sizes / np.array([t.n_weights for t in problem.tensors])[:, None]
    by_energy = np.where(np.isfinite(costs.divergence), energies[:, None] * 4.0**-bits, np.inf)
    weights = np.array([t.n_weights for t in problem.tensors], float)[:, None]
    return {
        "input energy": by_energy,
        "error": np.where(np.isfinite(costs.divergence), costs.errors.relative, np.inf),
        "error x weights": np.where(np.isfinite(costs.divergence), costs.errors.relative * weights, np.inf),
    }


def single_type(costs: Costs, budget: int) -> np.ndarray:
    """Of all types that fit when every tensor has them, the one with the least mean error."""
    tensors, best, found = costs.problem.tensors, np.inf, None
    for type in {k for t in tensors for k in t.types}:
        if all(type in t.types for t in tensors):
            index = np.array([t.types.index(type) for t in tensors])
            error = costs.errors.relative[np.arange(len(index)), index].mean()
            if costs.problem.total_bytes(index) <= budget and error < best:
                best, found = error, index
    assert found is not None
    return found


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=DATA / "tiny-moe-bf16.gguf")
    parser.add_argument("--imatrix", type=Path, default=DATA / "imatrix-plain.dat")
    parser.add_argument(
        "--text", type=Path, default=TOP.parent / "shared" / "models" / "text" / "heldout.txt"
    )
    parser.add_argument("--mixes", nargs="+", default=MIXES)
    parser.add_argument("--chunks", type=int, default=-1, help="most windows (-1: all)")
    parser.add_argument("--random", type=int, default=20, help="random mixes for each size")
    parser.add_argument("--no-controls", action="store_true", help="recipes and mixes only")
    parser.add_argument("--covariance", type=Path, help="covariances, under which errors are measured")
    parser.add_argument("--types", help="what recipes may choose, as for `ikq recipe`")
    parser.add_argument("--sensitivity", help="measured sensitivities, for the recipe")
    parser.add_argument("--probe", type=int, default=0, help="runs that measure sensitivities, for each size")
    parser.add_argument(
        "--probe-text", type=Path, default=TOP.parent / "shared" / "models" / "text" / "calibration.txt"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--most", type=float, default=0.85)
    parser.add_argument("--out", type=Path, help="one JSON object per file measured")
    args = parser.parse_args()
    table = read_sensitivities(args.sensitivity) if args.sensitivity else None
    full = InputCovariances(ikq.Covariances(args.covariance)) if args.covariance else None
    costs = measure_costs(
        open_problem(
            args.model, args.imatrix, types=parse_types(args.types) if args.types else DEFAULT_TYPES
        ),
        n_threads=args.threads,
        sensitivities=table,
        covariances=full,
    )
    problem, rng = costs.problem, np.random.default_rng(1)
    rows, holds = [], True
    print(
        "| size of | bytes | mix | recipe | ratio | predicted | single type | input energy | error | error x weights | random: best, median |"
    )
    print("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        measure = Measure(args, Path(folder))

        def file(kind: str, mix: str, index: np.ndarray, budget: int, by: Costs = costs) -> float:
            kld, size = measure("COPY", recipe_rules(problem.types_of(index)))
            assert size <= budget, (kind, size, budget)
            predicted = float(by.divergence[np.arange(len(index)), index].sum())
            rows.append({"kind": kind, "mix": mix, "bytes": size, "kld": kld, "predicted": predicted})
            return kld

        for mix in args.mixes:
            of_mix, budget = measure(mix, [])
            recipe = solve(costs, Budget(size=budget))
            if args.probe:
                text = args.probe_text.read_text()
                recipe = solve(
                    probe(recipe, text, args.probe, n_threads=args.threads).costs, Budget(size=budget)
                )
            mine = file("recipe", mix, recipe.choice.index, budget, recipe.costs)
            controls, random = {}, []
            if not args.no_controls:
                controls["single type"] = file("single type", mix, single_type(costs, budget), budget)
                for name, cost in control_costs(costs).items():
                    index = choose(cost, costs.sizes, [budget - problem.overhead]).index
                    controls[name] = file(name, mix, index, budget)
                random = sorted(
                    file("random", mix, random_mix(costs, budget, rng), budget) for _ in range(args.random)
                )
            holds &= mine <= args.most * of_mix and mine < min([*controls.values(), *random], default=np.inf)
            cells = [
                mix,
                budget,
                *(f"{x:.5f}" for x in (of_mix, mine)),
                f"{mine / of_mix:.3f}",
                f"{recipe.divergence:.5f}",
            ]
            cells += [f"{x:.5f}" for x in controls.values()] or ["-"] * 4
            cells += [f"{random[0]:.4f}, {random[len(random) // 2]:.4f}" if random else "-"]
            print(f"| {' | '.join(str(c) for c in cells)} |", flush=True)
    for kinds in (("recipe",), ("recipe", "random")):
        part = [r for r in rows if r["kind"] in kinds]
        ratios = np.array([r["predicted"] / r["kld"] for r in part])
        within = float((np.abs(np.log(ratios)) <= np.log(costs.uncertainty)).mean())
        print(
            f"{' and '.join(kinds)}: {len(part)} files, rank correlation of predicted and measured "
            f"{rank_correlation([r['predicted'] for r in part], [r['kld'] for r in part]):.3f}, "
            f"predicted over measured {ratios.min():.2f} to {ratios.max():.2f}, {within:.0%} within the interval"
        )
    if args.out:
        args.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
