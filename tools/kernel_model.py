#!/usr/bin/env python3
"""What bounds each kernel of products and of attention: memory, tensor cores, or instructions, from its own machine code. No GPU is needed.

    pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm
    python tools/kernel_model.py [--tokens 512] [--depth 4096] [--type iq4_ks] [--arch 86] [--kernel NAME] [--json OUT]

One launch of each with the shapes of a layer of Qwen3-30B-A3B. Of a block's tile: bytes that it reads and writes, and its tensor
instructions (mma). Of its loop, in machine code: instructions that are issued for each of these, and of them those of the innermost
loop that multiplies. *Share* is what of the tensor cores' rate that leaves, if nothing waits. Times: *memory*, every byte of weights,
columns, caches and results once, at the data sheet's rate; *tensor*, the mma at the data sheet's rate; *issue*, an instruction for each
clock and scheduler. Their largest is the bound: no launch is faster. What a last round of tiles costs is in `tools/tail_model.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent / "tests/cuda"),
    str(Path(__file__).resolve().parent),
]
import tail_model  # noqa: E402
from mma_budget import CLOCKS, per_mma_of  # noqa: E402
from nvrtc import compile_, library  # noqa: E402
from sass_budget import machine_code  # noqa: E402
from sass_flow import Way, turn_of  # noqa: E402
from tail_model import Card, Matrix  # noqa: E402

import ikq  # noqa: E402

CARDS = {
    80: ("A100 SXM", Card(108, 1.41e9, 2.04e12, 8)),
    86: ("RTX 3090", tail_model.CARDS["RTX 3090"]),
    89: ("RTX 4090", tail_model.CARDS["RTX 4090"]),
    90: ("H200", tail_model.CARDS["H200"]),
}
"""A card of each architecture."""
SCHEDULERS = 4
CLOCKS_OF_FLOATS = {80: 8, 86: 32, 89: 32, 90: 4}
"""Clocks of a m16n8k16 of halves, and of a m16n8k8 of tf32, with sums in floats, per scheduler at the data sheet's rate. Cards of sm_86
and 89 that are not GeForce take 16; that of sm_90 is wgmma's."""
HEADS, KV_HEADS, HEAD = 32, 4, 128
KEYS = 64  # of a round of attention
SPAN_OF_PROMPT, SPAN_OF_TOKEN = 1024, 256  # positions of a split
CODE_BYTES = 1 + 8 / 32
"""Of an element of a column: its code, and a scale and a sum for 32."""


