"""Seconds of CPU per weight of `ikq quantize` against other quantizers, on one core.

    python benches/quantize_against.py --reference ik=PATH/llama-quantize --types Q4_K IQ4_KS

The programs take turns (A B A B ...); what is quoted is the median of each, user time of the whole
process, one thread, pinned to one processor, less that of a `--dry-run` of the same program (starting it and
reading the model's header): what is left is reading, encoding and writing the weights. The types are applied to every matrix (`--pure`), with importance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from synthetic import write_imatrix, write_model


def cpu_seconds(words: list[str]) -> float:
    """User and system seconds of one run of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", metavar="NAME=PATH", action="append", default=[])
    parser.add_argument("--types", nargs="+", default=["Q4_K", "IQ4_KS"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4096, help="rows of the matrices (fewer for slow types)")
    parser.add_argument("--no-imatrix", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    references = dict(r.split("=", 1) for r in args.reference)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model.gguf", n_ff=args.rows)
        n_weights = 3 * 4096 * args.rows
        statistics_of = write_imatrix(Path(folder) / "model.dat", model)
        imatrix = [] if args.no_imatrix else ["--imatrix", str(statistics_of)]
        results = []
        start: dict[str, float] = {}
        for type_name in args.types:
            out = str(Path(folder) / "out.gguf")
            # Q4_K is the name of a mix elsewhere; --pure makes both mean the type
            tail = ["--pure", *imatrix, str(model), out, type_name, "1"]
            commands = {"ikq": [sys.executable, "-m", "ikq", "quantize", *tail]}
            commands |= {name: [path, *tail] for name, path in references.items()}
            if not start:
                for name, words in commands.items():
                    dry = [*words[: -len(tail)], "--dry-run", *tail]
                    start[name] = statistics.median(cpu_seconds(dry) for _ in range(5))
                print(", ".join(f"{name} starts in {s:.3f} s" for name, s in start.items()), flush=True)
            seconds: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(args.repeat):
                for name, words in commands.items():
                    seconds[name].append(cpu_seconds(words) - start[name])
            ns = {name: statistics.median(s) / n_weights * 1e9 for name, s in seconds.items()}
            spread = {name: (max(s) - min(s)) / statistics.median(s) for name, s in seconds.items()}
            results.append({"type": type_name, "ns_per_weight": ns, "spread": spread})
            faster = ", ".join(f"{ns[r] / ns['ikq']:.2f} x {r}" for r in references)
            figures = ", ".join(f"{name} {v:.1f} ns/weight (+-{spread[name]:.0%})" for name, v in ns.items())
            print(f"{type_name:10} {figures}; {faster}", flush=True)
    if args.json:
        machine = {"cpu": platform.processor() or platform.machine(), "imatrix": not args.no_imatrix}
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    slower = [
        r["type"]
        for r in results
        if any(ns < r["ns_per_weight"]["ikq"] for ns in r["ns_per_weight"].values())
    ]
    if slower:
        print(f"slower than a reference: {', '.join(slower)}")
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
