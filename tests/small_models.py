"""Models of one layer, as small as every tensor type allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ikq

N_EMBD, N_FF, N_EXPERT, N_VOCAB, N_CTX = 256, 512, 5, 64, 512


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


class Parts:
    """Tensors that all models of this file share, and one gate and one up per type."""

    def __init__(self) -> None:
        rng = np.random.default_rng(20)
        self.expert_gate = floats(rng, N_EXPERT, N_FF, N_EMBD)
        self.expert_up = floats(rng, N_EXPERT, N_FF, N_EMBD)
        self.expert_down = floats(rng, N_EXPERT, N_EMBD, N_FF)
        self.quantized: dict[tuple[str, str], ikq.QTensor] = {}
        self.common = {
            "token_embd.weight": floats(rng, N_VOCAB, N_EMBD) * 16,
            "output.weight": floats(rng, N_VOCAB, N_EMBD),
            "output_norm.weight": np.ones(N_EMBD, np.float32),
            "blk.0.attn_norm.weight": np.ones(N_EMBD, np.float32),
            "blk.0.attn_q.weight": floats(rng, 256, N_EMBD),
            "blk.0.attn_k.weight": floats(rng, 256, N_EMBD),
            "blk.0.attn_v.weight": floats(rng, 256, N_EMBD),
            "blk.0.attn_output.weight": floats(rng, N_EMBD, 256),
        }
        self.router = floats(rng, N_EXPERT, N_EMBD) * 4
        self.biases = {
            "ffn_gate_exps.bias": floats(rng, N_EXPERT, N_FF) * 8,
            "ffn_up_exps.bias": floats(rng, N_EXPERT, N_FF) * 8,
            "ffn_down_exps.bias": floats(rng, N_EXPERT, N_EMBD) * 8,
        }

    def quant(self, part: str, type_name: str) -> ikq.QTensor:
        """A part in a type."""
        key = (part, type_name)
        if key not in self.quantized:
            self.quantized[key] = ikq.QTensor.quantize(getattr(self, part), type_name)
        return self.quantized[key]


def metadata(architecture: str, n_used: int) -> dict[str, object]:
    a = architecture
    keys: dict[str, object] = {
        f"{a}.block_count": 1,
        f"{a}.context_length": N_CTX,
        f"{a}.embedding_length": N_EMBD,
        f"{a}.attention.head_count": 2,
        f"{a}.attention.head_count_kv": 2,
        f"{a}.attention.key_length": 128,
        f"{a}.attention.value_length": 128,
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


def write(path: Path, metadata: dict[str, object], tensors: dict[str, object]) -> Path:
    with ikq.GGUFWriter(path, metadata) as writer:
        for name, data in tensors.items():
            tensor = data if isinstance(data, ikq.QTensor) else ikq.QTensor.quantize(data, "F32")
            writer.add_tensor(name, tensor)
    return path


def mixture(parts: Parts, path: Path, gate: str, up: str, **router: object) -> Path:
    """A mixture without biases, SiLU."""
    ones = {f"blk.0.{n}_norm.weight": np.ones(128, np.float32) for n in ("attn_q", "attn_k")}
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
    return write(path, metadata("qwen3moe", 2), tensors)


def biased(parts: Parts, path: Path, gate: str, up: str, n_used: int, bias: list[float]) -> Path:
    """A mixture with biases everywhere, clamped SwiGLU."""
    zeros = {f"blk.0.attn_{n}.bias": np.zeros(256, np.float32) for n in ("q", "k", "v", "output")}
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
    keys = metadata("gpt-oss", n_used) | {"gpt-oss.attention.sliding_window": 128}
    return write(path, keys, tensors)


def dense(parts: Parts, path: Path, gate: str, up: str) -> Path:
    """A dense FFN with tanh-GELU."""
    ones = {f"blk.0.{n}_norm.weight": np.ones(128, np.float32) for n in ("attn_q", "attn_k")}
    norms = ("ffn_norm", "post_attention_norm", "post_ffw_norm")
    tensors = parts.common | ones | {f"blk.0.{n}.weight": np.ones(N_EMBD, np.float32) for n in norms}
    for part, type_name in (("gate", gate), ("up", up), ("down", "Q6_K")):
        tensors[f"blk.0.ffn_{part}.weight"] = ikq.QTensor.quantize(
            getattr(parts, f"expert_{part}")[0], type_name
        )
    keys = metadata("gemma3", 0) | {"gemma3.attention.sliding_window": 64}
    return write(path, keys, tensors)


def tokens(n: int) -> list[int]:
    return [(37 * i + 11) % N_VOCAB for i in range(n)]
