"""Tokens per second of the engine against ik_llama.cpp's bench program, in the same run, in turn.

    python benches/engine_speed.py --reference PATH/llama-bench --types Q8_0 Q4_K IQ4_KS

The model has the shape of Qwen3-30B-A3B with 2 layers (`synthetic_models.py`), all block matrices of one type. pp512:
one prompt of 512 tokens; tg64: 64 tokens, one at a time, from an empty cache. The reference runs with its default
settings, on huge pages without mapping, and repacked at load time; what counts is the best of the three, per column.
Medians of `--repeat` rounds; a round is one process of each program, with a warm-up of its own.
"""

from __future__ import annotations

import argparse
import json
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
BOUNDS = {"pp512": 0.8, "tg64": 0.9}

MEASURE = """
import sys, time, ikq
path, threads = sys.argv[1], int(sys.argv[2])
with ikq.Model.load(path, n_ctx=1024, n_threads=threads) as model:
    prompt = [(7919 * i) % 32000 for i in range(512)]
    def pp():
        model.truncate(0)
        start = time.perf_counter()
        model.eval(prompt, want="last")
        return 512 / (time.perf_counter() - start)
    def tg():
        model.truncate(0)
        start = time.perf_counter()
        for i in range(64):
            model.eval([(104729 * i) % 32000], want="last")
        return 64 / (time.perf_counter() - start)
    pp(), tg()
    print(max(pp() for _ in range(1)), max(tg() for _ in range(1)))
"""


def ours(model: Path, threads: int) -> dict[str, float]:
    """One round of ikq."""
    words = [sys.executable, "-c", MEASURE, str(model), str(threads)]
    pp, tg = map(float, subprocess.run(words, check=True, capture_output=True, text=True).stdout.split())
    return {"pp512": pp, "tg64": tg}


def theirs(program: str, model: Path, threads: int, setting: list[str]) -> dict[str, float]:
    """One round of the reference."""
    words = [program, "-m", str(model), "-p", "512", "-n", "64", "-t", str(threads), "-r", "1", "-o", "json"]
    done = subprocess.run([*words, *setting], check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout[done.stdout.index("[") :])
    return {("pp512" if row["n_prompt"] else "tg64"): row["avg_ts"] for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", help="ik_llama.cpp's llama-bench")
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_K", "IQ4_KS"])
    parser.add_argument("--shape", default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--models", type=Path, help="folder where models are kept between runs")
    args = parser.parse_args()
    held = True
    print("| type | test | ikq, t/s | " + " | ".join(args.settings) + " | ikq over the best |")
    print("| --- | --- | --: |" + " --: |" * (len(args.settings) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for name in args.types:
            model = (args.models or Path(folder)) / f"{args.shape}-{args.layers}-{name}.gguf"
            if not model.exists():
                maker = Path(__file__).with_name("synthetic_models.py")
                layers = ["--layers", str(args.layers)]
                words = [sys.executable, str(maker), args.shape, *layers, "--type", name, "-o", str(model)]
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            rounds: dict[str, list[dict[str, float]]] = {"ikq": []}
            for _ in range(args.repeat):
                rounds["ikq"].append(ours(model, args.threads))
                if args.reference:
                    for s in args.settings:
                        row = theirs(args.reference, model, args.threads, SETTINGS[s])
                        rounds.setdefault(s, []).append(row)
            for test, bound in BOUNDS.items():
                median = {p: statistics.median(r[test] for r in rows) for p, rows in rounds.items()}
                others = [median[s] for s in args.settings if s in median]
                ratio = median["ikq"] / max(others) if others else float("nan")
                held &= not ratio < bound
                cells = " | ".join(f"{v:.1f}" for v in others) or "- |" * len(args.settings)
                print(f"| {name} | {test} | {median['ikq']:.1f} | {cells} | {ratio:.2f} |", flush=True)
            if not args.models:
                model.unlink()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
