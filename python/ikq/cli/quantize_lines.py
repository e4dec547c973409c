"""What `ikq quantize` prints: a line per tensor, coverage, the summary, the prediction of a dry run."""

from __future__ import annotations

import math
import resource
import shutil
from pathlib import Path

import ikq
from ikq.quantizing.pipeline import PlannedTensor, QuantizePlan, QuantizeResult

__all__ = [
    "coverage_lines",
    "feedback_lines",
    "print_prediction",
    "print_summary",
    "tensor_lines",
    "type_label",
]

MIB = 1024 * 1024


def tensor_lines(plan: QuantizePlan) -> dict[str, str]:
    """One line per tensor in the shape that people's log scripts know, with the reason behind it."""
    n = len(plan.tensors)
    width = len(str(n))
    return {t.name: f"[{i:>{width}}/{n}] {_describe(t)}" for i, t in enumerate(plan.tensors, 1)}


def _describe(t: PlannedTensor) -> str:
    dims = ", ".join(f"{d:5d}" for d in reversed((1,) * (4 - len(t.shape)) + t.shape))
    line = f"{t.name:<40} - [{dims}], type = {type_label(t.from_type):>6}, "
    if t.copied:
        line += f"size = {t.bytes_in / MIB:8.3f} MiB"
    else:
        line += (
            f"{'repacking' if t.repacked else 'converting'} to {type_label(t.to_type)} .. "
            f"size = {t.bytes_in / MIB:8.2f} MiB -> {t.bytes_out / MIB:8.2f} MiB"
        )
    notes = [t.reason]
    if t.lacks_imatrix:
        notes.append("no imatrix data")
    elif t.imatrix not in (None, t.name):
        notes.append(f"imatrix of {t.imatrix}")
    if _has_feedback(t):
        notes.append("error feedback")
    if t.unseen_experts:
        notes.append(f"{len(t.unseen_experts)} experts without imatrix data lean on the others'")
    if t.thin_experts:
        notes.append(f"{len(t.thin_experts)} experts with few tokens lean on the others' imatrix data")
    return f"{line} ({'; '.join(notes)})"


def type_label(type: ikq.QuantType | int) -> str:
    """A type as log lines have it."""
    return type.name.lower() if isinstance(type, ikq.QuantType) else f"unknown({type})"


def coverage_lines(plan: QuantizePlan) -> list[str]:
    """What the imatrix has data for, and by name what it lacks; nothing without an imatrix."""
    c = plan.coverage
    if c is None:
        return []
    experts = f", {c.n_experts_seen} of {c.n_experts} experts" if c.n_experts else ""
    lines = [f"imatrix coverage: {c.n_covered} of {c.n_tensors} tensors{experts}"]
    lines += [f"  {name}: absent, served by {entry} (the same input)" for name, entry in c.borrowed.items()]
    lines += [
        f"  {t.tensor}: {t.n_seen} of {t.n_experts} experts seen, the rest lean on their statistics"
        for t in c.partial
    ]
    lines += [f"  {name}: left out, as asked for" for name in c.left_out]
    lines += [f"  {name}: missing, all columns count the same" for name in c.missing]
    return lines


def _n_matrices(t: PlannedTensor) -> int:
    return math.prod(t.shape[:-2])


def _has_feedback(t: PlannedTensor) -> bool:
    """Whether any of its matrices is encoded with error feedback."""
    return t.feedback == "used" and len(t.without_feedback) < _n_matrices(t)


def feedback_lines(plan: QuantizePlan, covariances: object) -> list[str]:
    """Which tensors are encoded with error feedback, and why others are not; nothing without covariances."""
    if covariances is None:
        return []
    encoded = [t for t in plan.tensors if not t.copied and not t.repacked]
    known = [t for t in encoded if t.feedback == "used"]
    used = [t for t in known if _has_feedback(t)]
    missing = [t for t in encoded if t.feedback == "missing"]
    lines = [f"error feedback: {len(used)} of {len(encoded)} tensors"]
    others = [t for t in encoded if t.feedback == "not used"]
    for label in sorted({type_label(t.to_type) for t in others}):
        of_type = [t for t in others if type_label(t.to_type) == label]
        lines.append(f"  without, because of their type, {label}: {_some(of_type)}")
    for t in known:
        if t.without_feedback:
            n = _n_matrices(t)
            which = f"{len(t.without_feedback)} of {n} experts of " if n > 1 else ""
            lines.append(
                f"  without, because fewer than {t.shape[-1] // 2} tokens reached them: {which}{t.name}"
            )
    if missing:
        lines.append(f"  without, because {covariances} has nothing about their input: {_some(missing)}")
    return lines


