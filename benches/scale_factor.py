"""What unbiased scales would do: KL divergence of files whose matrices are a little larger than the least-squares fit.

    python benches/scale_factor.py --pure IQ2_KL Q2_K_S ... --mixes IQ2_KL Q2_K ... [--parts | --again | --option] [--chunks 40]

A least-squares fit is smaller than what it fits: with the gain g = sum(x y) / sum(x^2) over weights x and decoded y, the
relative squared error is 1 - g, and what a layer computes shrinks by g. The same codes with scales 1/g times as large have
no such bias, at an error 1/sqrt(g) times as large. The bundled model becomes a TYPE, with imatrix, pure (embedding and
output Q8_0) or by its rules; its matrices, decoded and divided by their gains, stand in as F32. With `--parts` only some
of the matrices are divided, by one gain or by one gain per row; in the last column none is, but the outputs of attention
are made smaller as those of experts are. With `--again` nothing stands in: the source, divided by the gains, becomes the
TYPE once more, as an encoder that undoes them would have it; once with gains that weigh columns as the imatrix does. With `--option`
files are what `ikq quantize` writes by default, beside those of `--biased` and (`--reference`) llama-quantize's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from quality_table import IMATRIX, MODELS, SOURCE, Case, measured

import ikq
from ikq.evaluate import BaseFile, base_writer, cut, measure_perplexity, text_tokens

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
PARTS: dict[str, Callable[[str], bool]] = {
    "embedding": lambda name: name == EMBEDDING,
    "output": lambda name: name == OUTPUT,
    "embedding and output": lambda name: name in (EMBEDDING, OUTPUT),
    "attention": lambda name: ".attn_" in name,
    "experts": lambda name: "_exps." in name,
    "attention and experts": lambda name: name.startswith("blk."),
    "all": lambda _: True,
}


def stand_in(
    path: Path,
    out: Path,
    part: str | None,
    *,
    by_row: bool = False,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, float]:
    """A copy with the matrices decoded, times `factors`, those of a part divided by their gains; the gains of all."""
    gains = {}
    with (
        ikq.GGUFReader(path) as model,
        ikq.GGUFReader(SOURCE) as source,
        ikq.GGUFWriter(out, model.metadata) as writer,
    ):
        for name, tensor in model.tensors.items():
            if tensor.ndim == 1 or "ffn_gate_inp" in name:
                writer.add_tensors({name: tensor})
                continue
            x, y = source.tensors[name].dequantize().astype(np.float64), tensor.dequantize()
            gains[name] = float((x * y).sum() / (x * x).sum())
            if part and PARTS[part](name):
                norm = (x * x).sum(-1, keepdims=True)
                g = (x * y).sum(-1, keepdims=True) / np.where(norm > 0, norm, 1) if by_row else gains[name]
                y = (y / np.where(np.asarray(g) > 0, g, 1)).astype(np.float32)
            writer.add_tensor(name, y * np.float32(factors.get(name, 1)))
    return gains


def like_experts(gains: Mapping[str, float]) -> dict[str, float]:
    """Factors that shrink every attention's output as the gains of its layer's up, gate and down shrink the experts'."""
    layers = {name.split(".")[1] for name in gains if name.startswith("blk.")}
    return {
        f"blk.{i}.attn_output.weight": float(
            np.prod([gains[f"blk.{i}.ffn_{role}_exps.weight"] for role in ("up", "gate", "down")])
        )
        for i in layers
    }


def label(case: Case) -> str:
    """First cell of a row."""
    return f"{case.name}, {'mix' if case.is_mix else 'pure'}"


def whole(case: Case, quantized: Path, copy: Path, base: BaseFile, chunks: int) -> str:
    """A row of the table: all matrices divided or none."""
    found = []
    for part in (None, "all"):
        gains = stand_in(quantized, copy, part)
        found.append(measured(copy, base, chunks).mean.value)
    return (
        f"| {label(case)} | {min(gains.values()):.3f} | {found[0]:.6f} | {found[1]:.6f} "
        f"| {found[1] / found[0]:.3f} |"
    )


def parts(case: Case, quantized: Path, copy: Path, base: BaseFile, chunks: int) -> str:
    """A row of the table of parts: what each lowers the divergence to, by tensor / by row."""
    gains = stand_in(quantized, copy, None)
    none = measured(copy, base, chunks).mean.value
    cells = [label(case), f"{gains[EMBEDDING]:.3f}", f"{gains[OUTPUT]:.3f}", f"{none:.6f}"]
    for part in PARTS:
        ratios = []
        for by_row in (False, True):
            stand_in(quantized, copy, part, by_row=by_row)
            ratios.append(f"{measured(copy, base, chunks).mean.value / none:.3f}")
        cells.append(" / ".join(ratios))
    stand_in(quantized, copy, None, factors=like_experts(gains))
    cells.append(f"{measured(copy, base, chunks).mean.value / none:.3f}")
    return f"| {' | '.join(cells)} |"


