"""What GPUs can do at most: what was measured on the card (`gpu_peaks.py`), and what data sheets say of cards that are known by name."""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

from ikq import cuda

MEASURED = "IKQ_CHECK_PEAKS"
"""The variable in which `gpu_check.py` tells its groups what was measured: numbers by the names of `Sheet`."""


class Sheet(NamedTuple):
    """A data sheet. Rates are of matrices without zeros that are left out; those of Hopper are of `wgmma`, which nothing here uses.

    Attributes:
        bandwidth: Bytes per second of the memory.
        int8: Operations per second of tensor cores with integers of 8 bits.
        f16: The same with halves that are summed in floats.
    """

    bandwidth: float
    int8: float
    f16: float


SHEETS = {
    r"H200": Sheet(4.8e12, 1979e12, 989e12),
    r"H100 80GB HBM3": Sheet(3.35e12, 1979e12, 989e12),
    r"H100 PCIe": Sheet(2.0e12, 1513e12, 756e12),
    r"H100 NVL": Sheet(3.9e12, 1671e12, 835e12),
    r"A100-(SXM4|PCIE)-40GB": Sheet(1.555e12, 624e12, 312e12),
    r"A100-SXM4-80GB": Sheet(2.039e12, 624e12, 312e12),
    r"A100 80GB PCIe": Sheet(1.935e12, 624e12, 312e12),
    r"RTX 3090": Sheet(0.936e12, 284e12, 71e12),
    r"RTX 4090": Sheet(1.008e12, 660e12, 165e12),
}
"""By the names of drivers, without `NVIDIA` and `GeForce`. The whole name decides: an `RTX 4090 Laptop GPU` is another card."""


def known(name: str) -> Sheet | None:
    """The data sheet of a card by this name."""
    short = re.sub(r"^(NVIDIA )?(GeForce )?", "", name.strip())
    return next((found for pattern, found in SHEETS.items() if re.fullmatch(pattern, short)), None)


def sheet(what: str) -> float | None:
    """What the data sheet of the first GPU says, if it is known."""
    found = known(next(d["name"] for d in cuda.require(memory=False)["devices"] if d["usable"]))
    return float(getattr(found, what)) if found else None


def measured(what: str) -> float | None:
    """What was measured on this card, if it was."""
    found = json.loads(os.environ.get(MEASURED, "{}")).get(what)
    return float(found) if found else None


def bound(what: str, work: float, target: float) -> dict[str, Any]:
    """Entries of a row: the time of so many bytes or operations at what was measured, or else by the data sheet, and which of them it
    is; and that by the data sheet. None where neither is known."""
    of_card, of_sheet = measured(what), sheet(what)
    found: dict[str, Any] = {}
    if best := of_card or of_sheet:
        ceiling = "measured" if of_card else "data sheet"
        found = {"bound_us": work / best * 1e6, "target": target, "ceiling": ceiling}
    return found | ({"sheet_us": work / of_sheet * 1e6} if of_sheet else {})
