"""What unbiased scales would do: KL divergence of files whose matrices are a little larger than the least-squares fit.

    python benches/scale_factor.py --pure IQ2_KL Q2_K_S ... --mixes IQ2_KL Q2_K ... [--chunks 40]

A least-squares fit is smaller than what it fits: with the gain g = sum(x y) / sum(x^2) over weights x and decoded y, the
relative squared error is 1 - g, and what a layer computes shrinks by g. The same codes with scales 1/g times as large have
no such bias, at an error 1/sqrt(g) times as large. The bundled model becomes a TYPE, with imatrix, pure (embedding and
output Q8_0) or by its rules; its matrices, decoded and divided by their gains, stand in as F32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from quality_table import MODELS, SOURCE, Case, measured

import ikq
from ikq.evaluate import BaseFile, base_writer, cut, measure_perplexity, text_tokens


def stand_in(path: Path, out: Path, *, unbiased: bool) -> dict[str, float]:
    """A copy with the matrices decoded, and divided by their gains if wanted; the gains."""
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
            writer.add_tensor(name, y / np.float32(gains[name] if unbiased else 1))
    return gains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pure", nargs="*", default=[], metavar="TYPE")
    parser.add_argument("--mixes", nargs="*", default=[], metavar="TYPE")
    parser.add_argument("--text", type=Path, default=MODELS / "text" / "heldout.txt")
    parser.add_argument("--chunks", type=int, default=40)
    args = parser.parse_args()
    print("| TYPE | lowest g | KLD | KLD, unbiased | ratio |\n| --- | --: | --: | --: | --: |")
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
            found = []
            for unbiased in (False, True):
                gains = stand_in(quantized, copy, unbiased=unbiased)
                found.append(measured(copy, base, args.chunks).mean.value)
            kind = "mix" if case.is_mix else "pure"
            print(
                f"| {case.name}, {kind} | {min(gains.values()):.3f} | {found[0]:.6f} | {found[1]:.6f} "
                f"| {found[1] / found[0]:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
