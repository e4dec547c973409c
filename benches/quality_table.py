"""Quality of quantized files: bits per weight, perplexity and KL divergence, ikq's beside the reference's.

    python benches/quality_table.py --reference PATH/llama-quantize --out benches/results/quality_table

The bundled model becomes every type of the stored figures (all block matrices of that type, `token_embd` and `output`
Q8_0, the router F32) and ten mixes as cookers use them, without and with an imatrix; a type or mix that needs one has
only the latter. A type's row is of matrices of that type, for whatever TYPE both programs make them. Every file is measured in ikq's engine against the unquantized model: windows of 512 of the held-out
text, read literally. Files of both programs are measured one after the other at the same positions, so the error of
the ratio of their divergences counts only what differs.

`--out NAME` writes NAME.md, NAME.jsonl and (with matplotlib) NAME.svg; `--resume` goes on where NAME.jsonl ends.
Without `--reference` only ikq's files are made. Exit code 1 if a perplexity of ikq's is above 1.01 times the
reference's, or, where that makes no file, the stored one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ikq
from ikq.evaluate import (
    BaseFile,
    Divergence,
    base_writer,
    cut,
    measure_divergence,
    measure_perplexity,
    text_tokens,
)

TOP = Path(__file__).resolve().parent.parent
DATA = TOP / "tests" / "data"
SOURCE, IMATRIX = DATA / "tiny-moe-bf16.gguf", DATA / "imatrix-plain.dat"
MODELS = TOP.parent / "shared" / "models"

# embeddings and output at six bits, attention at eight, experts at four and three: how recipes for MoE models look
RECIPE = (
    r"blk\..*\.attn_.*=q8_0,blk\..*\.ffn_down_exps=iq4_ks,blk\..*\.ffn_(gate|up)_exps=iq3_k,"
    r"token_embd=q6_K,^output\.weight=q6_K"
)
# TYPEs of the command line under which all matrices get a type of another name: IQ2_S makes ones of IQ2_XS.
ALIASES = {"IQ2_S": "IQ2_M"}
MIXES = ["Q5_K_M", "Q4_K_M", "IQ4_XS", "IQ4_KSS", "Q3_K_M", "IQ3_M", "IQ2_KL", "Q2_K", "IQ2_M", "recipe"]
BOUND = 1.01

HEAD = """# Quality of quantized files

