"""Mixes with error feedback and layer by layer, beside the reference's files.

    python benches/quality_ways.py --reference PATH/llama-quantize --out benches/results/quality_mixes

Goes on with what `quality_table.py --out` has written: every mix with an imatrix is made with error feedback and layer
by layer, too, and measured on the same windows as its file by the reference. The imatrix and covariances of these
files, and the text that layers are made for, are the first 40 windows of the calibration text; the reference's file
has the imatrix of the table. Rows get their ways one after another in NAME.jsonl, those that are there are kept
(`--again`: but not these ways); NAME.md gets a table of them at its end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from calibrated import CALIBRATION, collected
from quality_table import MODELS, SOURCE, Case, figures, measured, ratio, unquantized_model

import ikq
from ikq.statistics.calibrate import windows_of

TEXT = MODELS / "text" / "calibration.txt"
WAYS = {"feedback": "with feedback", "sequential": "layer by layer"}
TITLE = "## With error feedback and layer by layer"


def lacks(row: dict[str, Any]) -> list[str]:
    """Ways that a row could have and has not."""
    return [way for way in WAYS if row["is_mix"] and row["imatrix"] and "reference" in row and way not in row]


def add_ways(
    found: list[dict[str, Any]], reference: str, text: Path, chunks: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Completes rows, and yields each."""
    imatrix, covariances = collected(folder, "model", SOURCE, TEXT, 0, CALIBRATION)
    with ikq.Model.load(SOURCE, n_ctx=512) as model:
        calibration = windows_of(model.tokenizer, TEXT.read_text(), chunks=CALIBRATION)
    base, unquantized = unquantized_model(text, chunks, folder)
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    for row in found:
        if unquantized["windows"] != row["windows"]:
            raise SystemExit(f"{row['name']} was measured on {row['windows']} windows")
        case = Case(row["name"], row["is_mix"], row["imatrix"])
        if not case.write_with(reference, theirs):
            raise SystemExit(f"the reference makes no {case.name}")
        beside = measured(theirs, base, chunks)
        if not np.isclose(beside.mean.value, row["reference"]["kld"], rtol=1e-3):
            raise SystemExit(f"{case.name}: the reference's file is another one than the row's")
        options = case.options() | {"imatrix": imatrix, "restart": True}
        for way in lacks(row):
            if way == "feedback":
                ikq.quantize_file(SOURCE, ours, case.type, error_feedback=covariances, **options)
            else:
                ikq.quantize_sequentially(SOURCE, ours, case.type, calibration, **options)
            divergence = measured(ours, base, chunks)
            row[way] = figures(ours, divergence) | ratio(divergence, beside)
        yield row


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    """The rows with ways as Markdown."""
    yield (
        "| TYPE | bits per weight | KLD, reference | KLD, ikq | ratio |"
        + "".join(f" KLD, {title} | ratio | PPL, {title} |" for title in WAYS.values())
    )
    yield "| --- | --: | --: | --: | --: |" + " --: | --: | --: |" * len(WAYS)
    for row in found:
        cells = [row["name"], f"{row['ikq']['bpw']:.3f}"]
        cells += [f"{row[which]['kld']:.6f}" for which in ("reference", "ikq")]
        cells.append(f"{row['kld_ratio']:.3f} ± {row['kld_ratio_error']:.3f}")
        for way in (row[way] for way in WAYS):
            cells += [f"{way['kld']:.6f}", f"{way['kld_ratio']:.3f} ± {way['kld_ratio_error']:.3f}"]
            cells.append(f"{way['ppl']:.4f}")
        yield f"| {' | '.join(cells)} |"
    mean, *means = (
        f"{np.exp(np.mean([np.log(of['kld_ratio']) for of in part])):.3f}"
        for part in (found, *([r[way] for r in found] for way in WAYS))
    )
    yield f"| geometric mean | | | | {mean} |" + "".join(f" | {of_way} | |" for of_way in means)


def document(found: list[dict[str, Any]]) -> str:
    """The section about ways."""
    lines = [
        TITLE,
        "",
        "`python benches/quality_ways.py --reference PATH/llama-quantize --out benches/results/quality_mixes`",
        "",
        f"The same mixes, with an imatrix and covariances of the first {CALIBRATION} windows of the calibration text, which layers are made for, too. All files are",
        "measured as they are, on the same windows; ratios are to the reference's file, which has the table's imatrix, and no such ways.",
        "",
        *table(found),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", required=True, help="llama-quantize of ik_llama.cpp")
    parser.add_argument("--text", type=Path, default=MODELS / "text" / "heldout.txt")
    parser.add_argument(
        "--chunks", type=int, default=-1, help="windows that the rows were measured on (-1: all)"
    )
    parser.add_argument("--out", type=Path, required=True, help="names of the files, without suffix")
    parser.add_argument("--types", nargs="+", help="only these mixes")
    parser.add_argument("--again", action="store_true", help="measure ways anew that are there")
    args = parser.parse_args()
    raw, page = args.out.with_suffix(".jsonl"), args.out.with_suffix(".md")
    found: list[dict[str, Any]] = [json.loads(line) for line in raw.read_text().splitlines()]
    wanted = [r for r in found if args.types is None or r["name"] in args.types]
    if args.again:
        for row in wanted:
            for way in WAYS:
                row.pop(way, None)
    wanted = [r for r in wanted if lacks(r)]
    reference = str(Path(args.reference).resolve())
    with tempfile.TemporaryDirectory() as folder:
        for row in add_ways(wanted, reference, args.text, args.chunks, Path(folder)) if wanted else ():
            print(row["name"], *(f"{way} {row[way]['kld_ratio']:.3f}" for way in WAYS), flush=True)
            raw.write_text("".join(json.dumps(r) + "\n" for r in found))
    done = [r for r in found if all(way in r for way in WAYS)]
    if done:
        before = page.read_text().partition(f"\n{TITLE}\n")[0].rstrip()
        page.write_text(f"{before}\n\n{document(done)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
