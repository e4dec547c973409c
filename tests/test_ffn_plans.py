"""Separate, fused and merged FFNs give the same numbers, whatever the types of gate and up."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

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
N_EMBD, N_FF, N_EXPERT, N_VOCAB, N_CTX = 256, 512, 5, 64, 512
PLANS = {
    "fused": {},
    "merged": {"merge_up_gate_experts": True},
    "separate": {"fused_up_gate": False},
}


def _floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


class _Parts:
    """Tensors that all models of this file share, and one gate and one up per type."""

    def __init__(self) -> None:
        rng = np.random.default_rng(20)
        self.expert_gate = _floats(rng, N_EXPERT, N_FF, N_EMBD)
        self.expert_up = _floats(rng, N_EXPERT, N_FF, N_EMBD)
        self.expert_down = _floats(rng, N_EXPERT, N_EMBD, N_FF)
        self.quantized: dict[tuple[str, str], ikq.QTensor] = {}
        self.common = {
            "token_embd.weight": _floats(rng, N_VOCAB, N_EMBD) * 16,
            "output.weight": _floats(rng, N_VOCAB, N_EMBD),
            "output_norm.weight": np.ones(N_EMBD, np.float32),
            "blk.0.attn_norm.weight": np.ones(N_EMBD, np.float32),
            "blk.0.attn_q.weight": _floats(rng, 64, N_EMBD),
            "blk.0.attn_k.weight": _floats(rng, 64, N_EMBD),
            "blk.0.attn_v.weight": _floats(rng, 64, N_EMBD),
            "blk.0.attn_output.weight": _floats(rng, N_EMBD, 64),
        }
        self.router = _floats(rng, N_EXPERT, N_EMBD) * 4
        self.biases = {
            "ffn_gate_exps.bias": _floats(rng, N_EXPERT, N_FF) * 8,
            "ffn_up_exps.bias": _floats(rng, N_EXPERT, N_FF) * 8,
            "ffn_down_exps.bias": _floats(rng, N_EXPERT, N_EMBD) * 8,
        }

    def quant(self, part: str, type_name: str) -> ikq.QTensor:
        """A part in a type."""
        key = (part, type_name)
        if key not in self.quantized:
            self.quantized[key] = ikq.QTensor.quantize(getattr(self, part), type_name)
        return self.quantized[key]


@pytest.fixture(scope="module")
def parts() -> _Parts:
    return _Parts()


def _metadata(architecture: str, n_used: int) -> dict[str, object]:
    a = architecture
    keys: dict[str, object] = {
        f"{a}.block_count": 1,
        f"{a}.context_length": N_CTX,
        f"{a}.embedding_length": N_EMBD,
        f"{a}.attention.head_count": 2,
        f"{a}.attention.head_count_kv": 2,
        f"{a}.attention.key_length": 32,
        f"{a}.attention.value_length": 32,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{a}.feed_forward_length": N_FF,
    }
    if n_used:
        keys |= {
            f"{a}.expert_count": N_EXPERT,
            f"{a}.expert_used_count": n_used,
            f"{a}.expert_feed_forward_length": N_FF,
        }
    return {"general.architecture": a} | keys


def _write(path: Path, metadata: dict[str, object], tensors: dict[str, object]) -> Path:
    with ikq.GGUFWriter(path, metadata) as writer:
        for name, data in tensors.items():
            tensor = data if isinstance(data, ikq.QTensor) else ikq.QTensor.quantize(data, "F32")
            writer.add_tensor(name, tensor)
    return path


def _mixture(parts: _Parts, path: Path, gate: str, up: str, **router: object) -> Path:
    """A mixture without biases, SiLU."""
    ones = {f"blk.0.{n}_norm.weight": np.ones(32, np.float32) for n in ("attn_q", "attn_k")}
    tensors = (
        parts.common
        | ones
        | {
            "blk.0.ffn_norm.weight": np.ones(N_EMBD, np.float32),
            "blk.0.ffn_gate_inp.weight": parts.router,
            "blk.0.ffn_gate_exps.weight": parts.quant("expert_gate", gate),
            "blk.0.ffn_up_exps.weight": parts.quant("expert_up", up),
            "blk.0.ffn_down_exps.weight": parts.quant("expert_down", "Q8_0"),
        }
    )
    return _write(path, _metadata("qwen3moe", 2), tensors)


def _biased(parts: _Parts, path: Path, gate: str, up: str, n_used: int, bias: list[float]) -> Path:
    """A mixture with biases everywhere, clamped SwiGLU."""
    zeros = {
        f"blk.0.attn_{n}.bias": np.zeros(N_EMBD if n == "output" else 64, np.float32)
        for n in ("q", "k", "v", "output")
    }
    tensors = (
        parts.common
        | zeros
        | {
            "blk.0.attn_sinks.weight": np.zeros(2, np.float32),
            "blk.0.post_attention_norm.weight": np.ones(N_EMBD, np.float32),
            "blk.0.ffn_gate_inp.weight": parts.router,
            "blk.0.ffn_gate_inp.bias": np.asarray(bias, np.float32),
            "blk.0.ffn_gate_exps.weight": parts.quant("expert_gate", gate),
            "blk.0.ffn_up_exps.weight": parts.quant("expert_up", up),
            "blk.0.ffn_down_exps.weight": parts.quant("expert_down", "Q4_K"),
        }
        | {f"blk.0.{name}": value for name, value in parts.biases.items()}
    )
    metadata = _metadata("gpt-oss", n_used) | {"gpt-oss.attention.sliding_window": 128}
    return _write(path, metadata, tensors)


def _dense(parts: _Parts, path: Path, gate: str, up: str) -> Path:
    """A dense FFN with tanh-GELU."""
    ones = {f"blk.0.{n}_norm.weight": np.ones(32, np.float32) for n in ("attn_q", "attn_k")}
    norms = ("ffn_norm", "post_attention_norm", "post_ffw_norm")
    tensors = parts.common | ones | {f"blk.0.{n}.weight": np.ones(N_EMBD, np.float32) for n in norms}
    for part, type_name in (("gate", gate), ("up", up), ("down", "Q6_K")):
        tensors[f"blk.0.ffn_{part}.weight"] = ikq.QTensor.quantize(
            getattr(parts, f"expert_{part}")[0], type_name
        )
    metadata = _metadata("gemma3", 0) | {"gemma3.attention.sliding_window": 64}
    return _write(path, metadata, tensors)


def _tokens(n: int) -> list[int]:
    return [(37 * i + 11) % N_VOCAB for i in range(n)]


def _agree(path: Path, plans: dict[str, str], counts: tuple[int, ...]) -> None:
    """All plans within 1e-5 of the largest logit, and each is the plan that it says."""
    found: dict[str, list[np.ndarray]] = {}
    for name, expected in plans.items():
        with ikq.Model.load(path, n_ctx=N_CTX, n_threads=2, mmap="on", **PLANS[name]) as model:
            assert model.explain().ffn[0].plan == expected
            found[name] = [model.logits(_tokens(n)) for n in counts]
    for logits in itertools.islice(found.values(), 1, None):
        for ours, first in zip(logits, found["fused"], strict=True):
            assert np.isfinite(ours).all()
            assert np.ptp(ours) > 1  # the model says something
            assert np.abs(ours - first).max() <= 1e-5 * np.abs(first).max()


@pytest.mark.parametrize("gate", TYPES)
def test_plans_agree_for_every_pair_of_types(parts: _Parts, tmp_path: Path, gate: str) -> None:
    for up in TYPES:
        path = _mixture(parts, tmp_path / f"{up}.gguf", gate, up)
        _agree(path, {p: p for p in PLANS}, (1, 2, 7, 512) if gate == up else (1, 2, 7, 40))
        path.unlink()


@pytest.mark.parametrize("gate", TYPES)
def test_plans_agree_with_biases_and_clamped_activation(parts: _Parts, tmp_path: Path, gate: str) -> None:
    for up in TYPES:
        path = _biased(parts, tmp_path / f"{up}.gguf", gate, up, 2, [0.0] * N_EXPERT)
        _agree(path, {p: p for p in PLANS}, (1, 2, 7, 40))
        path.unlink()


@pytest.mark.parametrize("gate", TYPES)
def test_plans_agree_for_dense_layers(parts: _Parts, tmp_path: Path, gate: str) -> None:
    for up in TYPES:
        path = _dense(parts, tmp_path / f"{up}.gguf", gate, up)
        # merging is for experts; a dense pair stays fused
        _agree(path, {"fused": "fused", "merged": "fused", "separate": "separate"}, (1, 2, 7, 40))
        path.unlink()


@pytest.mark.parametrize("pair", [("Q4_K", "IQ4_KS"), ("MXFP4", "MXFP4"), ("IQ2_KT", "Q8_0")])
def test_one_expert_takes_all_and_one_takes_none(
    parts: _Parts, tmp_path: Path, pair: tuple[str, str]
) -> None:
    bias = [0.0, 0.0, 1e4, 0.0, -1e4]
    one = _biased(parts, tmp_path / "one.gguf", *pair, 1, bias)
    _agree(one, {p: p for p in PLANS}, (1, 2, 7, 512))
    two = _biased(parts, tmp_path / "two.gguf", *pair, 3, bias)
    _agree(two, {p: p for p in PLANS}, (1, 2, 7, 512))
    # what the expert that takes all holds decides; what the other holds cannot
    with ikq.Model.load(one, n_ctx=N_CTX) as model:
        before = model.logits(_tokens(7))
    for expert, changes in ((2, True), (4, False)):
        down = parts.expert_down.copy()
        down[expert] *= 2
        kept = parts.quantized.pop(("expert_down", "Q4_K"))
        parts.quantized["expert_down", "Q4_K"] = ikq.QTensor.quantize(down, "Q4_K")
        path = _biased(parts, tmp_path / "other.gguf", *pair, 1, bias)
        parts.quantized["expert_down", "Q4_K"] = kept
        with ikq.Model.load(path, n_ctx=N_CTX) as model:
            assert np.array_equal(model.logits(_tokens(7)), before) != changes


def test_a_file_with_merged_experts_runs_as_one_with_separate_ones(parts: _Parts, tmp_path: Path) -> None:
    apart = _mixture(parts, tmp_path / "apart.gguf", "Q4_K", "Q4_K")
    with ikq.GGUFReader(apart) as reader:
        tensors: dict[str, object] = dict(reader.tensors)
        metadata = dict(reader.metadata)
        both = [tensors.pop(f"blk.0.ffn_{part}_exps.weight") for part in ("gate", "up")]
        rows = [np.asarray(t.raw).reshape(N_EXPERT, N_FF, -1) for t in both]
        data = np.concatenate(rows, axis=1)
        tensors["blk.0.ffn_gate_up_exps.weight"] = ikq.QTensor(data, "Q4_K", (N_EXPERT, 2 * N_FF, N_EMBD))
        merged = _write(tmp_path / "merged.gguf", metadata, tensors)
    with ikq.Model.load(apart, n_ctx=N_CTX) as one, ikq.Model.load(merged, n_ctx=N_CTX) as other:
        assert other.explain().ffn[0].plan == "merged"
        for n in (1, 2, 7, 64):
            assert np.array_equal(one.logits(_tokens(n)), other.logits(_tokens(n)))


def test_merging_takes_no_memory(parts: _Parts, tmp_path: Path) -> None:
    path = _mixture(parts, tmp_path / "m.gguf", "Q4_K", "IQ4_KS")
    memory = []
    for options in PLANS.values():
        with ikq.Model.load(path, n_ctx=64, mmap="on", **options) as model:
            memory.append(model.memory)
    assert memory[0].mapped > 3 * N_EXPERT * N_FF * N_EMBD // 2
    assert memory[0].copied == 0
    assert memory[1] == memory[0] == memory[2]