def print_summary(plan: QuantizePlan, result: QuantizeResult | None) -> None:
    """Sizes, fallbacks, missing statistics, and what a run has found."""
    # the extra output matrix is no part of the source
    source = [t for t in plan.tensors if t.name != "output_extra.weight"]
    before = sum(t.bytes_in for t in source)
    after = sum(t.bytes_out for t in plan.tensors)
    weights = sum(_n_elements(t) for t in source)
    print(f"model size = {before / MIB:.2f} MiB")
    print(f"quant size = {after / MIB:.2f} MiB ({8 * after / max(weights, 1):.3f} bits per weight)")
    for reason, kept in _kept(plan).items():
        print(f"kept: {len(kept)} tensors, {reason}: {_some(kept)}")
    fallbacks = [t for t in plan.tensors if t.fallback_from is not None]
    if fallbacks:
        print(f"fallback types: {len(fallbacks)} of {len(plan.tensors)} tensors, see their lines")
    if plan.coverage is not None and plan.coverage.missing:
        lacking = [t for t in plan.tensors if t.name in plan.coverage.missing]
        print(f"warning: {len(lacking)} tensors are not in the imatrix: {_some(lacking)}")
    unseen = [t for t in plan.tensors if t.unseen_experts]
    if unseen:
        print(
            f"warning: {len(unseen)} tensors have experts the imatrix never saw, which lean on "
            f"the statistics of the others: {_some(unseen)}"
        )
    different = _gates_unlike_ups(plan)
    if different:
        print(
            f"note: {len(different)} layers have experts' gate and up matrices of different types: "
            f"{_some(different)}; ikq runs them fused, ik_llama.cpp does not"
        )
    if result is not None:
        if result.not_ternary:
            print(
                f"warning: {len(result.not_ternary)} tensors got ternary types, but their weights are not "
                f"ternary: {_some(list(result.not_ternary))}; IQ1_S or IQ2_XXS keep more of them"
            )
        if result.n_resumed:
            print(f"resumed: {result.n_resumed} of {result.n_items} items were done by an interrupted run")
        print(f"quantize time = {result.seconds:.2f} s")


def _kept(plan: QuantizePlan) -> dict[str, list[PlannedTensor]]:
    """Tensors that repacking could not change, by reason."""
    kept: dict[str, list[PlannedTensor]] = {}
    for t in plan.tensors:
        if t.copied and t.reason.startswith("kept: "):
            kept.setdefault(t.reason.removeprefix("kept: "), []).append(t)
    return kept


def print_prediction(
    plan: QuantizePlan, n_threads: int | None, max_ram: int | None, *, measure_errors: bool
) -> None:
    """Size to the byte, memory, disk and time of the run that is not made."""
    workers, in_work = plan.predict_memory(
        n_threads=n_threads, max_ram=max_ram, measure_errors=measure_errors
    )
    peak = _resident_bytes() + in_work
    seconds = plan.predict_seconds(n_threads=n_threads, max_ram=max_ram, measure_errors=measure_errors)
    free = shutil.disk_usage(plan.folder).free
    print(f"dry run: {plan.destination} would have {plan.total_bytes} bytes; nothing was written")
    print(f"peak memory = {peak / MIB:.0f} MiB with {workers} threads")
    print(f"time = {seconds:.2f} s")
    print(f"disk = {plan.total_bytes / MIB:.2f} MiB of {free / MIB:.2f} MiB that are free in {plan.folder}")
    if free < plan.total_bytes:
        print("warning: the output does not fit this disk")


def _resident_bytes() -> int:
    """Memory that this process has now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        # the most it ever had (and its parent, when it was started)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def _gates_unlike_ups(plan: QuantizePlan) -> list[PlannedTensor]:
    """Expert gates whose up matrix has another type."""
    types = {t.name: t.to_type for t in plan.tensors}
    gates = [t for t in plan.tensors if "ffn_gate_exps" in t.name]
    return [t for t in gates if types.get(t.name.replace("ffn_gate", "ffn_up"), t.to_type) != t.to_type]


def _n_elements(t: PlannedTensor) -> int:
    n = 1
    for d in t.shape:
        n *= d
    return n


def _some(tensors: list[PlannedTensor]) -> str:
    names = ", ".join(t.name for t in tensors[:4])
    return names if len(tensors) <= 4 else f"{names} and {len(tensors) - 4} more"
