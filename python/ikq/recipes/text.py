"""A recipe as the text of its file: rules, with comments that say what to expect and how to use it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ikq.recipes.budget import Use
from ikq.recipes.recipe import Recipe

__all__ = ["quantize_command", "recipe_text", "run_command", "summary_lines"]


def summary_lines(recipe: Recipe) -> list[str]:
    """What a recipe promises: size, divergence, distance from the best, memory and speed."""
    low, high = recipe.interval
    lines = [
        f"size: {recipe.file_bytes} bytes, {recipe.bits_per_weight:.4f} bits per weight",
        f"predicted KL divergence: {recipe.divergence:.6f} ({low:.6f} to {high:.6f}), "
        f"from {recipe.costs.origin}",
        _gap(recipe),
    ]
    if recipe.speeds is not None:
        pp, tg = recipe.speeds
        lines.append(f"predicted speed: {pp:.1f} t/s of prompts, {tg:.2f} t/s of generation")
    if recipe.placement is not None:
        names = ("RAM", "VRAM") if recipe.budget.vram is not None else ("RAM",)
        taken = zip(names, recipe.choice.bytes, recipe.placement.reserved, strict=False)
        parts = [
            f"{name} {(int(weights) + other) / 1e9:.3f} GB, {other / 1e9:.3f} of it for cache, buffers, norms"
            for name, weights, other in taken
        ]
        lines.append(f"memory with {recipe.n_ctx} positions: {', '.join(parts)}")
    return [*lines, *recipe.notes]


def _gap(recipe: Recipe) -> str:
    """How far the best mix may be. Where next to nothing is left to lose, a share of it says little."""
    gap = recipe.choice.gap
    if gap <= 1:
        return f"at most {_percent(gap)} from the best mix, by this prediction"
    return f"no mix has less than {recipe.divergence / (1 + gap):.6f}, by this prediction"


def _percent(gap: float) -> str:
    return f"{100 * gap:.2f} %" if gap >= 5e-5 else "0.01 %"


def quantize_command(recipe: Recipe, file: str, output: str) -> str:
    """The command line that makes the file."""
    problem = recipe.costs.problem
    statistics = [] if problem.imatrix is None else ["--imatrix", problem.imatrix.path]
    return shlex.join(
        [
            *("ikq", "quantize", "--recipe", file, *statistics, *recipe.options),
            *(str(problem.source), output, recipe.type),
        ]
    )


def run_command(recipe: Recipe, output: str, verb: str = "run") -> str:
    """The command line that runs it, with cache and placement as planned; the verb may be another."""
    words = ["ikq", verb, "-m", output]
    use = recipe.use
    n_ctx = use.n_ctx if recipe.n_ctx is None else recipe.n_ctx
    if n_ctx is not None:
        words += ["-c", str(n_ctx)]
    for option, value, usual in (
        ("-ctk", use.cache_type_k, Use.cache_type_k),
        ("-ctv", use.cache_type_v, Use.cache_type_v),
        ("-ub", str(use.n_ubatch), str(Use.n_ubatch)),
    ):
        if value != usual:
            words += [option, value]
    if recipe.placement is not None:
        words += recipe.placement.options.split()
    return shlex.join(words)


def recipe_text(recipe: Recipe, file: str = "recipe.txt") -> str:
    """The file's text.

    Args:
        recipe: The recipe.
        file: Name under which it will be kept, for the command in the comments.
    """
    source = recipe.costs.problem.source
    output = f"{re.sub(r'-[0-9]{5}-of-[0-9]{5}$', '', source.stem)}-recipe.gguf"
    lines = [
        f"# ikq recipe for {source.name}",
        *(f"# {line}" for line in summary_lines(recipe)),
        f"# quantize: {quantize_command(recipe, Path(file).name, output)}",
        *(f"# {verb}: {run_command(recipe, output, verb)}" for verb in ("run", "serve", "bench")),
        f"# type: {recipe.type}",
        *recipe.rules,
    ]
    return "\n".join(lines) + "\n"
