"""Types by tensor as a short list of rules: `recipe_rules`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ikq.arrays.quant_types import QuantType
from ikq.quantizing.report.records import kind_and_layer

__all__ = ["recipe_rules"]


def recipe_rules(types: Mapping[str, QuantType | int]) -> list[str]:
    """The shortest list of rules for types by tensor: one for all layers in which a kind has a type.

    Tensors with types that ikq does not know have no rule: they stay as they are.
    """
    groups: dict[tuple[str, QuantType], list[int]] = {}
    single: list[str] = []
    for name, to in types.items():
        if not isinstance(to, QuantType):
            continue
        kind, layer = kind_and_layer(name)
        if layer is None or name != f"blk.{layer}.{kind}.weight":
            single.append(f"^{_literal(name)}$={to.name.lower()}")
        else:
            groups.setdefault((kind, to), []).append(layer)
    of_layers = []
    for (kind, to), layers in sorted(groups.items(), key=lambda g: (g[0][0], min(g[1]))):
        numbers = "|".join(str(n) for n in sorted(layers))
        part = numbers if len(layers) == 1 else f"({numbers})"
        of_layers.append(f"^blk\\.{part}\\.{_literal(kind)}\\.weight$={to.name.lower()}")
    return single + of_layers


def _literal(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", lambda m: "\\" + m[0], name)
