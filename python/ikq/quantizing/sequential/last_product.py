"""The matrices whose products end a layer: `LastProduct`, `last_product`."""

from __future__ import annotations

from typing import NamedTuple

from ikq.models.spec import DenseFfn, Layer

__all__ = ["LastProduct", "last_product"]


class LastProduct(NamedTuple):
    """Matrices whose products are all that is added to the states behind a layer.

    Attributes:
        tensors: The tensors that have them.
        factor: By how much the states get larger for each that the product gets larger by: those of all
            experts that a token is sent to.
    """

    tensors: tuple[str, ...]
    factor: float


def last_product(layer: Layer) -> LastProduct | None:
    """The last matrices of a layer's feed-forward network.

    `None` where something is done to their product that is not linear, where weights of experts do not have
    the same sum for all tokens, and where shared experts add theirs.
    """
    if layer.post_ffn_norm is not None or layer.embedding is not None or layer.scale is not None:
        return None
    ffn, factor = layer.ffn, layer.ffn_factor
    if not isinstance(ffn, DenseFfn):
        routing = ffn.routing
        sums_to_one = routing.normalize or routing.func == "softmax_chosen"
        if not sums_to_one or ffn.shared is not None or ffn.weighs_input or ffn.norms is not None:
            return None
        factor *= routing.scale
    down = ffn.down
    if down.scale is not None or down.n_rows is not None or down.first_row or factor == 0.0:
        return None
    return LastProduct((down.weight,) if isinstance(down.weight, str) else down.weight, factor)
