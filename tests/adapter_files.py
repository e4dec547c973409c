"""LoRA adapters for any fixture as GGUF files, and what their base is with them merged into it."""

from __future__ import annotations

import zlib

import numpy as np

import ikq
from ikq import Typed

RANK, ALPHA = 3, 6.0
# tensors of two axes and more that are no matrix of a product
_NO_PRODUCT = ("ssm_conv1d.weight", "token_embd.weight", "rope_freqs.weight", "_norm.weight")


def matrices(reader):
    """Names of the tensors that the engine multiplies with, embeddings aside."""
    # older files of latent attention have the same matrices twice
    twins = [n for n in reader.tensors if n.replace("kv_b", "k_b") in reader.tensors and "attn_kv_b" in n]
    return [
        n
        for n, t in reader.tensors.items()
        if len(t.shape) > 1
        and n.endswith(".weight")
        and not n.endswith(_NO_PRODUCT)
        and "nextn" not in n
        and n not in twins
    ]


def pair(name, shape, weight, rank=RANK, size=0.2):
    """Random A and B for a tensor of this shape, with a product of about `size` times the weights."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    *lead, n_rows, k = shape
    a = rng.normal(size=(*lead, rank, k)).astype(np.float32)
    b = rng.normal(size=(*lead, n_rows, rank)).astype(np.float32)
    b *= np.float32(size * weight.std() / np.sqrt(rank) / (ALPHA / rank))
    return a, b


def pairs_for(reader, names, **options):
    """By name, A and B as numpy arrays with one axis per tensor axis."""
    found = {}
    for name in names:
        weight = reader.tensors[name].dequantize()
        if name == "token_embd.weight":
            # of the transposed matrix: [tokens, rank] and [columns, rank]
            a, b = pair(name, weight.T.shape, weight, **options)
            found[name] = (np.ascontiguousarray(a.T), b)
        else:
            found[name] = pair(name, weight.shape, weight, **options)
    return found


def write_adapter(path, architecture, pairs, *, alpha=ALPHA, metadata=(), tensors=()):
    """The pairs as a file; `metadata` and `tensors` are added, or take the place of others (`None`: leave out)."""
    keys = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": Typed(alpha, "float32"),
    } | dict(metadata)
    arrays = {f"{n}.lora_{p}": x for n, (a, b) in pairs.items() for p, x in (("a", a), ("b", b))}
    arrays |= dict(tensors)
    with ikq.GGUFWriter(path, {k: v for k, v in keys.items() if v is not None}) as writer:
        for name, x in arrays.items():
            if x is not None:
                writer.add_tensor(name, x)
    return path


def merged(reader, path, *adapters):
    """Writes the base with the sums of adapters, pairs and scale of each, in its weights, all in float32."""
    with ikq.GGUFWriter(path, reader.metadata) as writer:
        for name, tensor in reader.tensors.items():
            weight = tensor.dequantize().astype(np.float64)
            for pairs, scale in adapters:
                if name in pairs:
                    a, b = (x.astype(np.float64) for x in pairs[name])
                    rank = b.shape[-1]
                    product = a @ b.T if name == "token_embd.weight" else b @ a
                    weight = weight + scale * ALPHA / rank * product
            writer.add_tensor(name, weight.astype(np.float32))
    return path
