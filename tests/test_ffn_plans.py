"""Separate, fused and merged FFNs give the same numbers, whatever the types of gate and up."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from small_models import N_CTX, N_EMBD, N_EXPERT, N_FF, Parts, biased, dense, mixture, tokens, write

import ikq

TYPES = [
    "Q8_0",
    "Q4_0",
    "Q4_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "IQ2_XXS",
    "IQ3_S",
    "IQ4_K",
    "IQ4_KS",
    "IQ2_KT",
    "MXFP4",
]
PLANS = {
    "fused": {},
    "merged": {"merge_up_gate_experts": True},
    "separate": {"fused_up_gate": False},
}


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


def _agree(path: Path, plans: dict[str, str], counts: tuple[int, ...]) -> None:
    """All plans within 1e-5 of the largest logit, and each is the plan that it says."""
    found: dict[str, list[np.ndarray]] = {}
    for name, expected in plans.items():
        with ikq.Model.load(path, n_ctx=N_CTX, n_threads=2, mmap="on", **PLANS[name]) as model:
            assert model.explain().ffn[0].plan == expected
            found[name] = [model.logits(tokens(n)) for n in counts]
    for logits in itertools.islice(found.values(), 1, None):
        for ours, first in zip(logits, found["fused"], strict=True):
            assert np.isfinite(ours).all()
            assert np.ptp(ours) > 1  # the model says something
            assert np.abs(ours - first).max() <= 1e-5 * np.abs(first).max()


@pytest.mark.parametrize("gate", TYPES)
def test_plans_agree_for_every_pair_of_types(parts: Parts, tmp_path: Path, gate: str) -> None:
    for up in TYPES:
        path = mixture(parts, tmp_path / f"{up}.gguf", gate, up)
        _agree(path, {p: p for p in PLANS}, (1, 2, 7, 512) if gate == up else (1, 2, 7, 40))
        path.unlink()


@pytest.mark.parametrize("gate", TYPES)
def test_plans_agree_with_biases_and_clamped_activation(parts: Parts, tmp_path: Path, gate: str) -> None:
    for up in TYPES:
        path = biased(parts, tmp_path / f"{up}.gguf", gate, up, 2, [0.0] * N_EXPERT)
        _agree(path, {p: p for p in PLANS}, (1, 2, 7, 40))
        path.unlink()


@pytest.mark.parametrize("gate", TYPES)
def test_plans_agree_for_dense_layers(parts: Parts, tmp_path: Path, gate: str) -> None:
    for up in TYPES:
        path = dense(parts, tmp_path / f"{up}.gguf", gate, up)
        # merging is for experts; a dense pair stays fused
        _agree(path, {"fused": "fused", "merged": "fused", "separate": "separate"}, (1, 2, 7, 40))
        path.unlink()


@pytest.mark.parametrize("pair", [("Q4_K", "IQ4_KS"), ("MXFP4", "MXFP4"), ("IQ2_KT", "Q8_0")])
def test_one_expert_takes_all_and_one_takes_none(parts: Parts, tmp_path: Path, pair: tuple[str, str]) -> None:
    bias = [0.0, 0.0, 1e4, 0.0, -1e4]
    one = biased(parts, tmp_path / "one.gguf", *pair, 1, bias)
    _agree(one, {p: p for p in PLANS}, (1, 2, 7, 512))
    two = biased(parts, tmp_path / "two.gguf", *pair, 3, bias)
    _agree(two, {p: p for p in PLANS}, (1, 2, 7, 512))
    # what the expert that takes all holds decides; what the other holds cannot
    with ikq.Model.load(one, n_ctx=N_CTX) as model:
        before = model.logits(tokens(7))
    for expert, changes in ((2, True), (4, False)):
        down = parts.expert_down.copy()
        down[expert] *= 2
        kept = parts.quantized.pop(("expert_down", "Q4_K"))
        parts.quantized["expert_down", "Q4_K"] = ikq.QTensor.quantize(down, "Q4_K")
        path = biased(parts, tmp_path / "other.gguf", *pair, 1, bias)
        parts.quantized["expert_down", "Q4_K"] = kept
        with ikq.Model.load(path, n_ctx=N_CTX) as model:
            assert np.array_equal(model.logits(tokens(7)), before) != changes


def test_a_file_with_merged_experts_runs_as_one_with_separate_ones(parts: Parts, tmp_path: Path) -> None:
    apart = mixture(parts, tmp_path / "apart.gguf", "Q4_K", "Q4_K")
    with ikq.GGUFReader(apart) as reader:
        tensors: dict[str, object] = dict(reader.tensors)
        metadata = dict(reader.metadata)
        both = [tensors.pop(f"blk.0.ffn_{part}_exps.weight") for part in ("gate", "up")]
        rows = [np.asarray(t.raw).reshape(N_EXPERT, N_FF, -1) for t in both]
        data = np.concatenate(rows, axis=1)
        tensors["blk.0.ffn_gate_up_exps.weight"] = ikq.QTensor(data, "Q4_K", (N_EXPERT, 2 * N_FF, N_EMBD))
        merged = write(tmp_path / "merged.gguf", metadata, tensors)
    with ikq.Model.load(apart, n_ctx=N_CTX) as one, ikq.Model.load(merged, n_ctx=N_CTX) as other:
        assert other.explain().ffn[0].plan == "merged"
        for n in (1, 2, 7, 64):
            assert np.array_equal(one.logits(tokens(n)), other.logits(tokens(n)))


def test_merging_takes_no_memory(parts: Parts, tmp_path: Path) -> None:
    path = mixture(parts, tmp_path / "m.gguf", "Q4_K", "IQ4_KS")
    memory = []
    for options in PLANS.values():
        with ikq.Model.load(path, n_ctx=64, mmap="on", **options) as model:
            memory.append(model.memory)
    assert memory[0].mapped > 3 * N_EXPERT * N_FF * N_EMBD // 2
    assert memory[0].copied == 0
    assert memory[1] == memory[0] == memory[2]
