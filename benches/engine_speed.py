"""Tokens per second of the engine against other programs' bench programs, in the same run, in turn.

    python benches/engine_speed.py --reference PATH/llama-bench --types Q8_0 Q4_K IQ4_KS --least 1.0
    python benches/engine_speed.py --reference PATH/llama-bench --shape llama-3-8b --layers 4 --types IQ4_KS
    python benches/engine_speed.py --reference PATH/llama-bench --reference-avx2 PATH/AVX2/llama-bench --types Q4_K \\
        --table engine.md --plot engine.svg
    python benches/engine_speed.py --reference PATH/llama-bench --types Q4_K BF16 --prompt 2048 --ubatch 2048 --gen 0
    python benches/engine_speed.py --reference PATH/llama-bench --llama PATH/llama-bench --layers 2 4 --prompt 512 \\
        --gen 128 --plans fused separate merged --types Q8_0 Q4_K IQ4_KS IQ2_XXS

The model has the shape of Qwen3-30B-A3B with 2 layers and random weights (`synthetic_models.py`), all block matrices of
one type. pp128, pp512: one prompt of so many tokens; tg64: 64 tokens, one at a time, from an empty cache; tg64@8192: behind
a prompt of 8192 tokens, which is not counted. The
reference (ik_llama.cpp) runs with its default settings, on huge pages without mapping, and repacked at load time; what
counts is the best of the three, per figure; llama.cpp runs with its defaults. Medians of `--repeat` rounds; a round is
one process of each program, with a warm-up of its own. With `--least R` the exit code is 1 if ikq has less than R
times the best of the reference in any figure.

`--reference` is a build for this machine, beside which ikq uses the machine's best instruction set; `--reference-avx2` is
a build for AVX2 without AVX-512, beside which it uses AVX2. With both, each type is measured with both. `--table` and
`--plot` write what is printed, and the ratios as a picture.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from engine_plot import Ratio, draw
from side_by_side import (
    SETTINGS,
    add_model_options,
    exit_code,
    figure,
    geometric_mean,
    isa_environment,
    machine,
    synthetic_model,
    table_head,
    table_row,
)

PLANS: dict[str, dict[str, bool]] = {
    "fused": {},
    "separate": {"fused_up_gate": False},
    "merged": {"merge_up_gate_experts": True},
}

MEASURE = """
import json, sys, time, ikq
path, threads, prompts, n_gen, depths, options = sys.argv[1], *map(json.loads, sys.argv[2:])
with ikq.Model.load(path, n_ctx=max(prompts + [0]) + max(depths + [0]) + n_gen, n_threads=threads, **options) as model:
    def pp(n):
        model.truncate(0)
        tokens = [(7919 * i) % 32000 for i in range(n)]
        start = time.perf_counter()
        model.eval(tokens, want="last")
        return n / (time.perf_counter() - start)
    def tg(depth):
        model.truncate(0)
        if depth:
            model.eval([(7919 * i) % 32000 for i in range(depth)], want="last")
        start = time.perf_counter()
        for i in range(n_gen):
            model.eval([(104729 * i) % 32000], want="last")
        return n_gen / (time.perf_counter() - start)
    speeds = {}
    for n in prompts:
        pp(n)
        speeds[f"pp{n}"] = pp(n)
    if n_gen and not depths:
        tg(0)
        speeds[f"tg{n_gen}"] = tg(0)
    for depth in depths:
        speeds[f"tg{n_gen}@{depth}"] = tg(depth)
    print(json.dumps(speeds))
