"""Records of a quantization: one per tensor, and sums of them."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ikq import _ikq
from ikq.arrays.quant_types import QuantType
from ikq.quantizing.coverage import ImatrixCoverage
from ikq.quantizing.pipeline import PlannedTensor, QuantizePlan, QuantizeResult

if TYPE_CHECKING:
    from ikq.quantizing.pipeline import TensorOutcome

__all__ = ["Group", "Report", "TensorRecord", "kind_and_layer", "make_report"]

_LAYER = re.compile(r"(?:.*\.)?blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TensorRecord:
    """What happened to a tensor, or, before a run, what will."""

    name: str
    kind: str
    """Its name without layer and `.weight`: `attn_q`, `ffn_down_exps`, `token_embd`."""
    layer: int | None
    shape: tuple[int, ...]
    """As numpy has it: experts, rows, elements of a row."""
    from_type: str
    to_type: str
    how: str
    """`encoded`, `copied`, `reused` (from an older file, not measured) or `repacked`; `planned` before a
    run."""
    reason: str
    """Why it has its type, in words."""
    decided_by: str
    """The same in one: `rule`, `custom rule`, `option`, `base type`, `kept` or `fallback`."""
    wanted: str | None
    """The type that was wanted where the shape forced another."""
    bytes_in: int
    bytes: int
    bits_per_weight: float
    imatrix: str
    """`own`, `borrowed` (of a tensor with the same input), `missing`, or `not used` by its type."""
    imatrix_entry: str | None
    """The entry that weighed its columns."""
    pooled_experts: tuple[int, ...]
    """Experts that the statistics never saw; they take what the others' have in common."""
    thin_experts: tuple[int, ...]
    """Experts seen in so few tokens that their statistics are drawn to the others'."""
    weighted_error: float | None
    """Relative root mean square error with the columns' importance as weights; None if not measured."""
    error: float | None
    """The same with equal weights."""
    error_without_gain: float | None
    """Weighted, of the multiple of the result that is nearest to the source: the error of the codes."""
    gain: float | None
    """sum(w x y) / sum(w x^2) of source x and result y."""
    snr_db: float | None
    """Energy of the weights over that of the error, in dB, from `error`; None also where nothing is lost."""
    worst_expert: tuple[int, float] | None
    """Index and weighted error of the expert with the largest."""
    expert_errors: tuple[float, ...] | None
    """Weighted error of each expert."""
    seconds: float | None
    """Work of all threads on it."""
    not_ternary: bool
    """It has a ternary type, though its weights are not ternary."""

    @property
    def n_weights(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Group:
    """Tensors of one type or kind."""

    name: str
    n_tensors: int
    n_weights: int
    bytes: int
    bits_per_weight: float
    weighted_error: float | None
    """Mean over the weights of the tensors whose error was measured; None if there are none."""
    worst_error: float | None
    worst: str | None
    """The tensor with the largest error."""
    seconds: float | None


@dataclass(frozen=True)
class Report:
    """All about one quantization."""

    source: str
    files: tuple[str, ...]
    """What was written, or will be."""
    command: tuple[str, ...]
    """The command line; empty if there was none."""
    options: Mapping[str, object]
    """Options that were given."""
    versions: Mapping[str, str]
    file_bytes: int
    """Size of the output with all metadata."""
    seconds: float | None
    """Duration of the run; None before it."""
    total: Group
    by_type: tuple[Group, ...]
    by_kind: tuple[Group, ...]
    bytes_in: int
    coverage: ImatrixCoverage | None
    """What the imatrix has data for; None without one."""
    tensors: tuple[TensorRecord, ...]

    @property
    def is_measured(self) -> bool:
        """Whether errors were measured."""
        return any(t.weighted_error is not None for t in self.tensors)

    def worst(self, n: int) -> list[TensorRecord]:
        """The tensors with the largest weighted errors, largest first."""
        measured = [t for t in self.tensors if t.weighted_error is not None]
        return sorted(measured, key=lambda t: -(t.weighted_error or 0))[:n]


def make_report(
    of: QuantizeResult | QuantizePlan,
    *,
    command: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
) -> Report:
    """Collects what is known of a run, or of a plan.

    Args:
        of: A finished run; errors are there if it was told to measure them (`measure_errors=True`). Of a
            plan, what is known before it runs.
        command: The command line, for the record.
        options: The keywords; those that say nothing are left out.
    """
    if isinstance(of, QuantizeResult):
        plan, files, seconds = of.plan, of.files, of.seconds
        records = [_record(t, o) for t, o in zip(plan.tensors, of.outcomes, strict=True)]
    else:
        plan, files, seconds = of, (of.destination,), None
        records = [_record(t, None) for t in plan.tensors]
    return Report(
        source=str(plan.source),
        files=tuple(str(f) for f in files),
        command=tuple(command),
        options={k: v for k, v in (options or {}).items() if not _says_nothing(v)},
        versions={"ikq": _ikq.__version__, "python": platform.python_version()},
        file_bytes=plan.total_bytes,
        seconds=seconds,
        total=_group("all", records),
        by_type=_groups(records, lambda t: t.to_type),
        by_kind=_groups(records, lambda t: t.kind),
        # the extra output matrix is no part of the source
        bytes_in=sum(t.bytes_in for t in records if t.kind != "output_extra"),
        coverage=plan.coverage,
        tensors=tuple(records),
    )


def kind_and_layer(name: str) -> tuple[str, int | None]:
    """A tensor's name without layer and `.weight`, and the layer."""
    match = _LAYER.fullmatch(name)
    kind = match[2] if match else name
    return kind.removesuffix(".weight"), int(match[1]) if match else None


def _record(t: PlannedTensor, outcome: TensorOutcome | None) -> TensorRecord:
    kind, layer = kind_and_layer(t.name)
    # of a matrix the only one is the whole
    experts = outcome.expert_errors if outcome and len(t.shape) > 2 else None
    error = outcome.error if outcome else None
    return TensorRecord(
        name=t.name,
        kind=kind,
        layer=layer,
        shape=t.shape,
        from_type=_type_name(t.from_type),
        to_type=_type_name(t.to_type),
        how=outcome.how if outcome else "planned",
        reason=t.reason,
        decided_by=_decided_by(t),
        wanted=None if t.fallback_from is None else _type_name(t.fallback_from),
        bytes_in=t.bytes_in,
        bytes=t.bytes_out,
        bits_per_weight=_bits(t.bytes_out, math.prod(t.shape)),
        imatrix="missing" if t.lacks_imatrix else _statistics(t),
        imatrix_entry=t.imatrix,
        pooled_experts=t.unseen_experts,
        thin_experts=t.thin_experts,
        weighted_error=outcome.weighted_error if outcome else None,
        error=error,
        error_without_gain=outcome.error_without_gain if outcome else None,
        gain=outcome.gain if outcome else None,
        snr_db=-20 * math.log10(error) if error and math.isfinite(error) else None,
        worst_expert=max(enumerate(experts), key=lambda e: e[1]) if experts else None,
        expert_errors=experts,
        seconds=outcome.seconds if outcome else None,
        not_ternary=bool(outcome and outcome.not_ternary),
    )


def _statistics(t: PlannedTensor) -> str:
    if t.imatrix is None:
        return "not used"
    return "own" if t.imatrix == t.name else "borrowed"


def _decided_by(t: PlannedTensor) -> str:
    if t.fallback_from is not None:
        return "fallback"
    if t.reason.startswith("custom rule"):
        return "custom rule"
    if t.reason.startswith("--"):
        return "option"
    if " rule for " in t.reason:
        return "rule"
    return "base type" if t.reason == "base type" else "kept" if t.copied else "rule"


def _groups(records: Iterable[TensorRecord], key: Callable[[TensorRecord], str]) -> tuple[Group, ...]:
    """Largest first."""
    parts: dict[str, list[TensorRecord]] = {}
    for t in records:
        parts.setdefault(key(t), []).append(t)
    groups = (_group(name, part) for name, part in parts.items())
    return tuple(sorted(groups, key=lambda g: -g.bytes))


def _group(name: str, records: Sequence[TensorRecord]) -> Group:
    n_weights, n_bytes = sum(t.n_weights for t in records), sum(t.bytes for t in records)
    measured = [(t.weighted_error, t) for t in records if t.weighted_error is not None]
    over = sum(t.n_weights for _, t in measured)
    worst = max(measured, key=lambda m: m[0]) if measured else None
    seconds = [t.seconds for t in records if t.seconds is not None]
    return Group(
        name=name,
        n_tensors=len(records),
        n_weights=n_weights,
        bytes=n_bytes,
        bits_per_weight=_bits(n_bytes, n_weights),
        weighted_error=sum(e * t.n_weights for e, t in measured) / over if over else None,
        worst_error=worst[0] if worst else None,
        worst=worst[1].name if worst else None,
        seconds=sum(seconds) if seconds else None,
    )


def _bits(n_bytes: int, n_weights: int) -> float:
    return 8 * n_bytes / n_weights if n_weights else 0.0


def _type_name(t: QuantType | int) -> str:
    return t.name.lower() if isinstance(t, QuantType) else f"unknown({t})"


def _says_nothing(value: object) -> bool:
    return value is None or value is False or (isinstance(value, list | tuple | str) and not value)
