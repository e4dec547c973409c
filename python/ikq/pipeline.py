"""Quantizing whole models: `quantize_file`, and the plan behind it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ikq import _ikq
from ikq.errors import RefusedError
from ikq.imatrix import Imatrix
from ikq.quant_types import QuantType
from ikq.quantize_options import PathLike, QuantizeOptions, wishes

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Ftype",
    "PlannedTensor",
    "QuantizePlan",
    "QuantizeResult",
    "TensorOutcome",
    "ftypes",
    "plan_quantization",
    "quantize_file",
]


class Ftype(NamedTuple):
    """Something that TYPE can be."""

    name: str
    id: int | None
    """The number written to `general.file_type`; None (COPY) keeps the input's."""
    base: QuantType | None
    """The type of matrices that no rule says otherwise about; None keeps their own."""
    is_mix: bool
    """A mix with a name of its own, such as Q4_K_M, rather than the name of a type."""


def ftypes() -> list[Ftype]:
    """Everything that the command's TYPE can be, in order of number."""
    return [
        Ftype(name, number, None if base is None else QuantType(base), is_mix)
        for name, number, base, is_mix in _ikq.ftypes()
    ]


@dataclass(frozen=True)
class PlannedTensor:
    """What happens to one tensor."""

    name: str
    shape: tuple[int, ...]
    """As numpy has it: experts, rows, elements of a row."""
    from_type: QuantType | int
    """An id that ikq does not know stays a number."""
    to_type: QuantType | int
    copied: bool
    """Byte for byte, not decoded and encoded."""
    reason: str
    """Why it gets its type, or why it is copied."""
    fallback_from: QuantType | None
    """The type that was wanted before the shape forced another."""
    bytes_in: int
    bytes_out: int
    imatrix: str | None
    """Entry that weighs its columns; None when there is none or the type looks at none."""
    lacks_imatrix: bool
    """Its type would use statistics, and there are none."""
    unseen_experts: tuple[int, ...]
    """Experts without a single token in the statistics; encoded with equal weights."""


@dataclass(frozen=True)
class QuantizePlan:
    """Everything that is known before the first byte is written."""

    source: Path
    destination: Path
    tensors: tuple[PlannedTensor, ...]
    total_bytes: int
    """Size of the output, all files together, to the byte."""
    _core: _ikq.QuantizePlan = field(repr=False, compare=False)

    def run(
        self,
        *,
        n_threads: int | None = None,
        progress: Callable[[PlannedTensor, float], None] | None = None,
        on_bytes: Callable[[int], None] | None = None,
        _isa: str | None = None,
    ) -> QuantizeResult:
        """Carries the plan out.

        The output is written beside its final name and renamed when whole: an existing file stays as
        it is until then, and nothing is left when the run fails or is interrupted. The bytes do not
        depend on the number of threads or the machine.

        Args:
            n_threads: Threads; None is one per CPU.
            progress: Called with each tensor, in order, when it is in the file, and the seconds of
                work (of all threads together) that it took.
            on_bytes: Called several times a second with the bytes of the source done since; for bars.

        Raises:
            ikq.errors.FormatError: A weight is NaN or infinite; names tensor, expert, row and column.
            OSError: Reading or writing failed; a full disk names the bytes that were needed.
            KeyboardInterrupt: Ctrl-C.
        """
        start = time.perf_counter()
        if n_threads is not None and n_threads <= 0:
            n_threads = None

        not_ternary = []
        outcomes: dict[int, TensorOutcome] = {}

        def done(index: int, seconds: float, is_not_ternary: bool) -> None:
            how: Literal["copied", "encoded"] = "copied" if self.tensors[index].copied else "encoded"
            outcomes[index] = TensorOutcome(how, seconds, None, None, None, is_not_ternary)
            if is_not_ternary:
                not_ternary.append(self.tensors[index])
            if progress is not None:
                progress(self.tensors[index], seconds)

        self.destination.parent.mkdir(parents=True, exist_ok=True)
        files = self._core.run(
            self.destination, n_threads=n_threads, isa_name=_isa, progress=done, on_bytes=on_bytes
        )
        return QuantizeResult(
            plan=self,
            files=tuple(Path(f) for f in files),
            seconds=time.perf_counter() - start,
            outcomes=tuple(outcomes[i] for i in range(len(self.tensors))),
            not_ternary=tuple(not_ternary),
        )


