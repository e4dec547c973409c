#!/usr/bin/env python3
"""What the last wave of a matrix product's tiles costs, and what dividing rows among blocks (split k) would gain.

    python tools/tail_model.py [--model qwen3-30b-a3b] [--tokens 512] [--card "RTX 4090"] [--type iq4_ks] [--products TOKENS] [--json OUT]

A block of `mmq` has a multiprocessor to itself (512 threads of 72 to 118 registers). All tiles of a launch take as long, so a
launch takes as many rounds (waves) as tiles for each multiprocessor, rounded up; in the last one some have none. Compared are

- *tiles*: as it is;
- *fixed*: rows are divided into as many parts as suit the matrix best over all numbers of tokens that are asked for. A result is the sum
  of parts whatever else is in the step, so its bits do not depend on that;
- *free*: each launch divides rows as suits it best. Then bits depend on the number of tokens;
- *bound*: no multiprocessor ever waits, and dividing costs nothing (what stream-k comes near to);
- *together*: products of the same columns are one launch, undivided: q, k and v. That changes no bits.

A part writes its sums, and a second launch reads them, at the card's bandwidth. No launch is faster than its weights are read.
Clocks of a step of 128 elements are those of `tools/mma_budget.py` (`benches/results/cuda_mma.md`). Nothing here was run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Card(NamedTuple):
    """Multiprocessors, clocks per second, bytes per second, and clocks of an int8 m16n8k32 per scheduler."""

    n: int
    clock: float
    bandwidth: float
    mma: int


CARDS = {
    "H100 PCIe": Card(114, 1.75e9, 2.0e12, 4),
    "H100 SXM": Card(132, 1.83e9, 3.0e12, 4),
    "H200": Card(132, 1.83e9, 4.3e12, 4),
    "RTX 4090": Card(128, 2.52e9, 0.95e12, 16),
    "RTX 3090": Card(82, 1.70e9, 0.9e12, 16),
}

INSTRUCTIONS = {
    "iq4_ks": {32: 37.0, 64: 22.9, 128: 18.6},
    "q4_k": {32: 43.4, 64: 29.2, 128: 23.4},
    "q8_0": {32: 30.9, 64: 21.1, 128: 17.2},
}
"""Instructions per m16n8k32 by the tile's columns, on sm_86."""

BITS = {"iq4_ks": 4.25, "q4_k": 4.5, "q8_0": 8.5}
"""Of a weight."""

LAUNCH = 2.0e-6
"""Seconds between the end of a launch and the first products of the next one."""
MOST_PARTS = 8
LEAST_STEPS = 2
"""A part has at least so many steps of 128 elements: its beginning, which waits for loads, is as long as one."""


class Matrix(NamedTuple):
    """A product: rows of a block (of each of up and gate, where these are computed together), rows, elements, and
    experts that there are and that a token has."""

    name: str
    block_rows: int
    n_rows: int
    n: int
    n_experts: int = 1
    n_used: int = 1
    is_joined: bool = False
    """Reads the same columns as the one before it."""


MODELS = {
    "qwen3-30b-a3b": (
        Matrix("q", 128, 4096, 2048),
        Matrix("k", 128, 512, 2048, is_joined=True),
        Matrix("v", 128, 512, 2048, is_joined=True),
        Matrix("attention output", 128, 2048, 4096),
        Matrix("up and gate", 64, 768, 2048, 128, 8),
        Matrix("down", 128, 2048, 768, 128, 8),
    ),
}


