"""The error of products on tokens that nothing was chosen by: `held_out_errors`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ikq

# Of a matrix that fewer tokens reached nothing can be said.
_TOKENS = 64


def held_out_errors(source: Path, path: Path, covariances: Path) -> dict[tuple[str, int], float]:
    """tr(dW H dW^T) per token, by tensor and expert.

    Args:
        source: The model.
        path: The same, quantized.
        covariances: Of the model's inputs for a text that was not calibrated with.
    """
    found = {}
    with ikq.GGUFReader(source) as whole, ikq.GGUFReader(path) as quantized:
        for site in ikq.Covariances(covariances):
            for name, group in site.tensors:
                x = np.array(whole.tensors[name].dequantize()).reshape(-1, *whole.tensors[name].shape[-2:])
                y = np.array(quantized.tensors[name].dequantize()).reshape(x.shape)
                for expert, d in enumerate(x - y):
                    at = group if group is not None else (expert if len(site.counts) > 1 else 0)
                    n = float(site.counts[at])
                    if n >= _TOKENS:
                        found[name, expert] = (
                            float(np.einsum("ij,jk,ik->", d, site.sums[at], d, optimize=True)) / n
                        )
    return found