@dataclass
class Found:
    """A launch of a kernel on a card.

    Attributes:
        tile_bytes: That a tile's block reads and writes.
        tile_mma: Tensor instructions of a tile; 0: it has none.
        each: Instructions that a warp issues for each of these (or for 32 bytes of the cache, where there are none).
        multiplying: Those of the innermost loop.
        share: Of the tensor cores' rate.
        us: By memory, tensor cores and issue slots.
    """

    kernel: str
    what: str
    card: str
    n_tiles: int
    tile_bytes: float
    tile_mma: float
    each: float
    multiplying: float | None
    share: float | None
    us: dict[str, float]

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.us, key=lambda what: self.us[what])

    def row(self) -> str:
        """Of the table."""
        multiplying = "-" if self.multiplying is None else f"{self.multiplying:.1f}"
        share = "-" if self.share is None else f"{self.share:.2f}"
        mma, tensor = (
            ("-", "-") if self.share is None else (f"{self.tile_mma:.0f}", f"{self.us['tensor']:.1f}")
        )
        cells = [
            self.kernel, self.what, self.card, str(self.n_tiles), f"{self.tile_bytes / 1024:.0f}", mma, f"{self.each:.1f}",
            multiplying, share, f"{self.us['memory']:.1f}", tensor, f"{self.us['issue']:.1f}", self.bound,
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


HEADER = """\
| kernel | launch | card | tiles | KiB of a tile | mma of a tile | instructions per mma | multiplying | share | memory, us | tensor, us | issue, us | bound |
| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --- |"""


def timed(card: Card, n_bytes: float, n_mma: float, clocks: float, n_instructions: float) -> dict[str, float]:
    """Microseconds by what takes them."""
    slots = SCHEDULERS * card.n * card.clock
    found = {
        "memory": n_bytes / card.bandwidth,
        "tensor": n_mma * clocks / slots,
        "issue": n_instructions / slots,
    }
    return {what: 1e6 * seconds for what, seconds in found.items()}


def of_codes(matrix: Matrix, architecture: int, tokens: int, type_: str, output: float) -> Found:
    """`mmq` and `mmq_upgate`; `output` is the bytes of a result."""
    name, card = CARDS[architecture]
    paired = matrix.block_rows == 64
    widest = (
        64
        if per_mma_of(("mmq.cu", (f"IKQ_TYPE={type_}", "IKQ_TILE=128")), architecture, 128) is None
        else 128
    )
    tile = min(widest, tail_model.tile_of(matrix, tokens, card))
    defines = (f"IKQ_TYPE={type_}", *([f"IKQ_GATE={type_}"] if paired else []), f"IKQ_TILE={tile}")
    found = per_mma_of(("mmq_upgate.cu" if paired else "mmq.cu", defines), architecture, tile)
    assert found is not None
    each, multiplying, _ = found
    of_expert = tail_model.counts(matrix, tokens)
    n_tiles = math.ceil(matrix.n_rows / matrix.block_rows) * sum(math.ceil(c / tile) for c in of_expert)
    rows, bits = matrix.n_rows * (2 if paired else 1), ikq.QuantType(type_).bpw
    mma = 128 // 16 * (tile // 8) * (matrix.n // 32)
    tile_bytes = 128 * matrix.n * bits / 8 + tile * matrix.n * CODE_BYTES + matrix.block_rows * tile * output
    weights = sum(c > 0 for c in of_expert) * rows * matrix.n * bits / 8
    # columns that several experts of a token read are counted once, those that down reads are a token's and expert's
    n_columns = tokens if paired or matrix.n_experts == 1 else tokens * matrix.n_used
    n_bytes = weights + n_columns * matrix.n * CODE_BYTES + tokens * matrix.n_used * matrix.n_rows * output
    clocks = CLOCKS[architecture]
    us = timed(card, n_bytes, n_tiles * mma, clocks, n_tiles * mma * each)
    kernel = f"{'mmq_upgate' if paired else 'mmq'}, t{tile}"
    share = min(1.0, clocks / each)
    return Found(kernel, matrix.name, name, n_tiles, tile_bytes, mma, each, multiplying, share, us)


def mmq(architecture: int, tokens: int, _: int, type_: str) -> Found:
    matrix = Matrix(f"q, {type_}", 128, 4096, 2048)
    return of_codes(matrix, architecture, tokens, type_, 4)


def mmq_upgate(architecture: int, tokens: int, _: int, type_: str) -> Found:
    """Results are codes: what down reads."""
    matrix = Matrix(f"experts' up and gate, {type_}", 64, 768, 2048, 128, 8)
    return of_codes(matrix, architecture, tokens, type_, CODE_BYTES)


def mmq_down(architecture: int, tokens: int, _: int, type_: str) -> Found:
    """The product of each pair is written where the pair stands. Another kernel reads them and adds slots, which is not counted."""
    matrix = Matrix(f"experts' down, scattered, {type_}", 128, 2048, 768, 128, 8)
    return of_codes(matrix, architecture, tokens, type_, 4)


def mmf(type_: str) -> Callable[[int, int, int, str], Found]:
    """Floats: `mma` of tf32."""

    def found(architecture: int, tokens: int, _: int, __: str) -> Found:
        name, card = CARDS[architecture]
        side, depth, rows, n = 64, 32, 4096, 2048
        kernels, cubin = compile_(("mmf.cu", (f"IKQ_TYPE={type_}",)), architecture)
        # one turn is a step; what multiplies is not a loop of its own
        way = turn_of(machine_code(cubin, kernels[0].name), r"HMMA|LDG\.E\.128", lambda _: 1)
        of_step = way.count("HMMA")
        products = 2 if type_ in ("f16", "bf16") else 3
        assert of_step == 2 * 4 * (depth // 8) * products, of_step
        each = way.count() / of_step
        n_tiles = rows // side * math.ceil(tokens / side)
        mma = 4 * of_step * n / depth
        size = 4 if type_ == "f32" else 2
        tile_bytes = side * n * (size + 4) + side * side * 4
        clocks = CLOCKS_OF_FLOATS[architecture]
        n_bytes = rows * n * size + tokens * (n + rows) * 4
        us = timed(card, n_bytes, n_tiles * mma, clocks, n_tiles * mma * each)
        share = min(1.0, clocks / each)
        return Found("mmf", f"q, {type_}", name, n_tiles, tile_bytes, mma, each, None, share, us)

    return found


def bytes_of_cache(type_: str) -> float:
    """Of a head's key or value."""
    return HEAD * ikq.QuantType(type_).bpw / 8


def round_of_tiles(architecture: int, cache: str, row_warps: int) -> tuple[Way, float]:
    """What a warp issues for a round of keys in `attend_tiles`, and of that what it issues where scores are multiplied.

    For heads of 128 elements: a warp has 16 rows of 64, or a fourth of the keys and of a value's elements.
    """
    kernels, cubin = compile_(
        ("attention_tiles.cu", (f"IKQ_TYPE={cache}", f"IKQ_VALUES={cache}")), architecture
    )
    ending = "r64" if row_warps == 4 else "r16"
    (kernel,) = (k.name for k in kernels if k.name.endswith(ending))
    groups = KEYS // 8 * row_warps // 4
    scores: list[float] = []

    def trips(turn: Way) -> float:
        if mma := turn.count("HMMA"):
            scores.append(turn.count() * groups / mma)
            return HEAD / 16 * groups / mma
        # halves are copied: 16 rows at a time, two chunks of 16 bytes of each; others decoded: 32 rows, a block of each
        if copies := turn.count("LDGSTS"):
            return 2 / copies if copies < 2 else KEYS / 16 * 2 / copies
        if blocks := turn.count("STS.128"):
            return 4 / blocks if blocks < 4 else KEYS / 32 * 4 / blocks
        return 1

    way = turn_of(machine_code(cubin, kernel), r"HMMA|LDGSTS|STS\.128", trips)
    # keys and values, 16 bytes of halves at a time, by 128 threads
    assert way.count("LDGSTS" if cache == "f16" else r"STS\.128") == 2 * KEYS * HEAD / 8 / 128
    # with ones for the sum of weights
    assert way.count("HMMA") == groups * HEAD / 16 + KEYS / 16 * (HEAD / 8 * row_warps / 4 + 1)
    return way, scores[-1] / groups


def attend_tiles(cache: str, of_prompt: bool) -> Callable[[int, int, int, str], Found]:
    """Prompts in tiles of 64 rows, single tokens in tiles of 16."""

    def found(architecture: int, tokens: int, depth: int, _: str) -> Found:
        name, card = CARDS[architecture]
        row_warps = 4 if of_prompt else 1
        way, multiplying = round_of_tiles(architecture, cache, row_warps)
        rows_of_tile, n_columns = 16 * row_warps, tokens if of_prompt else 1
        span = SPAN_OF_PROMPT if of_prompt else SPAN_OF_TOKEN
        rows = n_columns * HEADS // KV_HEADS
        # on average; the last round of a column has keys that it does not see
        seen = depth + n_columns / 2
        tiles_of_head, n_splits = math.ceil(rows / rows_of_tile), math.ceil(seen / span)
        rounds = KV_HEADS * tiles_of_head * seen / KEYS
        mma = 4 * way.count("HMMA")
        each = way.count() / way.count("HMMA")
        of_row = HEAD * 4 + (HEAD + 2) * 4  # a query, and sums of values
        tile_bytes = rows_of_tile * of_row + min(span, seen) * 2 * bytes_of_cache(cache)
        n_bytes = KV_HEADS * ((depth + n_columns) * 2 * bytes_of_cache(cache) + rows * n_splits * of_row)
        clocks = CLOCKS_OF_FLOATS[architecture]
        us = timed(card, n_bytes, rounds * mma, clocks, rounds * mma * each)
        what = (
            f"{tokens} columns behind {depth}, {cache}" if of_prompt else f"a column behind {depth}, {cache}"
        )
        n_tiles = KV_HEADS * tiles_of_head * n_splits
        share = min(1.0, clocks / each)
        kernel = f"attend_tiles, {'r64' if of_prompt else 'r16'}"
        tile_mma = mma * min(span, seen) / KEYS
        return Found(kernel, what, name, n_tiles, tile_bytes, tile_mma, each, multiplying, share, us)

    return found


def attend(cache: str) -> Callable[[int, int, int, str], Found]:
    """Single tokens whose heads have keys of their own: no tensor cores. Instructions are those for 32 bytes of the cache."""

    def found(architecture: int, _: int, depth: int, __: str) -> Found:
        name, card = CARDS[architecture]
        kernels, cubin = compile_(
            ("attention.cu", (f"IKQ_TYPE={cache}", f"IKQ_VALUES={cache}")), architecture
        )
        lanes = HEAD // 32

        def trips(turn: Way) -> float:
            # a lane has 32 elements of a key; floats are 8 at a time. Scores are added over the lanes of a row.
            if loads := turn.count(r"LDG\.E\.128"):
                return 4 / loads
            return math.log2(lanes) / turn.count("SHFL") if turn.count("SHFL") else 1

        way = turn_of(machine_code(cubin, kernels[0].name), r"LDG\.E\.128", trips)
        assert cache != "f16" or way.count(r"LDG\.E\.128") == 8
        of_turn = 32 // lanes * 2 * bytes_of_cache(cache)  # of a warp
        n_bytes = HEADS * depth * 2 * bytes_of_cache(cache)
        n_splits = math.ceil(depth / SPAN_OF_TOKEN)
        us = timed(card, n_bytes, 0, 0, n_bytes / of_turn * way.count())
        tile_bytes = min(depth, SPAN_OF_TOKEN) * 2 * bytes_of_cache(cache) + (2 * HEAD + 2) * 4
        each = way.count() / (of_turn / 32)
        what = f"a column behind {depth}, {HEADS} heads of keys, {cache}"
        return Found("attend", what, name, HEADS * n_splits, tile_bytes, 0, each, None, None, us)

    return found


KERNELS: dict[str, Callable[[int, int, int, str], Found]] = {
    "mmq": mmq,
    "mmq_upgate": mmq_upgate,
    "mmq_down": mmq_down,
    "mmf_bf16": mmf("bf16"),
    "mmf_f32": mmf("f32"),
    "attend_tiles_prompt_f16": attend_tiles("f16", True),
    "attend_tiles_prompt_q8_0": attend_tiles("q8_0", True),
    "attend_tiles_token_f16": attend_tiles("f16", False),
    "attend_token_f16": attend("f16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=512, help="of a prompt")
    parser.add_argument("--depth", type=int, default=4096, help="positions before, of attention")
    parser.add_argument("--type", type=str.lower, default="iq4_ks", help="of quantized weights")
    parser.add_argument(
        "--arch", type=int, action="append", choices=list(CARDS), help="may be repeated (all)"
    )
    parser.add_argument("--kernel", action="append", choices=list(KERNELS), help="may be repeated (all)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if library() is None:
        raise SystemExit("NVRTC is missing: pip install nvidia-cuda-nvrtc")
    print(HEADER)
    rows = []
    for kernel in arguments.kernel or KERNELS:
        for architecture in arguments.arch or CARDS:
            found = KERNELS[kernel](architecture, arguments.tokens, arguments.depth, arguments.type)
            print(found.row(), flush=True)
            rows.append(asdict(found) | {"bound": found.bound})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