"""


def ours(
    args: argparse.Namespace, isa: str | None, model: Path, options: dict[str, bool]
) -> dict[str, float]:
    """One round of ikq: tokens per second of each figure."""
    all_options: dict[str, object] = options | {"cache_type_k": args.cache, "cache_type_v": args.cache}
    if args.ubatch:
        all_options["n_ubatch"] = args.ubatch
    facts = [json.dumps(x) for x in (args.threads, args.prompt, args.gen, args.depth, all_options)]
    words = [sys.executable, "-c", MEASURE, str(model), *facts]
    environment = isa_environment(isa)
    found: dict[str, float] = json.loads(
        subprocess.run(words, check=True, stdout=subprocess.PIPE, env=environment).stdout
    )
    return found


def theirs(args: argparse.Namespace, program: str, model: Path, setting: list[str]) -> dict[str, float]:
    """One round of another program; nothing when it cannot load the type."""
    words = [program, "-m", str(model), "-t", str(args.threads), "-r", "1", "-o", "json"]
    words += ["-ctk", args.cache, "-ctv", args.cache, "-n", "0" if args.depth else str(args.gen)]
    words += ["-p", ",".join(map(str, args.prompt or [0]))]
    for depth in args.depth:
        words += ["-gp", f"{depth},{args.gen}"]
    if args.ubatch:
        words += ["-b", str(args.ubatch), "-ub", str(args.ubatch)]
    done = subprocess.run([*words, *setting], capture_output=True, text=True)
    if done.returncode or "[" not in done.stdout:
        return {}
    rows = json.loads(done.stdout[done.stdout.index("[") :])
    return {test_name(row["n_prompt"], row["n_gen"]): row["avg_ts"] for row in rows}


def test_name(n_prompt: int, n_gen: int) -> str:
    """What a test is called: a prompt, tokens from an empty cache, or tokens behind a prompt that is not counted."""
    if not n_gen:
        return f"pp{n_prompt}"
    return f"tg{n_gen}@{n_prompt}" if n_prompt else f"tg{n_gen}"


def one_round(
    args: argparse.Namespace, isa: str | None, reference: str | None, model: Path
) -> dict[str, dict[str, float]]:
    """Every program once."""
    row = {f"ikq {p}": ours(args, isa, model, PLANS[p]) for p in args.plans}
    for s in args.settings if reference else ():
        row[f"ik {s}"] = theirs(args, str(reference), model, SETTINGS[s])
    if args.llama:
        row["llama.cpp"] = theirs(args, args.llama, model, [])
    return row


def say(table: Path | None, line: str) -> None:
    """Prints a line, and adds it to a file."""
    print(line, flush=True)
    if table is not None:
        with table.open("a", encoding="utf-8") as f:
            f.write(line + "\n")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", help="ik_llama.cpp's llama-bench")
    parser.add_argument("--reference-avx2", help="the same, built for AVX2 without AVX-512")
    parser.add_argument("--llama", help="llama.cpp's llama-bench")
    add_model_options(parser, shape="qwen3-30b-a3b", layers=2, types=["Q8_0", "Q4_K", "IQ4_KS"])
    parser.add_argument("--prompt", type=int, nargs="*", default=[128, 512], help="lengths of prompts")
    parser.add_argument("--gen", type=int, default=64, help="tokens generated one at a time; 0: none")
    parser.add_argument(
        "--depth", type=int, nargs="*", default=[], help="generate behind prompts of so many tokens"
    )
    parser.add_argument("--cache", default="f16", help="type of the KV cache, of every program")
    parser.add_argument("--ubatch", type=int, help="tokens of a step of a prompt, of every program")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=["fused"])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument(
        "--isa", choices=["scalar", "avx2", "avx512"], help="what ikq uses beside --reference"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.0, help="bound of each ratio, for the exit code")
    parser.add_argument("--table", type=Path, help="file for the tables (Markdown)")
    parser.add_argument("--plot", type=Path, help="file for the picture of the ratios (SVG)")
    return parser


def compare(args: argparse.Namespace, isa: str | None, reference: str | None) -> list[Ratio]:
    """Every type and test with one instruction set: a table, and the ratios over the reference's best."""
    tell = functools.partial(say, args.table)
    others = [f"ik {s}" for s in args.settings] if reference else []
    others += ["llama.cpp"] if args.llama else []
    tell(f"{machine()}, {args.threads} threads, {isa or 'best'} instruction set, {args.shape}\n")
    columns = [*(f"ikq {p}" for p in args.plans), *others, "over ik's best"]
    tell(table_head(["type", "layers", "test"], columns))
    tests = [test_name(n, 0) for n in args.prompt]
    tests += [test_name(n, args.gen) for n in args.depth or [0] if args.gen]
    ratios: list[Ratio] = []
    for n_layers, name in itertools.product(args.layers, args.types):
        with synthetic_model(args.shape, n_layers, name, args.models) as model:
            rounds = [one_round(args, isa, reference, model) for _ in range(args.repeat)]
        for test in tests:
            median = {
                program: statistics.median(r[program].get(test, math.nan) for r in rounds)
                for program in rounds[0]
            }
            known = [v for p, v in median.items() if p.startswith("ik ") and not math.isnan(v)]
            ratio = median[f"ikq {args.plans[0]}"] / max(known, default=math.nan)
            ratios.append(Ratio(isa or "best", name, n_layers, test, ratio))
            cells = [*(figure(v) for v in median.values()), figure(ratio, 2)]
            tell(table_row([name, str(n_layers), test, *cells]))
    tell("")
    for test in tests:
        values = [r.over_best for r in ratios if r.test == test]
        tell(f"{test}: geometric mean of ratios {figure(geometric_mean(values), 2)}")
    tell("")
    return ratios


def main() -> int:
    args = options().parse_args()
    ratios: list[Ratio] = []
    if args.reference or not args.reference_avx2:
        ratios += compare(args, args.isa, args.reference)
    if args.reference_avx2:
        ratios += compare(args, "avx2", args.reference_avx2)
    if args.plot:
        args.plot.write_text(draw(ratios), encoding="utf-8")
    return exit_code([r.over_best for r in ratios], args.least)


if __name__ == "__main__":
    sys.exit(main())
