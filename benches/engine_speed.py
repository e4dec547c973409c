"""Tokens per second of the engine against other programs' bench programs, in the same run, in turn.

    python benches/engine_speed.py --reference PATH/llama-bench --types Q8_0 Q4_K IQ4_KS
    python benches/engine_speed.py --reference PATH/llama-bench --llama PATH/llama-bench --layers 2 4 --gen 128 \\
        --plans fused separate merged --types Q8_0 Q4_K IQ4_KS IQ2_XXS

The model has the shape of Qwen3-30B-A3B with 2 layers (`synthetic_models.py`), all block matrices of one type. pp512:
one prompt of 512 tokens; tg64: 64 tokens, one at a time, from an empty cache. The reference (ik_llama.cpp) runs with
its default settings, on huge pages without mapping, and repacked at load time; what counts is the best of the three,
per column; llama.cpp runs with its defaults. Medians of `--repeat` rounds; a round is one process of each program,
with a warm-up of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = {
    "default": ["-fa", "1"],
    "huge pages": ["-fa", "1", "-thp", "1", "-mmp", "0"],
    "repacked": ["-fa", "1", "-rtr", "1"],
}
PLANS: dict[str, dict[str, bool]] = {
    "fused": {},
    "separate": {"fused_up_gate": False},
    "merged": {"merge_up_gate_experts": True},
}
BOUNDS = {"pp": 0.8, "tg": 0.9}

MEASURE = """
import json, sys, time, ikq
path, threads, n_gen, options = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
with ikq.Model.load(path, n_ctx=1024, n_threads=threads, **options) as model:
    prompt = [(7919 * i) % 32000 for i in range(512)]
    def pp():
        model.truncate(0)
        start = time.perf_counter()
        model.eval(prompt, want="last")
        return 512 / (time.perf_counter() - start)
    def tg():
        model.truncate(0)
        start = time.perf_counter()
        for i in range(n_gen):
            model.eval([(104729 * i) % 32000], want="last")
        return n_gen / (time.perf_counter() - start)
    pp(), tg()
    print(pp(), tg())
"""


def ours(model: Path, threads: int, n_gen: int, options: dict[str, bool]) -> dict[str, float]:
    """One round of ikq."""
    words = [sys.executable, "-c", MEASURE, str(model), str(threads), str(n_gen), json.dumps(options)]
    pp, tg = map(float, subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())
    return {"pp": pp, "tg": tg}


def theirs(program: str, model: Path, threads: int, n_gen: int, setting: list[str]) -> dict[str, float]:
    """One round of another program; nothing when it cannot load the type."""
    words = [
        program,
        "-m",
        str(model),
        "-p",
        "512",
        "-n",
        str(n_gen),
        "-t",
        str(threads),
        "-r",
        "1",
        "-o",
        "json",
    ]
    done = subprocess.run([*words, *setting], capture_output=True, text=True)
    if done.returncode or "[" not in done.stdout:
        return {}
    rows = json.loads(done.stdout[done.stdout.index("[") :])
    return {("pp" if row["n_prompt"] else "tg"): row["avg_ts"] for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", help="ik_llama.cpp's llama-bench")
    parser.add_argument("--llama", help="llama.cpp's llama-bench")
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_K", "IQ4_KS"])
    parser.add_argument("--shape", default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, nargs="+", default=[2])
    parser.add_argument("--gen", type=int, default=64, help="tokens of the second test")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=["fused"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--models", type=Path, help="folder where models are kept between runs")
    args = parser.parse_args()
    others = [f"ik {s}" for s in args.settings] if args.reference else []
    others += ["llama.cpp"] if args.llama else []
    print(
        f"| type | layers | test | {' | '.join([f'ikq {p}' for p in args.plans] + others)} | over ik's best |"
    )
    print("| --- | --: | --- |" + " --: |" * (len(args.plans) + len(others) + 1))
    held = True
    with tempfile.TemporaryDirectory() as folder:
        for n_layers, name in itertools.product(args.layers, args.types):
            model = (args.models or Path(folder)) / f"{args.shape}-{n_layers}-{name}.gguf"
            if not model.exists():
                maker = Path(__file__).with_name("synthetic_models.py")
                words = [sys.executable, str(maker), args.shape, "--layers", str(n_layers), "--type", name]
                subprocess.run([*words, "-o", str(model)], check=True, stdout=subprocess.DEVNULL)
            rounds: list[dict[str, dict[str, float]]] = []
            for _ in range(args.repeat):
                row = {f"ikq {p}": ours(model, args.threads, args.gen, PLANS[p]) for p in args.plans}
                for s in args.settings if args.reference else ():
                    row[f"ik {s}"] = theirs(args.reference, model, args.threads, args.gen, SETTINGS[s])
                if args.llama:
                    row["llama.cpp"] = theirs(args.llama, model, args.threads, args.gen, [])
                rounds.append(row)
            for test, bound in BOUNDS.items():
                median = {
                    p: statistics.median(r[p][test] for r in rounds)
                    for p in rounds[0]
                    if test in rounds[0][p]
                }
                best = max((v for p, v in median.items() if p.startswith("ik ")), default=math.nan)
                ratio = median[f"ikq {args.plans[0]}"] / best
                held &= not ratio < bound
                cells = [f"{median[p]:.1f}" if p in median else "-" for p in rounds[0]]
                label = "pp512" if test == "pp" else f"tg{args.gen}"
                print(f"| {name} | {n_layers} | {label} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)
            if not args.models:
                model.unlink()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