@dataclass(frozen=True)
class TensorOutcome:
    """What a run did to a tensor."""

    how: Literal["encoded", "copied", "reused", "repacked"]
    seconds: float
    """Work of all threads on it, in this run and those it went on from."""
    error: float | None
    """Relative root mean square error; None if not measured."""
    weighted_error: float | None
    """The same with the columns' importance as weights; equals `error` without imatrix."""
    expert_errors: tuple[float, ...] | None
    """Weighted, per expert of a 3-D tensor."""
    not_ternary: bool


@dataclass(frozen=True)
class QuantizeResult:
    """A finished run."""

    plan: QuantizePlan
    files: tuple[Path, ...]
    """The files written: one, or the shards of a split set."""
    seconds: float
    outcomes: tuple[TensorOutcome, ...] = ()
    """Parallel to the plan's tensors."""
    not_ternary: tuple[PlannedTensor, ...] = ()
    """Tensors that got a ternary type though their weights are not ternary: little of them is left."""


def plan_quantization(
    source: PathLike,
    destination: PathLike | None,
    type: str | QuantType,
    **options: Unpack[QuantizeOptions],
) -> QuantizePlan:
    """Decides every tensor's type, statistics, offset and size; reads no weights and writes nothing.

    The arguments are those of `quantize_file`, which runs the plan.
    """
    name = _ftype_name(type)
    imatrix = options.get("imatrix")
    if imatrix is not None and not isinstance(imatrix, Imatrix):
        imatrix = Imatrix(imatrix)
    source = Path(source)
    core = _ikq.plan_quantize(
        _ikq.Model.open(os.fspath(source)),
        name,
        None if imatrix is None else imatrix._core,
        wishes(options),
    )
    if destination is None:
        destination = source.parent / f"ggml-model-{name.upper()}.gguf"
    return QuantizePlan(
        source=source,
        destination=Path(destination),
        tensors=tuple(_planned(t) for t in core.tensors()),
        total_bytes=core.total_bytes,
        _core=core,
    )


def quantize_file(
    source: PathLike,
    destination: PathLike | None,
    type: str | QuantType,
    *,
    n_threads: int | None = None,
    progress: Callable[[PlannedTensor, float], None] | None = None,
    **options: Unpack[QuantizeOptions],
) -> QuantizeResult:
    """Quantizes a GGUF model to a file; what `python -m ikq quantize` runs.

    Args:
        source: The model, or any shard of a split set.
        destination: The file to write; None is `ggml-model-TYPE.gguf` beside the source. With a
            split, the shards are named after it.
        type: What matrices become: a type or a mix by name (`"IQ4_KS"`, `"Q4_K_M"`; `ftypes` lists them),
            with the rules that people know from llama-quantize for some of them, or a `QuantType`, which
            means the mix of that base.
        n_threads: Threads; None (or a number below 1) is one per CPU.
        progress: Called with each finished tensor and the seconds it took.
        **options: See `QuantizeOptions`.

    Raises:
        ikq.errors.RefusedError: What was asked makes no sense or would do harm; the message names
            the way out. `MissingImatrixError` is one.
        ikq.errors.FormatError: A damaged file, unknown names, NaN or infinity in the weights.
        OSError: Files that cannot be read or written.
    """
    plan = plan_quantization(source, destination, type, **options)
    return plan.run(n_threads=n_threads, progress=progress)


def _ftype_name(type: str | QuantType) -> str:
    if not isinstance(type, QuantType):
        return str(type)
    name = _ikq.ftype_of_type(int(type))
    if name is None:
        raise RefusedError(
            f"there is no file type with the base {type.name}; give another TYPE and "
            f"custom_q='weight={type.name.lower()}'"
        )
    return name


def _known(id: int) -> QuantType | int:
    try:
        return QuantType(id)
    except ValueError:
        return id


def _planned(t: _ikq.TensorPlan) -> PlannedTensor:
    own = {"own": t.name, "missing": None, "not used": None}
    return PlannedTensor(
        name=t.name,
        shape=tuple(reversed(t.dims)),
        from_type=_known(t.from_type),
        to_type=_known(t.to_type),
        copied=t.copied,
        reason=t.reason,
        fallback_from=None if t.fallback_from is None else QuantType(t.fallback_from),
        bytes_in=t.bytes_in,
        bytes_out=t.bytes_out,
        imatrix=own.get(t.statistics, t.statistics),
        lacks_imatrix=t.statistics == "missing",
        unseen_experts=tuple(t.unseen_experts),
    )
