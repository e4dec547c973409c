"""`make bench`: what this machine reaches, as Markdown on standard output.

1. decode throughput per type and instruction set, beside the machine's read bandwidth
2. encode speed per type and instruction set
3. encode quality: error of every encoder as a ratio to the reference's
4. quantizing: numbers of threads, predictions of dry runs, 50 kills
5. perplexity of the bundled model in the engine, exact and by default, and of files that the reference wrote; how
   far compact base files are from full ones; perplexity and divergence of every type and ten mixes, without and with
   imatrix (where ../shared has the text), beside the reference's files with IKQ_REFERENCE_QUANTIZE
6. with IKQ_REFERENCE_QUANTIZE=PATH/llama-quantize (of ik_llama.cpp): CPU time of every TYPE against it, interleaved
7. with IKQ_REFERENCE_BENCH=PATH/llama-bench (of ik_llama.cpp): tokens per second against it, interleaved

Parts by themselves: `python benches/run.py plots` (draws benches/results/plots.md's plots from the committed figures)
and `python benches/run.py type-speed` (measures speeds by type for each instruction set, then draws); all else runs the above and draws the plots.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parent.parent

# Names of TYPE as the reference has them: those that it encodes nearly as fast as it reads, those that it searches.
FAST = ["BF16", "Q8_0", "Q8_KV", "Q8_0_R8", "Q8_K_R8", "Q8_KV_R8", "MXFP4", "IQ1_BN", "IQ2_BN", "IQ2_BN_R4"]
SEARCHED = [
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q6_0",
    "Q2_K_S",
    "Q3_K_S",
    "Q4_K_S",
    "Q5_K_S",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_M",
    "IQ3_XXS",
    "IQ3_S",
    "IQ1_S",
    "IQ1_M",
    "IQ1_S_R4",
    "IQ1_M_R4",
    "IQ2_K",
    "IQ3_K",
    "IQ4_K",
    "IQ5_K",
    "IQ6_K",
    "IQ2_KS",
    "IQ3_KS",
    "IQ4_KS",
    "IQ4_KSS",
    "IQ5_KS",
    "IQ2_KL",
    "IQ1_KT",
    "IQ2_KT",
    "IQ3_KT",
    "IQ4_KT",
    "Q4_0_R8",
    "Q5_0_R4",
    "Q6_0_R4",
    "Q2_K_R4",
    "Q3_K_R4",
    "Q4_K_R4",
    "Q5_K_R4",
    "Q6_K_R4",
    "IQ2_XXS_R4",
    "IQ2_XS_R4",
    "IQ2_M_R4",
    "IQ3_XXS_R4",
    "IQ3_S_R4",
    "IQ4_NL_R4",
    "IQ4_XS_R8",
    "IQ2_K_R4",
    "IQ3_K_R4",
    "IQ4_K_R4",
    "IQ5_K_R4",
    "IQ4_KS_R4",
    "IQ5_KS_R4",
    "MXFP4_R8",
]
# Where the reference only rounds without an imatrix.
ROUNDED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_0_R8", "Q3_K_S"]

# Files that the reference wrote, and their perplexity in the reference.
SAMPLES = {
    "tiny-moe-q8-0-00001-of-00003.gguf": "24.5775",
    "tiny-moe-iq4-ks.gguf": "24.7138",
    "tiny-moe-iq3-k-r4.gguf": "24.9475",
    "tiny-moe-iq2-kt.gguf": "26.1872",
}


def section(title: str, *words: str) -> bool:
    """Runs a measurement; whether it says that its bounds hold."""
    print(f"\n## {title}\n\n`{' '.join(w.replace(sys.executable, 'python') for w in words)}`\n", flush=True)
    return subprocess.run(words, cwd=TOP).returncode == 0


def example(crate: str, name: str) -> list[str]:
    return ["cargo", "run", "--quiet", "--release", "--locked", "-p", crate, "--example", name]


RESULTS = "benches/results"


def plots() -> list[bool]:
    """Draws the plots of benches/results/plots.md from the figures beside them."""
    kinds = ("quality_table", "recipe_quality", "error_feedback")
    figures = [f"{RESULTS}/{kind}.jsonl" for kind in kinds]
    speeds = sorted(str(p.relative_to(TOP)) for p in (TOP / RESULTS).glob("type_speed_*.json"))
    return [
        section(
            "Plot of sizes",
            sys.executable,
            "benches/size_plot.py",
            *figures,
            f"{RESULTS}/size_divergence.svg",
        ),
        section(
            "Plot of speeds", sys.executable, "benches/speed_plot.py", *speeds, f"{RESULTS}/type_speed.svg"
        ),
    ]


SPEED_ROUNDS = 3


def type_speeds() -> list[bool]:
    """Measures speeds by type with two threads: instruction sets by turns, the best of some rounds of each figure."""
    held = []
    best: dict[str, dict[tuple[str, int], dict]] = {"avx2": {}, "avx512": {}}
    for number in range(1, SPEED_ROUNDS + 1):
        for isa, figures in best.items():
            words = [sys.executable, "-m", "ikq", "bench", "types", "-t", "2", "--isa", isa, "--json"]
            print(f"\nSpeed by type, {isa}, round {number} of {SPEED_ROUNDS}", flush=True)
            done = subprocess.run(words, cwd=TOP, stdout=subprocess.PIPE)
            held.append(done.returncode == 0)
            for row in json.loads(done.stdout) if held[-1] else []:
                key = (row["type"], row["n"])
                figures[key] = max(figures.get(key, row), row, key=lambda r: r["gmacs"])
    for isa, figures in best.items():
        if figures:
            text = json.dumps(list(figures.values()), indent=1)
            (TOP / RESULTS / f"type_speed_{isa}.json").write_text(text + "\n")
    return held


def main() -> int:
    parts = {"plots": plots, "type-speed": lambda: [*type_speeds(), *plots()]}
    if len(sys.argv) > 1:
        if sys.argv[1] not in parts:
            print(f"{sys.argv[1]}: no such part; parts are {', '.join(parts)}", file=sys.stderr)
            return 2
        return 0 if all(parts[sys.argv[1]]()) else 1
    held = [
        section("Decode throughput", *example("ikq-decode", "throughput")),
        section("Encode speed", *example("ikq-encode", "encode_speed")),
        section("Encode quality", sys.executable, "benches/encode_quality.py"),
    ]
    for what in ("threads", "predictions", "kills"):
        held.append(section(f"Quantizing, {what}", sys.executable, "benches/quantize_safety.py", what))
    models = TOP.parent / "shared" / "models"
    if models.is_dir():
        words = [
            sys.executable,
            "benches/engine_perplexity.py",
            "tests/data/tiny-moe-bf16.gguf",
            "--expect",
            "24.577",
        ]
        words += ["--tokenizer", str(models / "tiny-moe-hf" / "tokenizer.json")]
        words += ["--text", str(models / "text" / "heldout.txt")]
        held += [
            section("Perplexity, exact", *words, "--compute", "f32", "--within", "0.0005"),
            section("Perplexity, default", *words, "--within", "0.001"),
        ]
        samples = models / "samples"
        for name, expected in SAMPLES.items():
            words[2], words[4] = str(samples / name), expected
            held.append(section(f"Perplexity, {name}", *words, "--within", "0.003"))
        held.append(
            section(
                "Compact base files",
                sys.executable,
                "benches/compact_kld.py",
                "tests/data/tiny-moe-bf16.gguf",
                *(str(samples / name) for name in SAMPLES),
                "--text",
                str(models / "text" / "heldout.txt"),
            )
        )
        quantizer = os.environ.get("IKQ_REFERENCE_QUANTIZE")
        beside = ["--reference", quantizer] if quantizer else []
        held.append(section("Quality", sys.executable, "benches/quality_table.py", *beside))
    else:
        print("\n../shared is not there: no perplexity.")
    bench = os.environ.get("IKQ_REFERENCE_BENCH")
    if bench:
        held.append(section("Engine", sys.executable, "benches/engine_speed.py", "--reference", bench))
    else:
        print("\nIKQ_REFERENCE_BENCH is not set: no comparison with another engine.")
    reference = os.environ.get("IKQ_REFERENCE_QUANTIZE")
    if reference:
        words = [sys.executable, "benches/quantize_against.py", "--reference", f"reference={reference}"]
        held += [
            section("Against the reference, fast types", *words, "--types", *FAST),
            section("Against the reference, searched types", *words, "--rows", "512", "--types", *SEARCHED),
            section("Against the reference, without imatrix", *words, "--no-imatrix", "--types", *ROUNDED),
        ]
    else:
        print("\nIKQ_REFERENCE_QUANTIZE is not set: no comparison with another quantizer.")
    held += plots()
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