`python benches/quality_table.py --reference PATH/llama-quantize --out benches/results/quality_table` (ik_llama.cpp's)

The tiny MoE of `tests/data` as every type (all block matrices of one type, embedding and output Q8_0, router F32) and as mixes with their rules. All
files are measured in ikq's engine: perplexity of the held-out text, mean KL divergence from the unquantized model, how often both find the same
token most likely. Bits per weight are those of the whole model. *Ratio* is ikq's divergence over the reference's, with the standard error of
the paired figures; a dash: the program makes no such file.

![divergence and perplexity over bits per weight](IMAGE)
"""


class Case(NamedTuple):
    """A file to make."""

    name: str
    is_mix: bool
    imatrix: bool

    def options(self) -> dict[str, Any]:
        """What decides about its types."""
        if not self.is_mix:
            return {"pure": True, "token_embedding_type": "q8_0", "output_tensor_type": "q8_0"}
        return {"custom_q": RECIPE} if self.name == "recipe" else {}

    def write(self, out: Path, source: Path = SOURCE, *, biased: bool = False) -> bool:
        """Makes it with ikq; False if it needs an imatrix."""
        imatrix = IMATRIX if self.imatrix else None
        try:
            ikq.quantize_file(source, out, self.type, imatrix=imatrix, biased=biased, **self.options())
        except ikq.MissingImatrixError:
            return False
        return True

    def write_with(self, program: str, out: Path) -> bool:
        """Makes it with llama-quantize; False if that refuses."""
        words = [program]
        if self.imatrix:
            words += ["--imatrix", str(IMATRIX)]
        if not self.is_mix:
            words += ["--pure", "--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0"]
        elif self.name == "recipe":
            words += ["--custom-q", RECIPE]
        words += [str(SOURCE), str(out), self.type, "2"]
        # it leaves a log where it runs
        return subprocess.run(words, capture_output=True, cwd=out.parent).returncode == 0

    @property
    def type(self) -> str:
        """TYPE on the command line."""
        if self.is_mix:
            return "IQ3_K" if self.name == "recipe" else self.name
        return ALIASES.get(self.name, self.name)


def cases(stored: Path) -> list[Case]:
    """Types, largest first, and mixes; each without and with imatrix."""
    sizes: dict[str, int] = {}
    for row in json.loads(stored.read_text())["rows"]:
        sizes[row["type"]] = row.get("file_bytes") or sizes.get(row["type"], 0)
    names = [(n, False) for n in sorted(sizes, key=lambda n: -sizes[n])] + [(n, True) for n in MIXES]
    return [Case(name, is_mix, imatrix) for name, is_mix in names for imatrix in (False, True)]


def figures(path: Path, found: Divergence) -> dict[str, float]:
    """What is kept of a file."""
    with ikq.GGUFReader(path) as model:
        tensors = list(model.tensors.values())
    n_bytes = sum(t.nbytes for t in tensors)
    return {
        "bytes": path.stat().st_size,
        "bpw": 8 * n_bytes / sum(t.size for t in tensors),
        "ppl": found.ppl.value,
        "kld": found.mean.value,
        "kld_error": found.mean.error,
        "same_top": found.top.value,
    }


def ratio(ours: Divergence, theirs: Divergence) -> dict[str, float]:
    """The divergence of a file over another's, with its standard error."""
    a, b = ours.divergence, theirs.divergence
    found = a.mean() / b.mean()
    return {
        "kld_ratio": float(found),
        "kld_ratio_error": float((a - found * b).std() / np.sqrt(len(a)) / b.mean()),
    }


def measured(path: Path, base: BaseFile, chunks: int) -> Divergence:
    """Distance of a file from the base."""
    with ikq.Model.load(path, n_ctx=512) as model:
        *_, found = measure_divergence(model, base, chunks)
    return found


def unquantized_model(text: Path, chunks: int, folder: Path) -> tuple[BaseFile, dict[str, float]]:
    """The base that files are compared with, and what rows say of it."""
    with ikq.Model.load(SOURCE, n_ctx=512) as model:
        windows = cut(text_tokens(model.tokenizer, text.read_text()), chunks=chunks)
        with base_writer(folder / "base", windows, model.spec.n_vocab) as sink:
            *_, found = measure_perplexity(model, windows, sink)
    return BaseFile(folder / "base"), {"windows": windows.n, "ppl_unquantized": found.value}


def rows(
    wanted: list[Case], reference: str | None, text: Path, chunks: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """One row per case: ikq's file and, where there is one, the reference's."""
    base, unquantized = unquantized_model(text, chunks, folder)
    for case in wanted:
        row: dict[str, Any] = case._asdict() | unquantized
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        divergences = {}
        if case.write(ours):
            divergences["ikq"] = measured(ours, base, chunks)
            row["ikq"] = figures(ours, divergences["ikq"])
        if reference and case.write_with(reference, theirs):
            divergences["reference"] = measured(theirs, base, chunks)
            row["reference"] = figures(theirs, divergences["reference"])
        if len(divergences) == 2:
            row |= ratio(divergences["ikq"], divergences["reference"])
        if divergences:
            yield row


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as Markdown."""
    yield (
        "| TYPE | imatrix | bits per weight | PPL, ikq | PPL, reference | KLD, ikq | KLD, reference | ratio | same top, ikq "
        "| same top, reference |"
    )
    yield "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |"
    for row in found:
        ours, theirs = row.get("ikq"), row.get("reference")
        bits = [f"{f['bpw']:.3f}" for f in (ours, theirs) if f]
        cells = [row["name"], "yes" if row["imatrix"] else "no", " / ".join(dict.fromkeys(bits))]
        for key, form in (("ppl", ".4f"), ("kld", ".6f")):
            cells += [f"{f[key]:{form}}" if f else "-" for f in (ours, theirs)]
        ratio = f"{row['kld_ratio']:.3f} ± {row['kld_ratio_error']:.3f}" if "kld_ratio" in row else "-"
        cells += [ratio, *(f"{f['same_top']:.2%}" if f else "-" for f in (ours, theirs))]
        yield f"| {' | '.join(cells)} |"


def summary(found: list[dict[str, Any]]) -> Iterator[str]:
    """What the table says, the reference's wins by name."""
    pairs = [r for r in found if "kld_ratio" in r]
    for imatrix in (False, True):
        part = [r for r in pairs if r["imatrix"] == imatrix]
        if not part:
            continue
        # of two standard errors, as paired figures have them
        better = [r for r in part if r["kld_ratio"] + 2 * r["kld_ratio_error"] < 1]
        worse = [r for r in part if r["kld_ratio"] - 2 * r["kld_ratio_error"] > 1]
        mean = np.exp(np.mean([np.log(r["kld_ratio"]) for r in part]))
        ppl = np.mean([r["ikq"]["ppl"] / r["reference"]["ppl"] for r in part])
        named = ", ".join(f"{r['name']} {r['kld_ratio']:.3f}" for r in worse)
        yield (
            f"- {'With' if imatrix else 'Without'} imatrix, {len(part)} pairs: divergence lower for {len(better)} by more than two "
            f"standard errors of the ratio, higher for {len(worse)}{f' ({named})' if named else ''}, geometric mean of the ratios "
            f"{mean:.3f}; mean ratio of perplexities {ppl:.4f}."
        )


def document(found: list[dict[str, Any]]) -> str:
    """The whole page but its title."""
    n, ppl = found[0]["windows"], found[0]["ppl_unquantized"]
    lines = [
        f"{n} windows of 512, {255 * n} scored positions; the unquantized model has a perplexity of {ppl:.4f}.",
        "",
        *summary(found),
    ]
    for title, is_mix in (("Types", False), ("Mixes", True)):
        part = [r for r in found if r["is_mix"] == is_mix]
        if part:
            lines += ["", f"## {title}", "", *table(part)]
    lines += ["", f"`recipe` is IQ3_K with `--custom-q '{RECIPE}'`."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", help="llama-quantize of ik_llama.cpp")
    parser.add_argument("--text", type=Path, default=MODELS / "text" / "heldout.txt")
    parser.add_argument("--stored", type=Path, default=MODELS / "tiny-moe-quant-reference.json")
    parser.add_argument("--types", nargs="+", help="only these types and mixes")
    parser.add_argument("--chunks", type=int, default=-1, help="most windows (-1: all 147)")
    parser.add_argument("--out", type=Path, help="names of the files that are written, without suffix")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    args = parser.parse_args()
    reference = str(Path(args.reference).resolve()) if args.reference else None
    raw = args.out.with_suffix(".jsonl") if args.out else None
    found: list[dict[str, Any]] = []
    if raw and args.resume and raw.exists():
        found = [json.loads(line) for line in raw.read_text().splitlines()]
    have = {(r["name"], r["is_mix"], r["imatrix"]) for r in found}
    wanted = [c for c in cases(args.stored) if c not in have]
    if args.types:
        wanted = [c for c in wanted if c.name in args.types]
    if raw and not args.resume:
        raw.write_text("")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(wanted, reference, args.text, args.chunks, Path(folder)) if wanted else ():
            found.append(row)
            print(list(table([row]))[-1], flush=True)
            if raw:
                with raw.open("a") as f:
                    f.write(json.dumps(row) + "\n")
    text = document(found)
    if args.out:
        image = args.out.with_suffix(".svg")
        args.out.with_suffix(".md").write_text(f"{HEAD.replace('IMAGE', image.name)}\n{text}\n")
        plot(found, image)
    else:
        print(f"\n{text}")
    return 0 if holds(found, args) else 1


def holds(found: list[dict[str, Any]], args: argparse.Namespace) -> bool:
    """Whether perplexities are within the bound; stored ones are of all windows, so only these compare."""
    stored = json.loads(args.stored.read_text())["rows"] if args.chunks < 0 else []
    bounds = {(r["type"], False, r["imatrix"]): r.get("perplexity") for r in stored}
    held = True
    for row in found:
        key = row["name"], row["is_mix"], row["imatrix"]
        bound = row["reference"]["ppl"] if "reference" in row else bounds.get(key)
        if bound and "ikq" in row and row["ikq"]["ppl"] > BOUND * bound:
            print(f"{row['name']}: perplexity {row['ikq']['ppl']:.4f}, more than {BOUND} times {bound:.4f}")
            held = False
    return held


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """The plot, where matplotlib is."""
    try:
        from quality_plot import draw
    except ImportError:
        print("matplotlib is not there: no plot")
        return
    draw(found, path)


if __name__ == "__main__":
    sys.exit(main())
