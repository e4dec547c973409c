"""Models of random codes, as `gpu_check.py` and what belongs to it run them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import ikq


def seed() -> int:
    """Of all random numbers of a run."""
    return int(os.environ.get("IKQ_CHECK_SEED", "0"))


class Shape(NamedTuple):
    """A mixture of experts as Qwen3's."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_expert: int
    n_used: int
    n_ff: int
    n_vocab: int


SHAPES = {
    "deep": Shape(32, 1024, 16, 4, 64, 8, 4, 512, 8192),
    "tiny": Shape(2, 256, 4, 2, 64, 8, 2, 256, 512),
    "small": Shape(2, 2048, 32, 4, 128, 128, 8, 768, 4096),
    "qwen3-30b-a3b": Shape(48, 2048, 32, 4, 128, 128, 8, 768, 151936),
}


def matrix(t: ikq.QuantType, n_rows: int, n: int, rng: np.random.Generator) -> ikq.QTensor:
    """Random weights of a type."""
    return ikq.QTensor.quantize(rng.standard_normal((n_rows, n), dtype=np.float32) / np.sqrt(n), t)


def write_model(path: Path, s: Shape, type_name: str, ends: str = "Q8_0") -> None:
    """A mixture of random experts; `ends` is the type of the embedding and of the output."""
    rng = np.random.default_rng(seed())
    a = "qwen3moe"
    metadata = ikq.Metadata(
        {
            "general.architecture": a,
            "tokenizer.ggml.model": "no_vocab",
            f"{a}.vocab_size": s.n_vocab,
            f"{a}.context_length": 4096,
            f"{a}.embedding_length": s.n_embd,
            f"{a}.block_count": s.n_layer,
            f"{a}.feed_forward_length": s.n_ff,
            f"{a}.attention.head_count": s.n_head,
            f"{a}.attention.head_count_kv": s.n_head_kv,
            f"{a}.attention.key_length": s.head_dim,
            f"{a}.attention.value_length": s.head_dim,
            f"{a}.attention.layer_norm_rms_epsilon": 1e-6,
            f"{a}.rope.dimension_count": s.head_dim,
            f"{a}.expert_count": s.n_expert,
            f"{a}.expert_used_count": s.n_used,
            f"{a}.expert_feed_forward_length": s.n_ff,
        }
    )

    def some(n_rows: int, n: int, of: str = type_name) -> ikq.QTensor:
        return matrix(ikq.QuantType[of], n_rows, n, rng)

    def experts(n_rows: int, n: int) -> ikq.QTensor:
        # eight that differ, over and over: making codes takes longer than computing with them
        eight = [np.asarray(some(n_rows, n).raw).reshape(1, -1) for _ in range(min(8, s.n_expert))]
        raw = np.concatenate([eight[i % len(eight)] for i in range(s.n_expert)])
        return ikq.QTensor(raw, type_name, (s.n_expert, n_rows, n))

    e, q, kv = s.n_embd, s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    ones, head_ones = np.ones(e, np.float32), np.ones(s.head_dim, np.float32)
    layer: dict[str, ikq.QTensor | NDArray[np.float32]] = {
        "attn_norm": ones,
        "ffn_norm": ones,
        "attn_q_norm": head_ones,
        "attn_k_norm": head_ones,
        "attn_q": some(q, e),
        "attn_k": some(kv, e),
        "attn_v": some(kv, e),
        "attn_output": some(e, q),
        "ffn_gate_inp": some(s.n_expert, e, "F32"),
        "ffn_gate_exps": experts(s.n_ff, e),
        "ffn_up_exps": experts(s.n_ff, e),
        "ffn_down_exps": experts(e, s.n_ff),
    }
    with ikq.GGUFWriter(path, metadata) as writer:
        writer.add_tensor("token_embd.weight", some(s.n_vocab, e, ends))
        writer.add_tensor("output.weight", some(s.n_vocab, e, ends))
        writer.add_tensor("output_norm.weight", ones)
        for i in range(s.n_layer):
            for name, tensor in layer.items():
                writer.add_tensor(f"blk.{i}.{name}.weight", tensor)


def bytes_of_a_token(path: Path, s: Shape) -> int:
    """Bytes of weights that a token reads: all but the embedding of other tokens and the experts that it does not use."""
    n = 0
    with ikq.GGUFReader(path) as reader:
        for name, tensor in reader.tensors.items():
            if name == "token_embd.weight":
                continue
            n += tensor.nbytes * s.n_used // s.n_expert if "_exps." in name else tensor.nbytes
    return n


def products_of_a_token(path: Path, s: Shape) -> int:
    """Multiplications and additions of a token's products in a prompt: only the last token reaches the output matrix."""
    n = 0
    with ikq.GGUFReader(path) as reader:
        for name, tensor in reader.tensors.items():
            is_matrix = tensor.ndim > 1 and name.endswith(".weight")
            if is_matrix and name not in ("token_embd.weight", "output.weight"):
                elements = math.prod(tensor.shape)
                n += elements * s.n_used // s.n_expert if "_exps." in name else elements
    return 2 * n
