"""What unbiased scales would do: KL divergence of files whose matrices are a little larger than the least-squares fit.

    python benches/scale_factor.py --pure IQ2_KL Q2_K_S ... --mixes IQ2_KL Q2_K ... [--parts] [--chunks 40]

A least-squares fit is smaller than what it fits: with the gain g = sum(x y) / sum(x^2) over weights x and decoded y, the
relative squared error is 1 - g, and what a layer computes shrinks by g. The same codes with scales 1/g times as large have
no such bias, at an error 1/sqrt(g) times as large. The bundled model becomes a TYPE, with imatrix, pure (embedding and
output Q8_0) or by its rules; its matrices, decoded and divided by their gains, stand in as F32. With `--parts` only some
of the matrices are divided, by one gain or by one gain per row.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from quality_table import MODELS, SOURCE, Case, measured

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


def stand_in(path: Path, out: Path, part: str | None, *, by_row: bool = False) -> dict[str, float]:
    """A copy with the matrices decoded, those of a part divided by their gains; the gains of all."""
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
            writer.add_tensor(name, y)
    return gains


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
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pure", nargs="*", default=[], metavar="TYPE")
    parser.add_argument("--mixes", nargs="*", default=[], metavar="TYPE")
    parser.add_argument("--parts", action="store_true", help="which matrices matter")
    parser.add_argument("--text", type=Path, default=MODELS / "text" / "heldout.txt")
    parser.add_argument("--chunks", type=int, default=40)
    args = parser.parse_args()
    if args.parts:
        print(f"| TYPE | g, embedding | g, output | KLD | {' | '.join(PARTS)} |")
        print(f"| --- |{' --: |' * (len(PARTS) + 3)}", flush=True)
    else:
        print(
            "| TYPE | lowest g | KLD | KLD, unbiased | ratio |\n| --- | --: | --: | --: | --: |", flush=True
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quantized, copy = folder / "quantized.gguf", folder / "copy.gguf"
        with ikq.Model.load(SOURCE, n_ctx=512) as model:
            windows = cut(text_tokens(model.tokenizer, args.text.read_text()), chunks=args.chunks)
            with base_writer(folder / "base", windows, model.spec.n_vocab) as sink:
                for _ in measure_perplexity(model, windows, sink):
                    pass
        base = BaseFile(folder / "base")
        for case in [*(Case(t, False, True) for t in args.pure), *(Case(t, True, True) for t in args.mixes)]:
            case.write(quantized)
            row = parts if args.parts else whole
            print(row(case, quantized, copy, base, args.chunks), flush=True)


if __name__ == "__main__":
    main()
