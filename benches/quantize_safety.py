"""Quantizing when things go wrong and when they go on: kills, threads, predictions. Fails where a bound is broken.

python benches/quantize_safety.py kills        50 kills of a run on a model of 1 GB
python benches/quantize_safety.py threads      3, 7, 13 and 47 threads beside 2, for 8, 64 and 512 experts
python benches/quantize_safety.py predictions  time and peak memory of --dry-run beside those of the run
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import ikq

KILLS = 50
THREADS = (2, 3, 7, 13, 47)
SLOWER_AT_MOST = 1.10
TIME_WITHIN = 0.30
MEMORY_WITHIN = 0.10

# Runs a command and says what it needed; the system's own count of a child's peak begins with its parent's.
WITH_PEAK = """
import re, sys
from ikq.__main__ import main
code = main(sys.argv[1:])
print("peak", int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
sys.exit(code)
"""


def write_model(path: Path, n_experts: int, n_rows: int, n: int, n_layer: int) -> Path:
    """A BF16 model of expert matrices (and nothing else), random normal weights."""
    rng = np.random.default_rng(n_experts)
    with ikq.GGUFWriter(path, {"general.architecture": "llama", "general.name": "synthetic"}) as writer:
        for layer in range(n_layer):
            for role in ("gate", "up", "down"):
                one = rng.standard_normal((n_rows, n), dtype=np.float32) * np.float32(0.02)
                x = np.stack([np.roll(one, e, axis=1) for e in range(n_experts)])
                tensor = ikq.QTensor.quantize(x, "BF16")
                writer.add_tensor(f"blk.{layer}.ffn_{role}_exps.weight", tensor)
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "ikq", "quantize", *map(str, words)]


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kills(folder: Path) -> bool:
    """Kills a run at random moments, as often as it takes, and compares what comes out."""
    source = write_model(folder / "m.gguf", n_experts=16, n_rows=1024, n=2048, n_layer=5)
    whole, out = folder / "whole.gguf", folder / "out.gguf"
    start = time.perf_counter()
    subprocess.run(command(source, whole, "IQ3_KT", 2), check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    rng = random.Random(50)
    n_kills = n_ended = 0
    while n_kills < KILLS:
        process = subprocess.Popen(command(source, out, "IQ3_KT", 2), stdout=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.3, 2 * seconds / KILLS + 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            n_ended += 1
            same = digest(out) == digest(whole)
            out.unlink()
            if not same:
                print("**the bytes differ**")
                return False
            continue
        assert process.returncode == -signal.SIGKILL
        n_kills += 1
    last = subprocess.run(command(source, out, "IQ3_KT", 2), check=True, capture_output=True, text=True)
    went_on = re.search(r"going on: (\d+) of (\d+) items are done$", last.stdout, re.MULTILINE)
    same = digest(out) == digest(whole)
    print(
        f"{source.stat().st_size / 1e9:.2f} GB, IQ3_KT, 2 threads, {seconds:.0f} s uninterrupted: {n_kills} kills; the "
        f"run before the last {f'had done {went_on[1]} of {went_on[2]} items' if went_on else 'had done nothing'}, "
        f"none of them damaged; {n_ended} runs came to their end in between. "
        f"Bytes of the output equal those of an uninterrupted run: **{'yes' if same else 'NO'}**."
    )
    return same


def threads(folder: Path) -> bool:
    """Times of the same quantization with different numbers of threads, in turns."""
    print("| experts | " + " | ".join(f"{n} threads, s" for n in THREADS) + " | worst over 2 |")
    print("| --: | " + "--: | " * len(THREADS) + "--: |")
    good = True
    for n_experts, n_rows, n in [(8, 2048, 2048), (64, 512, 1024), (512, 128, 512)]:
        source = write_model(folder / f"{n_experts}.gguf", n_experts, n_rows, n, n_layer=1)
        plan = ikq.plan_quantization(source, folder / "o.gguf", "IQ4_K")
        times: dict[int, list[float]] = {n: [] for n in THREADS}
        for _ in range(5):
            for n_threads in THREADS:
                times[n_threads].append(plan.run(n_threads=n_threads).seconds)
        medians = [statistics.median(times[n]) for n in THREADS]
        worst = max(medians[1:]) / medians[0]
        good &= worst <= SLOWER_AT_MOST
        print(f"| {n_experts} | " + " | ".join(f"{t:.2f}" for t in medians) + f" | {worst:.3f} |", flush=True)
    return good


def predictions(folder: Path) -> bool:
    """What a dry run says beside what the run takes."""
    source = write_model(folder / "m.gguf", n_experts=16, n_rows=1024, n=2048, n_layer=3)
    imatrix = Path(__file__).parent.parent / "tests" / "data" / "imatrix-plain.dat"
    bundled = imatrix.with_name("tiny-moe-bf16.gguf")
    print(f"{source.stat().st_size / 1e6:.0f} MB of BF16 experts, 2 threads; medians of 3.\n")
    print("| type | said, s | took, s | ratio | said, MiB | peak, MiB | ratio | size to the byte |")
    print("| --- | --: | --: | --: | --: | --: | --: | --- |")
    good = True
    models = [(source, t) for t in ("Q8_0", "Q4_0", "Q4_K", "IQ4_K", "IQ2_KS", "IQ3_KT")] + [
        (bundled, "IQ4_KT")
    ]
    for model, type_name in models:
        out = folder / "o.gguf"
        rows = []
        for _ in range(3):
            dry = subprocess.run(
                command("--dry-run", model, out, type_name, 2), capture_output=True, text=True, check=True
            ).stdout
            ran = subprocess.run(
                [sys.executable, "-c", WITH_PEAK, "quantize", str(model), str(out), type_name, "2"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            rows.append(
                (
                    float(re.search(r"time = ([\d.]+) s", dry)[1]),
                    float(re.search(r"quantize time = ([\d.]+) s", ran)[1]),
                    float(re.search(r"peak memory = (\d+) MiB", dry)[1]),
                    float(re.search(r"peak (\d+)", ran)[1]) / 2**20,
                )
            )
            size = int(re.search(r"would have (\d+) bytes", dry)[1])
        said, took, said_mib, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        exact = out.stat().st_size == size
        good &= exact and abs(said / took - 1) <= TIME_WITHIN and abs(said_mib / peak - 1) <= MEMORY_WITHIN
        name = type_name if model is source else f"{type_name}, bundled model"
        print(
            f"| {name} | {said:.2f} | {took:.2f} | {said / took:.2f} | {said_mib:.0f} | {peak:.0f} | "
            f"{said_mib / peak:.2f} | {'yes' if exact else 'NO'} |",
            flush=True,
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["kills", "threads", "predictions"])
    parser.add_argument(
        "--folder", type=Path, help="where models and outputs go (default: a temporary folder)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure = {"kills": kills, "threads": threads, "predictions": predictions}[args.what]
        return 0 if measure(Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
