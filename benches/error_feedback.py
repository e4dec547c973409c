"""What error feedback is worth: KL divergence of single types with it and without.

    python benches/error_feedback.py --out benches/results/error_feedback [--types Q2_K IQ4_KS ...] [--chunks 40] [--resume]

The bundled model becomes every TYPE (all block matrices of it, `token_embd` and `output` Q8_0, the router F32) twice, with
an imatrix and covariances of the first 40 windows of the calibration text. Both files are measured in ikq's engine against
the unquantized model, on the same windows of 512 of the held-out text; the error of the ratio counts only what differs.

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
from quality_table import MODELS, SOURCE, measured

import ikq
from ikq.evaluate import BaseFile, base_writer, cut, measure_perplexity, text_tokens

TYPES = [
    *(
        "IQ1_S",
        "IQ1_M",
        "IQ1_KT",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ2_S",
        "IQ2_KT",
        "Q2_K",
        "IQ2_K",
        "IQ2_KS",
        "IQ2_KL",
    ),
    *("IQ3_XXS", "IQ3_S", "IQ3_KT", "Q3_K", "IQ3_K", "IQ3_KS"),
    *("Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "IQ4_K", "IQ4_KS", "IQ4_KSS", "IQ4_KT"),
    *("Q5_0", "Q5_1", "Q5_K", "IQ5_K", "IQ5_KS", "Q6_0", "Q6_K", "IQ6_K"),
]
CALIBRATION = 40


def calibrated(folder: Path) -> tuple[Path, Path]:
    """An imatrix and covariances."""
    imatrix, covariances = folder / "imatrix.gguf", folder / "model.cov"
    command = [
        sys.executable,
        "-m",
        "ikq",
        "imatrix",
        "-m",
        SOURCE,
        "-f",
        MODELS / "text" / "calibration.txt",
    ]
    command += ["--chunks", CALIBRATION, "-c", 512, "--no-ppl", "-o", imatrix, "--covariance", covariances]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return imatrix, covariances


def rows(types: list[str], text: Path, chunks: int, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per type."""
    imatrix, covariances = calibrated(folder)
    with ikq.Model.load(SOURCE, n_ctx=512) as model:
        windows = cut(text_tokens(model.tokenizer, text.read_text()), chunks=chunks)
        with base_writer(folder / "base", windows, model.spec.n_vocab) as sink:
            *_, _ = measure_perplexity(model, windows, sink)
    base = BaseFile(folder / "base")
    out = folder / "out.gguf"
    for name in types:
        found = []
        for feedback in (None, covariances):
            options: dict[str, Any] = {
                "pure": True,
                "restart": True,
                "imatrix": imatrix,
                "error_feedback": feedback,
            }
            options |= {"token_embedding_type": "q8_0", "output_tensor_type": "q8_0"}
            ikq.quantize_file(SOURCE, out, name, **options)
            found.append(measured(out, base, chunks))
        plain, fed = (f.divergence for f in found)
        ratio = fed.mean() / plain.mean()
        yield {
            "type": name,
            "windows": windows.n,
            "kld": found[0].mean.value,
            "kld_feedback": found[1].mean.value,
            "ratio": ratio,
            "ratio_error": (fed - ratio * plain).std() / np.sqrt(len(fed)) / plain.mean(),
            "ppl": found[0].ppl.value,
            "ppl_feedback": found[1].ppl.value,
        }


def document(found: list[dict[str, Any]]) -> str:
    """All of the page."""
    n = found[0]["windows"]
    lines = [
        "# Error feedback",
        "",
        "`python benches/error_feedback.py --out benches/results/error_feedback`",
        "",
        "The tiny MoE of `tests/data` as every type (all block matrices of one type, embedding and output Q8_0, router F32), with an imatrix and",
        f"covariances of the first {CALIBRATION} windows of the calibration text; KL divergence from the unquantized model on {n} windows of 512 of the",
        "held-out text, with the standard error of the paired ratio.",
        "",
        "| TYPE | KLD | with feedback | ratio | PPL | with feedback |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    order = {name: i for i, name in enumerate(TYPES)}
    for r in sorted(found, key=lambda r: order.get(r["type"], len(order))):
        ratio = f"{r['ratio']:.3f} ± {r['ratio_error']:.3f}"
        ppl = f"{r['ppl']:.3f} | {r['ppl_feedback']:.3f}"
        lines.append(f"| {r['type']} | {r['kld']:.5f} | {r['kld_feedback']:.5f} | {ratio} | {ppl} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, default=MODELS / "text" / "heldout.txt")
    parser.add_argument("--types", nargs="+", default=TYPES, help="only these types")
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
        for row in rows(wanted, args.text, args.chunks, Path(folder)) if wanted else ():
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
