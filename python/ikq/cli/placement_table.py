"""The table of what is computed where, for the verbs `explain` and `run --dry-run`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ikq.inference.model import Placed

__all__ = ["PlacedLayers", "joined_layers", "placement_lines"]

_GIB = 2**30


class PlacedLayers(NamedTuple):
    """Layers that follow one another and have a part at the same place, for the same reason.

    Attributes:
        role: The part: `attention`, `experts`, ...; `embedding` and `output` have no layers.
        first, last: The layers; `None` where there are none.
        device, bytes, why: As in `Placed`; bytes of all these layers.
    """

    role: str
    first: int | None
    last: int | None
    device: str
    bytes: int
    why: str

    @property
    def name(self) -> str:
        """`layers 0-31, attention`."""
        if self.first is None:
            return self.role
        layers = f"layer {self.first}" if self.first == self.last else f"layers {self.first}-{self.last}"
        return f"{layers}, {self.role}"


def joined_layers(placement: Iterable[Placed]) -> list[PlacedLayers]:
    """Joins the stages of layers that follow one another, in order of the first of each."""
    rows: list[PlacedLayers] = []
    latest: dict[str, int] = {}  # row of the last layer with that role
    for stage, device, n_bytes, why in placement:
        found = re.fullmatch(r"layer (\d+), (.+)", stage)
        if found is None:
            rows.append(PlacedLayers(stage, None, None, device, n_bytes, why))
            continue
        layer, role = int(found[1]), found[2]
        at = latest.get(role)
        if at is not None and rows[at][2:4] == (layer - 1, device) and rows[at].why == why:
            rows[at] = rows[at]._replace(last=layer, bytes=rows[at].bytes + n_bytes)
        else:
            latest[role] = len(rows)
            rows.append(PlacedLayers(role, layer, layer, device, n_bytes, why))
    return rows


def placement_lines(placement: Sequence[Placed]) -> list[str]:
    """The table, and below it the sum of each device."""
    cells = [("stage", "device", "GiB", "why")]
    cells += [(r.name, r.device, f"{r.bytes / _GIB:.3f}", r.why) for r in joined_layers(placement)]
    devices = dict.fromkeys(p.device for p in placement)
    for device in devices:
        total = sum(p.bytes for p in placement if p.device == device)
        cells.append(("all", device, f"{total / _GIB:.3f}", ""))
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    return [
        f"{stage:<{widths[0]}}  {device:<{widths[1]}}  {gib:>{widths[2]}}  {why}".rstrip()
        for stage, device, gib, why in cells
    ]
