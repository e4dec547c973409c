"""Models of random weights for measurements: the tensors of a llama, no tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ikq


def write_model(path: Path, *, n_embd: int = 4096, n_ff: int = 4096, n_layer: int = 1, seed: int = 1) -> Path:
    """Writes an F16 model of `n_layer` blocks with three feed-forward matrices each.

    Weights are normal with sigma 0.02: the distribution of the `gauss` inputs of the error tables.
    """
    rng = np.random.default_rng(seed)
    metadata = {
        "general.architecture": "llama",
        "general.name": "synthetic",
        "general.file_type": 1,
        "llama.context_length": 512,
        "llama.embedding_length": n_embd,
        "llama.block_count": n_layer,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": n_embd // 128,
        "llama.attention.head_count_kv": n_embd // 128,
        "llama.attention.layer_norm_rms_epsilon": ikq.Typed(1e-5, "float32"),
        "llama.rope.dimension_count": 128,
        "tokenizer.ggml.model": "no_vocab",
    }
    with ikq.GGUFWriter(path, metadata) as writer:
        for layer in range(n_layer):
            shapes = {"ffn_gate": (n_ff, n_embd), "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff)}
            for name, shape in shapes.items():
                x = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
                writer.add_tensor(f"blk.{layer}.{name}.weight", x.astype(np.float16))
    return path


def write_imatrix(path: Path, model: Path, seed: int = 2) -> Path:
    """Writes importance values of three decades for every matrix of a model, in the `.dat` form."""
    rng = np.random.default_rng(seed)
    tensors = ikq.GGUFReader(model).tensors
    parts = [np.int32(len(tensors)).tobytes()]
    for name, tensor in tensors.items():
        values = np.exp(rng.normal(0.0, 1.5, tensor.shape[-1])).astype(np.float32)
        raw = name.encode()
        parts += [
            np.int32(len(raw)).tobytes(),
            raw,
            np.array([1, values.size], np.int32).tobytes(),
            values.tobytes(),
        ]
    path.write_bytes(b"".join(parts))
    return path
