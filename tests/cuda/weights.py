"""Weights for kernel tests: which types there are, and random rows of them with finite values."""

import numpy as np
from emulator import aligned, for_types, module, on_device

import ikq

# every type that a weight file may hold, but for floats, which need no decoder, and interleaved ones
TYPES = [t.name.lower() for t in ikq.QuantType if t.is_storable and t.rows == 1 and t.family != "float"]
# where halves and floats of blocks and headers stand: what random bytes must not make infinite
HALVES = {
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q6_0": [0], "q8_0": [0], "q2_k": [80, 82], "q3_k": [108],
    "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "iq2_xxs": [0], "iq2_xs": [0], "iq2_s": [0], "iq3_xxs": [0],
    "iq3_s": [0], "iq1_s": [0], "iq4_nl": [0], "iq4_xs": [0], "iq2_k": [0], "iq3_k": [0], "iq4_k": [0], "iq5_k": [0],
    "iq6_k": [0], "tq1_0": [52], "tq2_0": [64], "q1_0_g128": [0], "q2_0": [0],
}  # fmt: skip

# types of which a block of `mmv` and `down` computes 32 rows of a single column together
TOGETHER = ("iq1_kt", "iq2_kt", "iq4_kt")


def blocks_of_rows(name: str, n_rows: int, n_columns: int = 1) -> int:
    """The blocks that `mmv` and `down` need for the rows of a matrix."""
    return -(-n_rows // (32 if name in TOGETHER and n_columns == 1 else 4))


def random_scales(rng, shape) -> np.ndarray:
    return (rng.normal(size=shape) * 0.02).astype(np.float32)


def random_rows(name: str, n_rows: int, n: int, rng) -> np.ndarray:
    """Bytes of a matrix as a file has them: all codes, finite scales of both signs."""
    t = ikq.QuantType(name)
    blocks = n // (128 if name == "i2_s" else t.block_size)
    block_bytes = 32 if name == "i2_s" else t.block_bytes
    data = rng.integers(0, 256, (n_rows, blocks, block_bytes), dtype=np.uint8)
    for at in HALVES.get(name, []):
        data[:, :, at : at + 2] = random_scales(rng, (n_rows, blocks, 1)).astype(np.float16).view(np.uint8)
    if name == "iq1_m":  # the half's upper nibble: its exponent stays small
        data[:, :, 55] = data[:, :, 55] & 0x0F | rng.choice([0x20, 0xA0], (n_rows, blocks)).astype(np.uint8)
    if name == "mxfp4":
        data[:, :, 0] = rng.integers(110, 126, (n_rows, blocks))
    data = data.reshape(n_rows, -1)
    if name == "i2_s":
        trailer = np.zeros(32, np.uint8)
        trailer[:4] = np.array([0.3711], "<f4").view(np.uint8)
        return np.concatenate([data.reshape(-1), trailer])
    header = random_scales(rng, (n_rows, 1))
    if t.row_header_bytes == 2:
        data = np.concatenate([header.astype(np.float16).view(np.uint8), data], axis=1)
    if t.row_header_bytes >= 4:
        rest = np.zeros((n_rows, t.row_header_bytes - 4), np.uint8)
        data = np.concatenate([header.view(np.uint8), rest, data], axis=1)
    return np.ascontiguousarray(data).reshape(-1)


def as_floats(name: str, data: np.ndarray, n: int) -> np.ndarray:
    return ikq.dequantize(data, name, n)


def device_row_bytes(name: str, n: int) -> int:
    t = ikq.QuantType(name)
    row = n // 4 + 4 if name == "i2_s" else n // t.block_size * t.block_bytes + t.row_header_bytes
    return -(-row // 16) * 16


def device_form(name: str, data: np.ndarray, n_rows: int, n: int, order: int = 0) -> np.ndarray:
    out = aligned((n_rows, device_row_bytes(name, n)), np.uint8)
    weights_module().run(f"repack_{name}", n_rows, 128, on_device(data), out, n_rows, n, order=order)
    return out


def weights_module():
    return module(for_types("weights.cu", TYPES))


def row_lengths(name: str) -> list[int]:
    """A row of several units that ends inside one where the type allows it, and the shortest row."""
    block = 128 if name == "i2_s" else ikq.QuantType(name).block_size
    return [1280] if block == 256 else [1024 + block, block]
