"""Models with the tensor shapes of real ones, random weights and as many layers as wanted.

    python benches/synthetic_models.py qwen3-30b-a3b --layers 2 --type Q4_K -o model.gguf

Values do not matter for speed, so a few rows per row length are quantized and their bytes repeated, which takes
seconds for every type; norms are ones. Embeddings are Q8_0; rows that do not fit the type's blocks take its
fallback. Without `--tokenizer` there is none, and only programs that generate random tokens run it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ikq


@dataclass(frozen=True)
class Shape:
    """What the generator needs of a model."""

    architecture: str
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_expert: int = 0
    n_used: int = 0
    n_ff_expert: int = 0
    n_ff_shared: int = 0
    qk_norm: bool = False
    biases: bool = False
    sinks: bool = False
    recurrent: bool = False
    ffn_norm: str = "ffn_norm"
    keys: dict[str, Any] = field(default_factory=dict)


SHAPES = {
    "qwen3-30b-a3b": Shape("qwen3moe", 2048, 32, 4, 128, 6144, 128, 8, 768, qk_norm=True),
    "llama-3-8b": Shape("llama", 4096, 32, 8, 128, 14336),
    "gpt-oss-20b": Shape(
        "gpt-oss",
        2880,
        64,
        8,
        64,
        2880,
        32,
        4,
        2880,
        biases=True,
        sinks=True,
        ffn_norm="post_attention_norm",
        keys={"attention.sliding_window": 128},
    ),
    "qwen3-next-80b-a3b": Shape(
        "qwen3next",
        2048,
        16,
        2,
        256,
        5120,
        512,
        10,
        512,
        512,
        qk_norm=True,
        recurrent=True,
        ffn_norm="post_attention_norm",
        keys={
            "ssm.conv_kernel": 4,
            "ssm.state_size": 128,
            "ssm.group_count": 16,
            "ssm.time_step_rank": 32,
            "ssm.inner_size": 4096,
            "rope.dimension_count": 64,
        },
    ),
}


_TILE = 64
"""Rows that are quantized. The slowest encoder takes a quarter of a second for them at a length of 4096."""

_TILE_OF_TOKENS = 4096
"""Tokens must not be alike; Q8_0 is quick."""


class Weights:
    """Random matrices of a type: a tile of quantized rows per row length, repeated."""

    def __init__(self, type_name: str, seed: int) -> None:
        self.type = ikq.QuantType[type_name.upper()]
        self.rng = np.random.default_rng(seed)
        self.rows: dict[tuple[int, str, float], np.ndarray[Any, Any]] = {}

    def matrix(self, *shape: int) -> ikq.QTensor:
        """A tensor of numpy shape `shape` (row length last) whose products are as large as their inputs."""
        return self._repeated(shape, self.type, _TILE, float(np.sqrt(1 / shape[-1])))

    def embeddings(self, n_vocab: int, n_embd: int) -> ikq.QTensor:
        """Tokens larger than what layers add to them: routers then spread them over the experts."""
        return self._repeated((n_vocab, n_embd), ikq.QuantType.Q8_0, _TILE_OF_TOKENS, 1.0)

    def _repeated(
        self, shape: tuple[int, ...], wanted: ikq.QuantType, n_tile: int, sigma: float
    ) -> ikq.QTensor:
        """A tensor of the type, or of the next one that fits."""
        k, n_rows = shape[-1], int(np.prod(shape[:-1]))
        while k % wanted.block_size:
            wanted = wanted.fallback or ikq.QuantType.F16
        key = (k, wanted.name, sigma)
        if key not in self.rows:
            x = self.rng.standard_normal((n_tile, k), dtype=np.float32) * np.float32(sigma)
            self.rows[key] = ikq.quantize(x, wanted)
        rows = self.rows[key]
        start = int(self.rng.integers(0, rows.shape[0] // wanted.rows)) * wanted.rows
        index = (start + np.arange(n_rows)) % rows.shape[0]
        return ikq.QTensor(rows[index].reshape(-1), wanted, shape)


def write(
    path: Path,
    shape: Shape,
    n_layer: int,
    n_vocab: int,
    type_name: str,
    *,
    seed: int = 1,
    tokenizer: Path | None = None,
) -> Path:
    """Writes the model; returns its path. With a `tokenizer`, a GGUF file, it has the tokens of that."""
    a = shape.architecture
    words: dict[str, Any] = {}
    if tokenizer is not None:
        with ikq.GGUFReader(tokenizer) as source:
            found = source.metadata
            words = {
                key: ikq.Typed(found[key], found.type_of(key))
                for key in found
                if key.startswith("tokenizer.")
            }
            n_vocab = len(found["tokenizer.ggml.tokens"])
    metadata: dict[str, Any] = {
        "general.architecture": a,
        "general.name": "synthetic",
        f"{a}.vocab_size": n_vocab,
        f"{a}.context_length": 32768,
        f"{a}.embedding_length": shape.n_embd,
        f"{a}.block_count": n_layer,
        f"{a}.feed_forward_length": shape.n_ff,
        f"{a}.attention.head_count": shape.n_head,
        f"{a}.attention.head_count_kv": shape.n_head_kv,
        f"{a}.attention.key_length": shape.head_dim,
        f"{a}.attention.value_length": shape.head_dim,
        f"{a}.attention.layer_norm_rms_epsilon": ikq.Typed(1e-6, "float32"),
        f"{a}.rope.freq_base": ikq.Typed(1e6, "float32"),
        f"{a}.rope.dimension_count": shape.head_dim,
        "tokenizer.ggml.model": "no_vocab",
    }
    if shape.n_expert:
        metadata[f"{a}.expert_count"] = shape.n_expert
        metadata[f"{a}.expert_used_count"] = shape.n_used
        metadata[f"{a}.expert_feed_forward_length"] = shape.n_ff_expert
    if shape.n_ff_shared:
        metadata[f"{a}.expert_shared_feed_forward_length"] = shape.n_ff_shared
    metadata |= {f"{a}.{key}": value for key, value in shape.keys.items()} | words
    weights = Weights(type_name, seed)
    ones = lambda n: np.ones(n, np.float32)  # noqa: E731
    zeros = lambda *n: np.zeros(n, np.float32)  # noqa: E731
    e, f, x = shape.n_embd, shape.n_ff_expert, shape.n_expert
    q, kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    with ikq.GGUFWriter(path, metadata) as writer:
        add = writer.add_tensor
        add("token_embd.weight", weights.embeddings(n_vocab, e))
        add("output_norm.weight", ones(e))
        add("output.weight", weights.matrix(n_vocab, e))
        for i in range(n_layer):
            b = f"blk.{i}."
            add(b + "attn_norm.weight", ones(e))
            if shape.recurrent and (i + 1) % 4:
                keys, values = 16 * 128, 32 * 128
                add(b + "attn_qkv.weight", weights.matrix(2 * keys + values, e))
                add(b + "attn_gate.weight", weights.matrix(values, e))
                add(b + "ssm_ba.weight", weights.matrix(64, e))
                add(b + "ssm_conv1d.weight", np.full((2 * keys + values, 4), 0.25, np.float32))
                add(b + "ssm_dt.bias", zeros(32))
                add(b + "ssm_a", -ones(32))
                add(b + "ssm_norm.weight", ones(128))
                add(b + "ssm_out.weight", weights.matrix(e, values))
            else:
                add(b + "attn_q.weight", weights.matrix(2 * q if shape.recurrent else q, e))
                add(b + "attn_k.weight", weights.matrix(kv, e))
                add(b + "attn_v.weight", weights.matrix(kv, e))
                add(b + "attn_output.weight", weights.matrix(e, q))
                if shape.qk_norm:
                    add(b + "attn_q_norm.weight", ones(shape.head_dim))
                    add(b + "attn_k_norm.weight", ones(shape.head_dim))
                if shape.biases:
                    for name, n in (("q", q), ("k", kv), ("v", kv), ("output", e)):
                        add(f"{b}attn_{name}.bias", zeros(n))
                if shape.sinks:
                    add(b + "attn_sinks.weight", zeros(shape.n_head))
            add(f"{b}{shape.ffn_norm}.weight", ones(e))
            if not x:
                add(b + "ffn_gate.weight", weights.matrix(shape.n_ff, e))
                add(b + "ffn_up.weight", weights.matrix(shape.n_ff, e))
                add(b + "ffn_down.weight", weights.matrix(e, shape.n_ff))
                continue
            router = weights.rng.standard_normal((x, e), dtype=np.float32) / np.float32(np.sqrt(e))
            add(b + "ffn_gate_inp.weight", router)
            add(b + "ffn_gate_exps.weight", weights.matrix(x, f, e))
            add(b + "ffn_up_exps.weight", weights.matrix(x, f, e))
            add(b + "ffn_down_exps.weight", weights.matrix(x, e, f))
            if shape.biases:
                add(b + "ffn_gate_inp.bias", zeros(x))
                add(b + "ffn_gate_exps.bias", zeros(x, f))
                add(b + "ffn_up_exps.bias", zeros(x, f))
                add(b + "ffn_down_exps.bias", zeros(x, e))
            if shape.n_ff_shared:
                s = shape.n_ff_shared
                add(b + "ffn_gate_shexp.weight", weights.matrix(s, e))
                add(b + "ffn_up_shexp.weight", weights.matrix(s, e))
                add(b + "ffn_down_shexp.weight", weights.matrix(e, s))
                add(b + "ffn_gate_inp_shexp.weight", zeros(e))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--tokenizer", type=Path, metavar="GGUF", help="take the tokens of this file")
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    path = write(
        args.output, SHAPES[args.shape], args.layers, args.vocabulary, args.type, tokenizer=args.tokenizer
    )
    print(f"{path}: {path.stat().st_size / 2**30:.2f} GiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
