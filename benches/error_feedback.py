"""What error feedback is worth: KL divergence of single types with it and without.

    python benches/error_feedback.py --out benches/results/error_feedback [--types Q2_K IQ4_KS ...] [--chunks 40] [--resume]
                                     [--ways feedback feedback-max sequential max] [--stored] [--program PATH/llama-perplexity]

The bundled model becomes every TYPE (all block matrices of it, `token_embd` and `output` BF16 as in the source, the router
F32), without feedback and in each of the ways, with an imatrix and covariances of the first 40 windows of the calibration
text. The error of a ratio counts only what differs between both files, on the same windows of 512 of the held-out text.
Errors of products are those for windows 41 to 60 of the calibration text.

A file is measured by its weights alone: decoded to F32, so that ikq's engine computes with float activations, against the
unquantized model. Before, files were measured as they are, with `token_embd` and `output` Q8_0; but both of these, and
activations of eight bits, add a divergence of 0.0002 to every file, which is a quarter of what IQ6_K has in all, and no
choice of codes changes it. `--stored` has that measurement, too.

`--program` has another engine's perplexity of the same files; the error of a ratio is that of the windows' paired losses.

`--out NAME` writes NAME.md and NAME.jsonl, a row as soon as it is there; `--resume` keeps what NAME.jsonl has, and adds
types and ways that it has not.
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
from calibrated import CALIBRATION, HELD_OUT, collected
from file_perplexity import window_losses
from held_out_error import held_out_errors
from quality_table import ALIASES, MODELS, SOURCE, measured

import ikq
from ikq.evaluate import BaseFile, Divergence, base_writer, cut, measure_perplexity, text_tokens
from ikq.statistics.calibrate import windows_of

TYPES = [
    *("IQ1_S", "IQ1_M", "IQ1_KT"),
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_KT", "Q2_K", "IQ2_K", "IQ2_KS", "IQ2_KL"),
    *("IQ3_XXS", "IQ3_S", "IQ3_KT", "Q3_K", "IQ3_K", "IQ3_KS"),
    *("Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS", "IQ4_K", "IQ4_KS", "IQ4_KSS", "IQ4_KT"),
    *("Q5_0", "Q5_1", "Q5_K", "IQ5_K", "IQ5_KS", "Q6_0", "Q6_K", "IQ6_K"),
]
WAYS = {
    "feedback": "with feedback",
    "feedback-max": "feedback, `--effort max`",
    "sequential": "layer by layer",
    "max": "layer by layer, `--effort max`",
}
# The way that takes less effort.
NORMAL = {"feedback-max": "feedback", "max": "sequential"}
GROUPS = {"4 bits and more": "456", "3 bits": "3", "2 bits and less": "12"}
TEXT = MODELS / "text" / "calibration.txt"


def calibrated(folder: Path, source: Path) -> tuple[Path, Path, Path]:
    """An imatrix, covariances, and those of other windows."""
    _, others = collected(folder, "other", source, TEXT, CALIBRATION, HELD_OUT)
    return *collected(folder, "model", source, TEXT, 0, CALIBRATION), others


def compared(found: Divergence, plain: Divergence) -> dict[str, float]:
    """A file beside that without feedback."""
    mean = plain.divergence.mean()
    ratio = found.divergence.mean() / mean
    spread = (found.divergence - ratio * plain.divergence).std() / np.sqrt(len(plain.divergence))
    return {
        "kld": found.mean.value,
        "ppl": found.ppl.value,
        "ratio": float(ratio),
        "ratio_error": float(spread / mean),
    }


class Measuring:
    """Measures files against a base."""

    def __init__(self, base: BaseFile, chunks: int, folder: Path) -> None:
        self._base, self._chunks, self._folder = base, chunks, folder

    def weights(self, path: Path) -> Divergence:
        """What the weights make, in floats."""
        decoded = self._folder / "decoded.gguf"
        ikq.quantize_file(path, decoded, "F32", restart=True, allow_requantize=True)
        return measured(decoded, self._base, self._chunks)

    def as_stored(self, path: Path) -> Divergence:
        """What the engine makes of the file."""
        return measured(path, self._base, self._chunks)


def is_measured(row: dict[str, Any], way: str, program: Path | None) -> bool:
    """Whether a row has all that is wanted of a way."""
    return way in row and (program is None or "elsewhere" in row[way])


def rows(
    types: list[str],
    ways: list[str],
    text: Path,
    chunks: int,
    folder: Path,
    there: dict[str, dict[str, Any]],
    source: Path = SOURCE,
    program: Path | None = None,
    also_stored: bool = False,
) -> Iterator[dict[str, Any]]:
    """One row per type, with the ways that are there and those that are wanted."""
    imatrix, covariances, others = calibrated(folder, source)
    with ikq.Model.load(source, n_ctx=512) as model:
        windows = cut(text_tokens(model.tokenizer, text.read_text()), chunks=chunks)
        calibration = windows_of(model.tokenizer, TEXT.read_text(), chunks=CALIBRATION)
        with base_writer(folder / "base", windows, model.spec.n_vocab) as sink:
            *_, _ = measure_perplexity(model, windows, sink)
    measuring = Measuring(BaseFile(folder / "base"), chunks, folder)
    plain_file, out = folder / "plain.gguf", folder / "out.gguf"
    options: dict[str, Any] = {"pure": True, "imatrix": imatrix}
    stored = options | {"token_embedding_type": "q8_0", "output_tensor_type": "q8_0"}
    options |= {"token_embedding_type": "bf16", "output_tensor_type": "bf16"}
    for name in types:
        ftype = ALIASES.get(name, name)
        row = there.get(name, {}) | {"type": name, "windows": windows.n}
        ikq.quantize_file(source, plain_file, ftype, restart=True, **options)
        if not all(way in row for way in ways):
            plain, errors = measuring.weights(plain_file), held_out_errors(source, plain_file, others)
            row |= {"kld": plain.mean.value, "ppl": plain.ppl.value}
        if program and not all(is_measured(row, way, program) for way in ways):
            elsewhere = window_losses(program, plain_file, text)
            row["ppl_elsewhere"] = float(np.exp(elsewhere.mean()))
        # what was measured now, and its held-out errors
        now: dict[str, tuple[Divergence, dict[tuple[str, int], float]]] = {}
        for way in ways:
            if is_measured(row, way, program):
                continue
            more = options | {"effort": "max" if way.endswith("max") else "normal"}
            if way.startswith("feedback"):
                ikq.quantize_file(source, out, ftype, restart=True, error_feedback=covariances, **more)
            else:
                ikq.quantize_sequentially(source, out, ftype, calibration, **more)
            if way not in row:
                fed = held_out_errors(source, out, others)
                now[way] = measuring.weights(out), fed
                row[way] = compared(now[way][0], plain) | {
                    "error": sum(fed.values()) / sum(errors.values()),
                    "error_mean": float(np.exp(np.mean([np.log(fed[at] / errors[at]) for at in errors]))),
                    "error_worst": max(fed[at] / errors[at] for at in errors),
                }
                if (normal := NORMAL.get(way)) in now:
                    of_normal, errors_of_normal = now[normal]
                    ratios = [fed[at] / errors_of_normal[at] for at in errors_of_normal]
                    row[way]["to_normal"] = compared(now[way][0], of_normal) | {
                        "error_mean": float(np.exp(np.mean(np.log(ratios)))),
                        "error_worst": max(ratios),
                    }
            if program:
                lower = window_losses(program, out, text) - elsewhere
                row[way] |= {
                    "elsewhere": float(np.exp(lower.mean())),
                    "elsewhere_error": float(lower.std() / np.sqrt(len(lower))),
                }
        if also_stored and "as_stored" not in row:
            ikq.quantize_file(source, plain_file, ftype, restart=True, **stored)
            ikq.quantize_file(source, out, ftype, restart=True, error_feedback=covariances, **stored)
            with_all = measuring.as_stored(plain_file)
            row["as_stored"] = compared(measuring.as_stored(out), with_all) | {"plain": with_all.mean.value}
        yield row


def document(found: list[dict[str, Any]], model: Path, text: Path) -> str:
    """All of the page."""
    n = found[0]["windows"]
    ways = [way for way in WAYS if any(way in r for r in found)]
    lines = [
        "# Error feedback",
        "",
        f"`python benches/error_feedback.py --ways {' '.join(ways)} --out ...`, with text `{text.name}`",
        "",
        f"`{model.name}` as every type (all block matrices of one type, embedding and output BF16, router F32), with an imatrix and",
        f"covariances of the first {CALIBRATION} windows of the calibration text; KL divergence from the unquantized model on {n} windows of 512 of the",
        "text, of the weights alone (decoded, with activations in floats), as a ratio to that of the file without feedback, with its",
        "standard error. *Error* is tr(dW H dW^T), H of the next",
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
            if way not in r:
                cells += ["-"] * 4
                continue
            w = r[way]
            cells += [f"{w['ratio']:.3f} ± {w['ratio_error']:.3f}", f"{w['ppl']:.3f}"]
            cells += [f"{w['error_mean']:.3f}", f"{w['error_worst']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for what, ends in GROUPS.items():
        group = [r for r in found if any(r["type"].lstrip("IQ").startswith(bits) for bits in ends)]
        if group:
            shown = []
            for way in ways:
                ratios = [r[way]["ratio"] for r in group if way in r]
                if ratios:
                    mean = np.exp(np.mean(np.log(ratios)))
                    shown.append(f"{WAYS[way]} {mean:.3f} ({len(ratios)} types)")
            lines += ["", f"Geometric mean of {what}: {', '.join(shown)}."]
    for way, normal in NORMAL.items():
        if both := [r for r in found if "to_normal" in r.get(way, {})]:
            lines += [
                "",
                f"{WAYS[way]}, as a ratio to {WAYS[normal]}, with the standard error of the windows' paired differences:",
                "",
                "| TYPE | KLD | error | worst |",
                "| --- | --: | --: | --: |",
            ]
            for r in both:
                w = r[way]["to_normal"]
                cells = [r["type"], f"{w['ratio']:.3f} ± {w['ratio_error']:.3f}"]
                cells += [f"{w[part]:.3f}" for part in ("error_mean", "error_worst")]
                lines.append(f"| {' | '.join(cells)} |")
    if measured_elsewhere := [r for r in found if "ppl_elsewhere" in r]:
        lines += [
            "",
            "Perplexity of the files in ik_llama.cpp's engine (`llama-perplexity -c 512`), and its ratio to that of the file without feedback, with",
            "the standard error of the windows' paired losses:",
            "",
            "| TYPE | PPL |" + "".join(f" {WAYS[way]} |" for way in ways),
            "| --- | --: |" + " --: |" * len(ways),
        ]
        for r in measured_elsewhere:
            cells = [r["type"], f"{r['ppl_elsewhere']:.4f}"]
            for w in (r.get(way, {}) for way in ways):
                has = "elsewhere" in w
                cells.append(f"{w['elsewhere']:.4f} ± {w['elsewhere_error']:.4f}" if has else "-")
            lines.append(f"| {' | '.join(cells)} |")
    if stored := [r for r in found if "as_stored" in r]:
        lines += [
            "",
            "The same as users of a file with embedding and output as Q8_0 have it, with activations of eight bits. Both add about 0.0002 to every",
            "file, with feedback or without, so ratios are nearer to 1 the more bits a type has:",
            "",
            "| TYPE | KLD | with feedback |",
            "| --- | --: | --: |",
        ]
        for r in stored:
            w = r["as_stored"]
            lines.append(f"| {r['type']} | {w['plain']:.5f} | {w['ratio']:.3f} ± {w['ratio_error']:.3f} |")
        for what, ends in GROUPS.items():
            ratios = [r["as_stored"]["ratio"] for r in stored if r["type"].lstrip("IQ")[0] in ends]
            if ratios:
                mean = np.exp(np.mean(np.log(ratios)))
                lines += ["", f"Geometric mean of {what}: {mean:.3f} ({len(ratios)} types)."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, default=MODELS / "text" / "heldout.txt")
    parser.add_argument("--model", type=Path, default=SOURCE, help="the bundled one, if not given")
    parser.add_argument("--types", nargs="+", default=TYPES, help="only these types")
    parser.add_argument("--ways", nargs="+", default=["feedback"], choices=list(WAYS))
    parser.add_argument("--chunks", type=int, default=-1, help="most windows (-1: all 147)")
    parser.add_argument("--out", type=Path, help="names of the files that are written, without suffix")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--stored", action="store_true", help="also measure files as they are stored")
    parser.add_argument("--program", type=Path, help="llama-perplexity, for the files in another engine")
    args = parser.parse_args()
    raw = args.out.with_suffix(".jsonl") if args.out else None
    found: list[dict[str, Any]] = []
    if raw and args.resume and raw.exists():
        found = [json.loads(line) for line in raw.read_text().splitlines()]
    elif raw:
        raw.write_text("")
    there = {r["type"]: r for r in found}
    wanted = [
        name
        for name in args.types
        if not all(is_measured(there.get(name, {}), way, args.program) for way in args.ways)
        or (args.stored and "as_stored" not in there.get(name, {}))
    ]
    with tempfile.TemporaryDirectory() as folder:
        rest = args.ways, args.text, args.chunks, Path(folder), there, args.model, args.program, args.stored
        for row in rows(wanted, *rest) if wanted else ():
            there[row["type"]] = row
            print(json.dumps(row), flush=True)
            if raw:
                raw.write_text("".join(json.dumps(r) + "\n" for r in there.values()))
    text = document(list(there.values()), args.model, args.text)
    if args.out:
        args.out.with_suffix(".md").write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
