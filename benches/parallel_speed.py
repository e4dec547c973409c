"""Tokens per second of several sequences that are computed in common steps, beside ik_llama.cpp's llama-batched-bench.

    python benches/parallel_speed.py --reference PATH/llama-batched-bench --least 1.0 --gain 3.5

Every sequence reads a prompt of its own of 128 tokens, all prompts in one step; then all get 64 tokens more, one per
step and sequence, with logits. `pp` and `tg` are tokens of all sequences per second of the two parts; the gain is tg
over that of the first number of sequences, which is one. The model has the shape of Llama-3-8B with 4 layers and
random weights (`synthetic_models.py`); the reference repeats a single token, so shapes with experts do not compare.
The reference runs with its default settings, on huge pages without mapping, and repacked at load time; what counts is
the best of the three, per figure. Medians of `--repeat` rounds; a round is one process of each program, which goes
through all numbers of sequences after a warm-up. With `--least R` the exit code is 1 if ikq has less than R times the
tg of the reference's best for any number of sequences, with `--gain G` also if the largest number of sequences gains
less than G times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from side_by_side import (
    absolute,
    add_model_options,
    exit_code,
    figure,
    isa_environment,
    machine,
    synthetic_model,
    table_head,
    table_row,
)

SETTINGS = {
    "default": ["-fa", "on"],
    "huge pages": ["-fa", "on", "-thp", "--no-mmap"],
    "repacked": ["-fa", "on", "-rtr"],
}

MEASURE = """
import json, sys, time, ikq
from contextlib import ExitStack
path, threads, counts, n_prompt, n_gen = sys.argv[1], *map(json.loads, sys.argv[2:])
def token(i):
    return (7919 * i) % 32000
def speeds(model, n):
    with ExitStack() as stack:
        sequences = [stack.enter_context(model.new_sequence()) for _ in range(n)]
        prompts = [[token(n_prompt * s + i) for i in range(n_prompt)] for s in range(n)]
        start = time.perf_counter()
        model.step([(s, tokens, "last") for s, tokens in zip(sequences, prompts)])
        middle = time.perf_counter()
        for i in range(n_gen):
            model.step([(s, [token(n_gen * j + i)], "last") for j, s in enumerate(sequences)])
        end = time.perf_counter()
    return {"pp": n * n_prompt / (middle - start), "tg": n * n_gen / (end - middle)}
with ikq.Model.load(path, n_ctx=n_prompt + n_gen, n_threads=threads) as model:
    speeds(model, max(counts))
    print(json.dumps({n: speeds(model, n) for n in counts}))
"""

Speeds = dict[int, dict[str, float]]
"""Of each number of sequences: `pp` and `tg`."""


def ours(args: argparse.Namespace, model: Path) -> Speeds:
    """One round of ikq."""
    facts = [json.dumps(x) for x in (args.threads, args.parallel, args.prompt, args.gen)]
    words = [sys.executable, "-c", MEASURE, str(model), *facts]
    environment = isa_environment(args.isa)
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, env=environment)
    return {int(n): row for n, row in json.loads(done.stdout).items()}


def theirs(args: argparse.Namespace, model: Path, setting: list[str]) -> Speeds:
    """One round of the reference; nothing when it cannot load the type."""
    most = max(args.parallel)
    n_ctx = most * (args.prompt + args.gen)
    counts = ",".join(map(str, [most, *args.parallel]))  # the first time is its warm-up
    words = [args.reference, "-m", str(model), "-c", str(n_ctx), "-b", str(n_ctx), "-ub", "512"]
    words += ["-t", str(args.threads), "-npp", str(args.prompt), "-ntg", str(args.gen), "-npl", counts]
    done = subprocess.run([*words, *setting], capture_output=True, text=True, cwd=model.parent)
    found: Speeds = {}
    for line in (done.stdout + done.stderr).splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if len(cells) == 10 and cells[0].isdigit():
            found[int(cells[2])] = {"pp": float(cells[5]), "tg": float(cells[7])}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", type=absolute, help="ik_llama.cpp's llama-batched-bench")
    add_model_options(parser, shape="llama-3-8b", layers=4, types=["IQ4_KS"])
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of sequences")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each sequence's prompt")
    parser.add_argument("--gen", type=int, default=64, help="tokens of each sequence in joint steps")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--isa", choices=["scalar", "avx2", "avx512"], help="instruction set that ikq uses")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.0, help="bound of tg over the reference's best")
    parser.add_argument("--gain", type=float, default=0.0, help="bound of the largest number's gain in tg")
    args = parser.parse_args()
    settings = args.settings if args.reference else []
    print(f"{machine()}, {args.threads} threads, {args.isa or 'best'} instruction set, {args.shape}\n")
    columns = ["ikq", *(f"ik {s}" for s in settings), "over ik's best", "gain", "ik's gain"]
    print(table_head(["type", "layers", "sequences", "test"], columns), flush=True)
    ratios, gains = [], []
    for n_layers, name in itertools.product(args.layers, args.types):
        with synthetic_model(args.shape, n_layers, name, args.models) as model:
            rounds = []
            for _ in range(args.repeat):
                row = {"ikq": ours(args, model)}
                row |= {f"ik {s}": theirs(args, model, SETTINGS[s]) for s in settings}
                rounds.append(row)
        one: dict[str, float] = {}
        for n, test in itertools.product(args.parallel, ["pp", "tg"]):
            median = {
                program: statistics.median(r[program].get(n, {}).get(test, math.nan) for r in rounds)
                for program in rounds[0]
            }
            known = [v for p, v in median.items() if p != "ikq" and not math.isnan(v)]
            best = {"ikq": median["ikq"], "ik": max(known, default=math.nan)}
            cells = [*(figure(v) for v in median.values()), figure(best["ikq"] / best["ik"], 2)]
            if test == "tg":
                one = one or best
                ratios.append(best["ikq"] / best["ik"])
                gain = {p: best[p] / one[p] for p in best}
                cells += [figure(gain["ikq"], 2), figure(gain["ik"], 2)]
            else:
                cells += ["", ""]
            print(table_row([name, str(n_layers), str(n), test, *cells]), flush=True)
        gains.append(gain["ikq"])
    return exit_code(ratios, args.least) or exit_code(gains, args.gain)


if __name__ == "__main__":
    sys.exit(main())