@dataclass(frozen=True)
class Launch:
    """A product of so many tokens on a card.

    Attributes:
        tile: Columns of a block.
        n_tiles: Blocks that compute something.
        n_steps: Steps of 128 elements of each.
        step: Seconds of a step.
        sums: Bytes of all sums, once.
        weights: Bytes of weights that are read.
    """

    tile: int
    n_tiles: int
    n_steps: int
    step: float
    sums: int
    weights: float
    card: Card

    def seconds(self, n_parts: int) -> float:
        """Of a launch that divides rows into so many parts, with what adds them."""
        rounds = math.ceil(self.n_tiles * n_parts / self.card.n)
        beginning = 1  # loads of the first step are waited for
        computing = rounds * (math.ceil(self.n_steps / n_parts) + beginning) * self.step
        computing = max(computing, self.weights / self.card.bandwidth)
        # each part's sums are written and read again, and the results written
        adding = (LAUNCH + (2 * n_parts) * self.sums / self.card.bandwidth) if n_parts > 1 else 0.0
        return LAUNCH + computing + adding

    @property
    def parts(self) -> range:
        """Numbers of parts that may be."""
        return range(1, max(1, min(MOST_PARTS, self.n_steps // LEAST_STEPS)) + 1)

    @property
    def bound(self) -> float:
        """Seconds if no multiprocessor ever waited."""
        computing = self.n_tiles * (self.n_steps + 1) * self.step / self.card.n
        return LAUNCH + max(computing, self.weights / self.card.bandwidth)

    @property
    def fill(self) -> float:
        """Share of the multiprocessors that have a tile, on average over the launch."""
        return self.n_tiles / (self.card.n * math.ceil(self.n_tiles / self.card.n))


def counts(matrix: Matrix, n_tokens: int) -> list[int]:
    """Columns of each expert, chosen evenly at random: always the same ones."""
    if matrix.n_experts == 1:
        return [n_tokens]
    random_ = random.Random(n_tokens)
    found = [0] * matrix.n_experts
    for _ in range(n_tokens):
        for e in random_.sample(range(matrix.n_experts), matrix.n_used):
            found[e] += 1
    return found


def tile_of(matrix: Matrix, n_tokens: int, card: Card) -> int:
    """As `Columns::tile` of `rust/ikq-cuda/src/plan/mmq.rs`, for types that have all tiles."""
    n = math.ceil(n_tokens * matrix.n_used / matrix.n_experts)
    blocks = math.ceil(matrix.n_rows / 128) * matrix.n_experts * math.ceil(n / 128)
    if n > 64 and blocks >= card.n:
        return 128
    return 64 if n > 32 else 32


def launch(matrix: Matrix, n_tokens: int, card: Card, type_: str) -> Launch:
    tile = tile_of(matrix, n_tokens, card)
    of_expert = counts(matrix, n_tokens)
    columns = sum(math.ceil(c / tile) for c in of_expert)
    n_mma = (128 // 16) * (tile // 8) * 4 / 4  # of a step, for each of four schedulers
    clocks = n_mma * max(card.mma, INSTRUCTIONS[type_][tile])
    results = matrix.n_rows * (2 if matrix.block_rows == 64 else 1)
    return Launch(
        tile,
        math.ceil(matrix.n_rows / matrix.block_rows) * columns,
        math.ceil(matrix.n / 128),
        clocks / card.clock,
        4 * results * n_tokens * matrix.n_used,
        results * matrix.n * BITS[type_] / 8 * sum(c > 0 for c in of_expert),
        card,
    )


def fixed_parts(matrix: Matrix, tokens: list[int], card: Card, type_: str) -> int:
    """The number of parts with the least sum of times, each as a share of what it takes undivided."""
    launches = [launch(matrix, n, card, type_) for n in tokens]
    return min(launches[0].parts, key=lambda p: sum(x.seconds(p) / x.seconds(1) for x in launches))


def joined(matrices: tuple[Matrix, ...]) -> list[Matrix]:
    """The same with products of the same columns as one matrix."""
    found: list[Matrix] = []
    for matrix in matrices:
        if matrix.is_joined:
            last = found.pop()
            found.append(
                last._replace(name=f"{last.name}, {matrix.name}", n_rows=last.n_rows + matrix.n_rows)
            )
        else:
            found.append(matrix)
    return found


def times_of(x: Launch, n_fixed: int) -> tuple[list[float], int]:
    """Seconds undivided, in `n_fixed` parts, in the best number of parts, and if nothing ever waited; and that best number."""
    free = min(x.parts, key=x.seconds)
    return [x.seconds(1), x.seconds(n_fixed), x.seconds(free), x.bound], free


class Model:
    """A layer's products on a card, for steps of all these numbers of tokens."""

    def __init__(self, name: str, card: str, type_: str, tokens: list[int]) -> None:
        self.matrices, self.name, self.card, self.type = MODELS[name], card, CARDS[card], type_
        self.fixed = {m: fixed_parts(m, tokens, self.card, type_) for m in self.matrices}

    def of_layer(self, n_tokens: int) -> tuple[float, list[float]]:
        """Seconds of all products, and what the other ways take of that."""
        sums = [0.0] * 4
        for matrix in self.matrices:
            found, _ = times_of(launch(matrix, n_tokens, self.card, self.type), self.fixed[matrix])
            sums = [a + b for a, b in zip(sums, found, strict=True)]
        sums.append(sum(launch(m, n_tokens, self.card, self.type).seconds(1) for m in joined(self.matrices)))
        return sums[0], [t / sums[0] for t in sums[1:]]

    def summary(self, n_tokens: int) -> str:
        """A row of the first table."""
        seconds, shares = self.of_layer(n_tokens)
        cells = [self.name, str(n_tokens), f"{1e6 * seconds:.0f}", *(f"{x:.2f}" for x in shares)]
        return f"| {' | '.join(cells)} |"

    def products(self, n_tokens: int) -> list[str]:
        """Rows of the second table."""
        rows = []
        for matrix in self.matrices:
            x = launch(matrix, n_tokens, self.card, self.type)
            found, free = times_of(x, self.fixed[matrix])
            told = [f"{1e6 * t:.0f}" for t in found]
            told[1] += f" ({self.fixed[matrix]})"
            told[2] += f" ({free})"
            rounds = math.ceil(x.n_tiles / self.card.n)
            cells = [self.name, n_tokens, matrix.name, x.tile, x.n_tiles, rounds, f"{x.fill:.2f}", *told]
            rows.append(f"| {' | '.join(map(str, cells))} |")
        return rows


SUMMARY = """\
| card | tokens | us of a layer's products | fixed | free | bound | together |
| --- | --: | --: | --: | --: | --: | --: |"""
PRODUCTS = """\
| card | tokens | product | tile | tiles | rounds | fill | us | fixed | free | bound |
| --- | --: | --- | --: | --: | --: | --: | --: | --: | --: | --: |"""
TOKENS = [16, 32, 64, 128, 256, 512, 1024, 2048]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="qwen3-30b-a3b")
    parser.add_argument("--tokens", type=int, action="append", help="tokens of a step; may be repeated")
    parser.add_argument("--card", choices=list(CARDS), action="append", help="may be repeated (all)")
    parser.add_argument("--type", choices=sorted(INSTRUCTIONS), default="iq4_ks")
    parser.add_argument("--products", type=int, metavar="TOKENS", help="each product of a step, instead")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokens = arguments.tokens or TOKENS
    models = [Model(arguments.model, name, arguments.type, tokens) for name in arguments.card or CARDS]
    if arguments.products:
        print("\n".join([PRODUCTS, *(row for m in models for row in m.products(arguments.products))]))
    else:
        print("\n".join([SUMMARY, *(m.summary(n) for m in models for n in tokens)]))
    if arguments.json:
        rows = []
        for m in models:
            for n in tokens:
                seconds, shares = m.of_layer(n)
                names = ("fixed", "free", "bound", "together")
                rows.append(
                    {"card": m.name, "tokens": n, "seconds": seconds} | dict(zip(names, shares, strict=True))
                )
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
