"""`ImatrixCoverage`: which tensors of a planned quantization the imatrix has data for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ikq import _ikq

__all__ = ["ImatrixCoverage", "PartialExperts"]


class PartialExperts(NamedTuple):
    """A tensor with experts that the calibration text never reached.

    Attributes:
        tensor: Its name.
        n_seen: Experts with data.
        n_experts: Experts.
    """

    tensor: str
    n_seen: int
    n_experts: int


@dataclass(frozen=True)
class ImatrixCoverage:
    """Which tensors an imatrix has data for, of those whose new type makes use of it.

    Copied tensors, types that use no statistics (floats, Q8_0) and embeddings of which single rows are looked
    up are not counted.
    """

    n_tensors: int
    """Tensors whose type makes use of an imatrix."""
    n_covered: int
    """Those among them that have data, their own or borrowed."""
    n_experts: int
    """Experts of covered tensors with an entry per expert."""
    n_experts_seen: int
    """Those among them that the calibration text reached."""
    missing: tuple[str, ...]
    """Tensors without data; all their columns have the same importance."""
    borrowed: Mapping[str, str]
    """Tensors without an entry of their own, and the entry of a tensor with the same input that is used
    instead."""
    partial: tuple[PartialExperts, ...]
    """Tensors with experts without data, for which the pooled statistics of the others are used."""
    left_out: tuple[str, ...]
    """Tensors whose entry `include_weights` or `exclude_weights` leaves out; they do not count as missing."""
    is_complete: bool
    """Whether nothing is missing, and at least 95 % of each tensor's experts were seen. Otherwise quantizing
    is refused unless `allow_missing` is given."""

    @classmethod
    def _of(cls, core: _ikq.Coverage) -> ImatrixCoverage:
        return cls(
            n_tensors=core.n_tensors,
            n_covered=core.n_covered,
            n_experts=core.n_experts,
            n_experts_seen=core.n_experts_seen,
            missing=tuple(core.missing),
            borrowed=dict(core.borrowed),
            partial=tuple(PartialExperts(*p) for p in core.partial),
            left_out=tuple(core.left_out),
            is_complete=core.is_complete,
        )
