"""What a step takes on a GPU besides weights and cache: `step_bytes`.

The core finds out when a step runs (`rust/ikq-cuda`, `device/scratch.rs` and `device/columns.rs`); here the
same is told before anything is loaded, from shapes, and rather a little too much. Tests hold it against the
driver.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ikq.files.gguf import GGUFReader
from ikq.inference.explaining import Placed
from ikq.models import ModelSpec
from ikq.models.spec import DenseFfn, Gqa, Linear, Mla, Moe

__all__ = ["step_bytes"]

_PAGE = 256
"""Positions of a page of the cache, and of a split of attention."""
_MOST_COLUMNS = 8
"""Columns whose logits are made at once."""
_MOST_SPLITS = 64 << 20
"""Bytes of the results of splits, unless a single column has more."""
_FLOAT = 4
_CODED = _FLOAT + 1 + 8 / 32
"""Bytes of an element that is kept as a float and as a code: blocks of 32 have two more floats."""
_ALIGNED = 64 * 256
"""Bytes that all pieces together lose because they begin at multiples of 256."""


def step_bytes(
    reader: GGUFReader,
    spec: ModelSpec,
    placement: Iterable[Placed],
    device: str,
    *,
    n_ubatch: int,
    n_ctx: int,
) -> int:
    """Bytes that a step takes at most on a GPU.

    Args:
        reader: The model's file.
        spec: What its model is.
        placement: What is computed where.
        device: The GPU's name there.
        n_ubatch: Most tokens of a step.
        n_ctx: Most positions of a sequence.
    """
    stages = [p.stage for p in placement if p.device == device]
    if not stages:
        return 0
    widest = _Widest(reader)
    for stage in stages:
        found = re.fullmatch(r"layer (\d+), (.+)", stage)
        if found is None:
            assert spec.output is not None
            widest.logits = widest.rows(spec.output)
            continue
        layer, role = spec.layers[int(found[1])], found[2]
        if role == "attention":
            assert layer.attention.kind != "delta_net"
            widest.attention(layer.attention, n_ctx)
        else:
            widest.ffn(layer.ffn, role)
    n_columns = n_ubatch
    splits = max(widest.split_bytes, min(widest.split_bytes * n_columns, _MOST_SPLITS))
    return int(
        n_columns * widest.column_bytes(spec.n_embd)
        + _FLOAT * _MOST_COLUMNS * widest.logits
        # what kernels are told about columns grows by a quarter more than it needs
        + 1.25 * n_columns * widest.told_bytes(spec, n_ctx)
        + splits
        + _ALIGNED
    )


class _Widest:
    """Elements of a column of everything that stages need, of the widest of each kind."""

    def __init__(self, reader: GGUFReader) -> None:
        self._reader = reader
        self.logits = 0
        self.split_bytes = 0
        self._activated = self._scores = self._used = 0
        self._q = self._k = self._v = self._queries = self._inner = self._outer = 0
        self._latent_heads = 0

    def rows(self, linear: Linear) -> int:
        """Rows of a matrix, or of an expert's."""
        name = linear.weight if isinstance(linear.weight, str) else linear.weight[0]
        return linear.n_rows or self._reader.tensors[name].shape[-2]

    def attention(self, a: Gqa | Mla, n_ctx: int) -> None:
        """Takes a layer's attention in."""
        if isinstance(a, Gqa):
            compressed, inner = self.rows(a.v), 0
            key, queries, n_v = self.rows(a.k), a.n_head * a.head_dim, a.head_dim_v
            seen = n_ctx if a.window is None else min(n_ctx, a.window)
        else:
            compressed = 0 if a.q_a is None else self.rows(a.q_a)
            inner = max(a.n_head * max(a.n_nope, a.kv_rank), compressed)
            key, n_v, seen = a.kv_rank + a.n_rot, a.kv_rank, n_ctx
            queries = a.n_head * key
            self._latent_heads = max(self._latent_heads, a.n_head)
        self._q = max(self._q, self.rows(a.q))
        self._k = max(self._k, key)
        self._v = max(self._v, compressed)
        self._queries = max(self._queries, queries)
        self._inner = max(self._inner, inner)
        self._outer = max(self._outer, a.n_head * a.head_dim_v)
        self.split_bytes = max(self.split_bytes, _FLOAT * a.n_head * -(-seen // _PAGE) * (n_v + 2))

    def ffn(self, ffn: DenseFfn | Moe, role: str) -> None:
        """Takes a stage of a layer's FFN in."""
        if isinstance(ffn, DenseFfn):
            self._activated = max(self._activated, self.rows(ffn.up))
            return
        self._used = max(self._used, ffn.routing.n_used)
        if role == "router":
            self._scores = max(self._scores, ffn.routing.n_expert)
        elif role == "experts":
            self._activated = max(self._activated, self.rows(ffn.up) * ffn.routing.n_used)
        elif ffn.shared is not None:
            self._activated = max(self._activated, self.rows(ffn.shared.up))

    def column_bytes(self, n_embd: int) -> float:
        """Of a column's values."""
        # the residual stream, columns that logits are made of, branches; gate and up may be made apart
        floats = 5 * n_embd + 2 * self._activated + self._scores + 2 * self._used + 1
        floats += self._q + self._k + self._v + self._queries
        coded = sum(-(-n // 32) * 32 for n in (n_embd, n_embd, self._activated, self._inner, self._outer))
        return _FLOAT * floats + _CODED * coded

    def told_bytes(self, spec: ModelSpec, n_ctx: int) -> int:
        """Of what kernels are told about a column: places in each group's cache, angles, numbers of heads."""
        attentions = [layer.attention for layer in spec.layers]
        windows = {a.window if isinstance(a, Gqa) else None for a in attentions}
        ropes = {a.rope for a in attentions if a.kind != "delta_net" and a.rope is not None}
        # two, its run's number, and four of the run, of which a column may be all
        numbers = 7 + self._latent_heads + len(windows) * (3 + -(-n_ctx // _PAGE))
        return _FLOAT * (numbers + sum(rope.n_rot for rope in ropes))
