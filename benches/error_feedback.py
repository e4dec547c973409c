"""What error feedback is worth: KL divergence of single types with it and without.

    python benches/error_feedback.py --out benches/results/error_feedback [--types Q2_K IQ4_KS ...] [--chunks 40] [--resume]
                                     [--ways feedback sequential max]

The bundled model becomes every TYPE (all block matrices of it, `token_embd` and `output` Q8_0, the router F32), without
feedback and in each of the ways, with an imatrix and covariances of the first 40 windows of the calibration text. All files
are measured in ikq's engine against the unquantized model, on the same windows of 512 of the held-out text; the error of a
ratio counts only what differs. Errors of products are those for windows 41 to 60 of the calibration text.

`--out NAME` writes NAME.md and NAME.jsonl, a row as soon as it is there; `--resume` goes on where NAME.jsonl ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from held_out_error import held_out_errors
from quality_table import MODELS, SOURCE, measured

import ikq
from ikq.evaluate import BaseFile, base_writer, cut, measure_perplexity, text_tokens
from ikq.quantizing.sequential import ROUNDS_OF_EFFORT
from ikq.statistics.calibrate import windows_of

TYPES = [
    *("IQ1_S", "IQ1_M", "IQ1_KT"),
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_KT", "Q2_K", "IQ2_K", "IQ2_KS", "IQ2_KL"),
    *("IQ3_XXS", "IQ3_S", "IQ3_KT", "Q3_K", "IQ3_K", "IQ3_KS"),
    *("Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "IQ4_K", "IQ4_KS", "IQ4_KSS", "IQ4_KT"),
    *("Q5_0", "Q5_1", "Q5_K", "IQ5_K", "IQ5_KS", "Q6_0", "Q6_K", "IQ6_K"),
]
WAYS = {"feedback": "with feedback", "sequential": "layer by layer", "max": "`--effort max`"}
GROUPS = {"4 bits and more": "456", "3 bits": "3", "2 bits and less": "12"}
# Windows that covariances are of, and those behind them that errors are measured with.
CALIBRATION, HELD_OUT = 40, 20
TEXT = MODELS / "text" / "calibration.txt"


def calibrated(folder: Path) -> tuple[Path, Path, Path]:
    """An imatrix, covariances, and those of other windows."""

    def collect(name: str, skip: int, chunks: int) -> tuple[Path, Path]:
        imatrix, covariances = folder / f"{name}.gguf", folder / f"{name}.cov"
        command = [sys.executable, "-m", "ikq", "imatrix", "-m", SOURCE, "-f", TEXT, "--chunk", skip]
        command += ["--chunks", chunks, "-c", 512, "--no-ppl", "-o", imatrix, "--covariance", covariances]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        return imatrix, covariances

    return *collect("model", 0, CALIBRATION), collect("other", CALIBRATION, HELD_OUT)[1]


def rows(
    types: list[str], ways: list[str], text: Path, chunks: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """One row per type."""
    imatrix, covariances, others = calibrated(folder)
    with ikq.Model.load(SOURCE, n_ctx=512) as model:
        windows = cut(text_tokens(model.tokenizer, text.read_text()), chunks=chunks)
        calibration = windows_of(model.tokenizer, TEXT.read_text(), chunks=CALIBRATION)
        with base_writer(folder / "base", windows, model.spec.n_vocab) as sink:
            *_, _ = measure_perplexity(model, windows, sink)
    base = BaseFile(folder / "base")
    out = folder / "out.gguf"
    options: dict[str, Any] = {"pure": True, "imatrix": imatrix}
    options |= {"token_embedding_type": "q8_0", "output_tensor_type": "q8_0"}
    for name in types:
        ikq.quantize_file(SOURCE, out, name, restart=True, **options)
        plain, errors = measured(out, base, chunks), held_out_errors(SOURCE, out, others)
        row = {"type": name, "windows": windows.n, "kld": plain.mean.value, "ppl": plain.ppl.value}
        for way in ways:
            if way == "feedback":
                ikq.quantize_file(SOURCE, out, name, restart=True, error_feedback=covariances, **options)
            else:
                rounds = ROUNDS_OF_EFFORT["max" if way == "max" else "normal"]
                ikq.quantize_sequentially(SOURCE, out, name, calibration, rounds=rounds, **options)
            found, fed = measured(out, base, chunks), held_out_errors(SOURCE, out, others)
            mean = plain.divergence.mean()
            ratio = found.divergence.mean() / mean
            spread = (found.divergence - ratio * plain.divergence).std() / np.sqrt(len(plain.divergence))
            row[way] = {
                "kld": found.mean.value,
                "ppl": found.ppl.value,
                "ratio": ratio,
                "ratio_error": spread / mean,
                "error": sum(fed.values()) / sum(errors.values()),
                "error_mean": float(np.exp(np.mean([np.log(fed[at] / errors[at]) for at in errors]))),
                "error_worst": max(fed[at] / errors[at] for at in errors),
            }
        yield row


def document(found: list[dict[str, Any]]) -> str:
    """All of the page."""
    n = found[0]["windows"]
    ways = [way for way in WAYS if way in found[0]]
    lines = [
        "# Error feedback",
        "",
        f"`python benches/error_feedback.py --ways {' '.join(ways)} --out benches/results/error_feedback`",
        "",
        "The tiny MoE of `tests/data` as every type (all block matrices of one type, embedding and output Q8_0, router F32), with an imatrix and",
        f"covariances of the first {CALIBRATION} windows of the calibration text; KL divergence from the unquantized model on {n} windows of 512 of the",
        "held-out text, as a ratio to that of the file without feedback, with its standard error. *Error* is tr(dW H dW^T), H of the next",
        f"{HELD_OUT} windows of the calibration text: the geometric mean of the ratios of all matrices (experts by themselves), and the worst.",
        "",
        "| TYPE | KLD | PPL |" + "".join(f" {WAYS[way]} | PPL | error | worst |" for way in ways),
        "| --- | --: | --: |" + " --: | --: | --: | --: |" * len(ways),
    ]
    order = {name: i for i, name in enumerate(TYPES)}
    found = sorted(found, key=lambda r: order.get(r["type"], len(order)))
    for r in found:
        cells = [r["type"], f"{r['kld']:.5f}", f"{r['ppl']:.3f}"]
        for way in ways:
            w = r[way]
            cells += [f"{w['ratio']:.3f} ± {w['ratio_error']:.3f}", f"{w['ppl']:.3f}"]
            cells += [f"{w['error_mean']:.3f}", f"{w['error_worst']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for what, ends in GROUPS.items():
        group = [r for r in found if any(r["type"].lstrip("IQ").startswith(bits) for bits in ends)]
        if group:
            means = [np.exp(np.mean([np.log(r[way]["ratio"]) for r in group])) for way in ways]
            shown = ", ".join(f"{WAYS[way]} {mean:.3f}" for way, mean in zip(ways, means, strict=True))
            lines += ["", f"Geometric mean of {what} ({len(group)} types): {shown}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, default=MODELS / "text" / "heldout.txt")
    parser.add_argument("--types", nargs="+", default=TYPES, help="only these types")
    parser.add_argument("--ways", nargs="+", default=["feedback"], choices=list(WAYS))
    parser.add_argument("--chunks", type=int, default=-1, help="most windows (-1: all 147)")
    parser.add_argument("--out", type=Path, help="names of the files that are written, without suffix")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    args = parser.parse_args()
    raw = args.out.with_suffix(".jsonl") if args.out else None
    found: list[dict[str, Any]] = []
    if raw and args.resume and raw.exists():
        found = [json.loads(line) for line in raw.read_text().splitlines()]
    elif raw:
        raw.write_text("")
    wanted = [name for name in args.types if name not in {r["type"] for r in found}]
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(wanted, args.ways, args.text, args.chunks, Path(folder)) if wanted else ():
            found.append(row)
            print(json.dumps(row), flush=True)
            if raw:
                with raw.open("a") as f:
                    f.write(json.dumps(row) + "\n")
    text = document(found)
    if args.out:
        args.out.with_suffix(".md").write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