def column_weights(imatrix: ikq.Imatrix, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The importance of columns, to multiply a matrix of that shape with; 1 where there is none."""
    entry = imatrix.entry_for(name)
    if entry is None:
        return np.ones(shape[-1])
    w = imatrix[entry].values.astype(np.float64).reshape(-1, shape[-1])
    w = np.where(w.sum(-1, keepdims=True) > 0, w, 1)
    return w[:, None, :] if len(shape) == 3 else w


def divided(path: Path, out: Path, imatrix: ikq.Imatrix | None, *, by_row: bool) -> None:
    """A copy of the source, as F32, divided by the gains that the matrices of a quantized file have."""
    with (
        ikq.GGUFReader(path) as model,
        ikq.GGUFReader(SOURCE) as source,
        ikq.GGUFWriter(out, source.metadata) as writer,
    ):
        for name, tensor in source.tensors.items():
            if tensor.ndim == 1 or "ffn_gate_inp" in name:
                writer.add_tensors({name: tensor})
                continue
            x, y = tensor.dequantize().astype(np.float64), model.tensors[name].dequantize()
            w = column_weights(imatrix, name, x.shape) if imatrix else np.ones(1)
            axis = -1 if by_row else None
            norm = (w * x * x).sum(axis, keepdims=True)
            g = (w * x * y).sum(axis, keepdims=True) / np.where(norm > 0, norm, 1)
            writer.add_tensor(name, (x / np.where(g > 0, g, 1)).astype(np.float32))


def again(case: Case, quantized: Path, copy: Path, base: BaseFile, chunks: int) -> str:
    """A row of the table of a second encoding: divergence and perplexity as is, then with gains undone."""
    weights = ikq.Imatrix(IMATRIX)
    found = [measured(quantized, base, chunks)]
    for imatrix, by_row in ((None, False), (None, True), (weights, True)):
        scaled = copy.with_name("scaled.gguf")
        divided(quantized, scaled, imatrix, by_row=by_row)
        case.write(copy, scaled, biased=True)
        found.append(measured(copy, base, chunks))
    first = found[0].mean.value
    cells = [f"{first:.6f}", *(f"{f.mean.value / first:.3f}" for f in found[1:])]
    return f"| {label(case)} | {' | '.join(cells)} | {' | '.join(f'{f.ppl.value:.4f}' for f in found)} |"


def option(case: Case, reference: str | None, folder: Path, base: BaseFile, chunks: int) -> str:
    """A row of the table of `--biased`: divergences and perplexities of the files that programs write."""
    found = {}
    out = folder / "option.gguf"
    for name in ("biased", "default", *(["reference"] if reference else [])):
        made = case.write_with(reference, out) if name == "reference" else case.write(
            out, biased=name == "biased"
        )  # fmt: skip
        if made:
            found[name] = measured(out, base, chunks)
    klds = [f"{found[n].mean.value:.6f}" if n in found else "-" for n in ("biased", "default", "reference")]
    ratios = []
    for other in ("biased", "reference"):
        if other not in found:
            ratios.append("-")
            continue
        a, b = found["default"].divergence, found[other].divergence
        ratio = a.mean() / b.mean()
        error = (a - ratio * b).std() / np.sqrt(len(a)) / b.mean()
        ratios.append(f"{ratio:.3f} ± {error:.3f}")
    ppls = [f"{found[n].ppl.value:.4f}" if n in found else "-" for n in ("biased", "default", "reference")]
    return (
        f"| {label(case)}{'' if case.imatrix else ', no imatrix'} | {' | '.join([*klds, *ratios, *ppls])} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pure", nargs="*", default=[], metavar="TYPE")
    parser.add_argument("--mixes", nargs="*", default=[], metavar="TYPE")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--parts", action="store_true", help="which matrices matter")
    kind.add_argument("--again", action="store_true", help="encode the source divided by the gains")
    kind.add_argument("--option", action="store_true", help="files by ikq quantize with and without --biased")
    parser.add_argument("--no-imatrix", action="store_true", help="with --option: without one")
    parser.add_argument("--reference", help="with --option: llama-quantize of ik_llama.cpp")
    parser.add_argument("--text", type=Path, default=MODELS / "text" / "heldout.txt")
    parser.add_argument("--chunks", type=int, default=40)
    args = parser.parse_args()
    row, heads = whole, ["lowest g", "KLD", "KLD, unbiased", "ratio"]
    if args.parts:
        row, heads = parts, ["g, embedding", "g, output", "KLD", *PARTS, "attention shrunk"]
    elif args.again:
        ways = ["by tensor", "by row", "by row, weighted"]
        row, heads = again, ["KLD", *ways, "PPL", *(f"PPL, {way}" for way in ways)]
    elif args.option:
        files = ["biased", "default", "reference"]
        heads = [*(f"KLD, {f}" for f in files), "to biased", "to reference", *(f"PPL, {f}" for f in files)]
    reference = str(Path(args.reference).resolve()) if args.reference else None
    has_imatrix = not args.no_imatrix
    print(f"| TYPE | {' | '.join(heads)} |\n| --- |{' --: |' * len(heads)}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quantized, copy = folder / "quantized.gguf", folder / "copy.gguf"
        with ikq.Model.load(SOURCE, n_ctx=512) as model:
            windows = cut(text_tokens(model.tokenizer, args.text.read_text()), chunks=args.chunks)
            with base_writer(folder / "base", windows, model.spec.n_vocab) as sink:
                for _ in measure_perplexity(model, windows, sink):
                    pass
        base = BaseFile(folder / "base")
        wanted = [(t, False) for t in args.pure] + [(t, True) for t in args.mixes]
        for case in [Case(name, is_mix, has_imatrix) for name, is_mix in wanted]:
            if args.option:
                print(option(case, reference, folder, base, args.chunks), flush=True)
                continue
            case.write(quantized, biased=True)
            print(row(case, quantized, copy, base, args.chunks), flush=True)


if __name__ == "__main__":
    main()
