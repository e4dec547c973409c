"""How tests of the engine judge logits.

Exactness is judged by the numpy model in float64 (test_models_spec.py compares that with the oracles): float32
arithmetic in numpy itself is up to 9.3e-5 away from it, on the 26 layers of deepseek2-lite.
"""

import numpy as np

import ikq

TOLERANCE = 2e-4
EXACT = {"compute": "f32", "cache_type_k": "f32", "cache_type_v": "f32", "n_ctx": 128}
INVALID = (ikq.FormatError, ikq.ShapeError)


def largest(a, b):
    return float(np.abs(np.asarray(a, np.float64) - b).max())


def kl(wanted, found):
    """Mean divergence of the next token's distribution from what it should be."""

    def log_softmax(x):
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(wanted), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())
