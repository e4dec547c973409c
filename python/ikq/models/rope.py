"""Rotary embeddings from metadata: linear scaling, YaRN, factors, sections."""

from __future__ import annotations

import math
from typing import Literal

from ikq.errors import UnsupportedError
from ikq.models.keys import Keys
from ikq.models.source import Block
from ikq.models.spec import Rope, Yarn

__all__ = ["log_growth", "rope"]

_DEFAULT_BASE = 10000.0
_LONGROPE = ("rope_factors_long.weight", "rope_factors_short.weight")


def log_growth(factor: float, c: float = 1.0) -> float:
    """YaRN's measure of how much sharper attention becomes when the context grows by `factor`."""
    return 1 + 0.1 * c * math.log(factor) if factor > 1 else 1.0


def rope(
    block: Block,
    pairing: Literal["norm", "neox"],
    head_dim: int,
    *,
    n_rot: int | None = None,
    base: float | None = None,
    scaled: bool = True,
    grows: bool = True,
    n_factors: int | None = None,
    sections: Literal["contiguous", "interleaved"] = "contiguous",
) -> Rope:
    """The rotation of a layer's heads.

    Args:
        block: the layer.
        pairing: which elements are rotated together.
        head_dim: elements of a head.
        n_rot: rotated elements; else what the key says, or all.
        base: base of the frequencies; else what the key says.
        scaled: whether scaling and factors apply to this layer.
        grows: whether YaRN multiplies cos and sin with `log_growth`.
        n_factors: numbers of the tensor of factors, where it has more than pairs are rotated.
        sections: how pairs are given to axes where the file has sections.

    Raises:
        FormatError: a key is not what it should be.
        UnsupportedError: a kind of scaling that is not supported.
    """
    keys = block.keys
    if n_rot is None:
        n_rot = keys.integer("rope.dimension_count", head_dim, low=2)
    if n_rot % 2 or n_rot > head_dim:
        raise keys.wrong(
            "rope.dimension_count", n_rot, f"an even number of at most {head_dim}, the head's elements"
        )
    if base is None:
        base = keys.number("rope.freq_base", _DEFAULT_BASE, positive=True)
    if base <= 1:
        raise keys.wrong("rope.freq_base", base, "a number above 1")
    _check_sections(keys, n_rot // 2, sections)
    for name in _LONGROPE:
        if name in block.tensors:
            raise UnsupportedError(
                f"architecture `{keys.architecture}`: longrope (tensor `{name}`) is not supported"
            )
    linear, yarn = _scaling(block, grows) if scaled else (1.0, None)
    factors = None
    if scaled:
        factors = block.tensors.optional_vector("rope_freqs.weight", n_factors or n_rot // 2)
    return Rope(pairing, n_rot, base, linear, factors, yarn, n_factors if factors else None)


def _scaling(block: Block, grows: bool) -> tuple[float, Yarn | None]:
    keys = block.keys
    kind = keys.text("rope.scaling.type", "linear")
    old = keys.number("rope.scale_linear", 0.0)
    factor = keys.number("rope.scaling.factor", old) or 1.0
    magnitude = keys.number("rope.scaling.attn_factor", 1.0, positive=True)
    n_ctx_orig = keys.integer("rope.scaling.original_context_length", block.source.n_ctx_train, low=1)
    if kind == "yarn":
        beta_fast = keys.number("rope.scaling.yarn_beta_fast", 32.0, positive=True)
        beta_slow = keys.number("rope.scaling.yarn_beta_slow", 1.0, positive=True)
        if grows:
            magnitude *= log_growth(factor)
        truncate = block.source.yarn_truncate
        if truncate and keys.architecture == "gpt-oss":
            block.note("the bounds of YaRN's ramp are integers, as GGUF engines have them")
        return 1.0, Yarn(factor, n_ctx_orig, beta_fast, beta_slow, magnitude, truncate)
    if kind not in ("none", "linear"):
        raise UnsupportedError(
            f"key `{keys.full_name('rope.scaling.type')}` is {kind[:32]!r}; "
            "supported are none, linear and yarn"
        )
    # a factor of cos and sin alone: YaRN between equal frequencies
    yarn = None if magnitude == 1 else Yarn(1.0, n_ctx_orig, magnitude=magnitude)
    return (factor if kind == "linear" else 1.0), yarn


def _check_sections(keys: Keys, n_pairs: int, kind: str) -> None:
    """Refuses sections that rotate text by anything but its position.

    Time, height and width of a text token are its position; a fourth axis is not.
    """
    key = "rope.dimension_sections"
    if not keys.has(key):
        return
    counts = keys.integers(key, 4)
    total = sum(counts)
    time, height, width = counts[:3]
    if not total:
        return
    for pair in range(n_pairs):
        i = pair % total
        interleaved = i < 3 * (time, height, width)[i % 3]
        known = interleaved if kind == "interleaved" else i < time + height + width
        if not known:
            raise UnsupportedError(
                f"key `{keys.full_name(key)}` is {list(counts)}: a fourth axis is not supported"
            )
