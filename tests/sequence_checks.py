"""Running tokens on sequences in all ways that must not make a difference, and comparing bits."""

from __future__ import annotations

import numpy as np
from engine_checks import EXACT
from model_files import path

import ikq

DEFAULT = {"n_ctx": 128}
COMPUTE = {"f32": EXACT, "auto": DEFAULT}
CACHES = ("f32", "f16", "bf16", "q8_0", "q6_0", "q4_0", "q4_1", "iq4_nl")
ROTATED = ("q6_0", "q4_0", "q4_1", "iq4_nl")
PLANS = {
    "fused": {},
    "separate": {"fused_up_gate": False},
    "separate experts": {"fused_moe": False},
    "merged": {"merge_up_gate_experts": True},
}


def load(name, **options):
    return ikq.Model.load(path(name), **options)


def run(model, sequence, tokens, width=None, want="all"):
    """Logits of tokens after what a sequence holds, computed `width` at once."""
    found = []
    for start in range(0, len(tokens), width or len(tokens)):
        part = tokens[start : start + (width or len(tokens))]
        (logits,) = model.step([(sequence, part, want)])
        found.append(logits)
    return np.concatenate(found)


def fresh(model, tokens, width=None, want="all"):
    """The same on a sequence of its own."""
    with model.new_sequence() as sequence:
        return run(model, sequence, tokens, width, want)


def in_cuts(model, tokens, cuts):
    """In parts that end at these places."""
    with model.new_sequence() as sequence:
        return np.concatenate([run(model, sequence, part) for part in np.split(tokens, cuts)])


def long_text(n):
    """More tokens than the fixtures' prompts have; their vocabularies have 512."""
    return np.random.default_rng(n).integers(0, 512, n)


def same(a, b):
    """Bits, not values: -0 is not 0."""
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))
