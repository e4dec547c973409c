"""Quantizing whole models: `quantize_file`, and the plan behind it."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from ikq import _ikq
from ikq.arrays.quant_types import QuantType
from ikq.errors import IkqError, RefusedError
from ikq.files.outputs import is_same_file
from ikq.quantizing.coverage import ImatrixCoverage
from ikq.quantizing.heap import give_back
from ikq.quantizing.options import (
    PathLike,
    QuantizeFileOptions,
    QuantizeOptions,
    RunOptions,
    check_run_options,
    keywords_of,
    parse_size,
    quantize_options,
    run_options,
    wishes,
)
from ikq.quantizing.rule_places import naming_places
from ikq.recipes.files import applicable_rules, read_recipe
from ikq.statistics.imatrix import Imatrix

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
    """A file type, which the argument TYPE of `ikq quantize` can be."""

    name: str
    id: int | None
    """The number written to `general.file_type`; None (COPY) keeps the input's."""
    base: QuantType | None
    """The type of matrices that no rule gives another; None keeps their own."""
    is_mix: bool
    """A mix with a name of its own, such as Q4_K_M, rather than the name of a type."""


def ftypes() -> list[Ftype]:
    """All file types, which the argument TYPE of `ikq quantize` can be, ordered by number."""
    return [
        Ftype(name, number, None if base is None else QuantType(base), is_mix)
        for name, number, base, is_mix in _ikq.ftypes()
    ]


@dataclass(frozen=True)
class PlannedTensor:
    """The plan for one tensor."""

    name: str
    shape: tuple[int, ...]
    """As numpy has it: experts, rows, elements of a row."""
    from_type: QuantType | int
    """The type in the source; a type that ikq does not know is given as its id."""
    to_type: QuantType | int
    copied: bool
    """Whether it is copied byte for byte instead of being encoded."""
    repacked: bool
    """Whether it is converted between a plain and an interleaved type, with the same codes."""
    unbiased: bool
    """Whether it is encoded with scales that compensate the gain of their fit (see `biased`)."""
    feedback: Literal["used", "missing", "not used"]
    """Whether it is encoded with error feedback; `missing` if its type would use a covariance but there is
    none."""
    without_feedback: tuple[int, ...]
    """Its matrices (experts) that are encoded without feedback all the same: fewer than half as many tokens
    reached them as they have columns."""
    reason: str
    """Why it gets its type, or why it is copied unchanged."""
    fallback_from: QuantType | None
    """The type that was wanted before the shape forced another."""
    bytes_in: int
    bytes_out: int
    imatrix: str | None
    """The imatrix entry that weights its columns; None if there is none or the type uses none."""
    lacks_imatrix: bool
    """Its type would use statistics, and there are none."""
    unseen_experts: tuple[int, ...]
    """Experts without a single token in the statistics, for which the pooled statistics of the others are
    used."""
    thin_experts: tuple[int, ...]
    """Experts with fewer than 1024 tokens, whose statistics are drawn to the others'; only GGUF imatrices
    count tokens per expert."""


_MUCH_VANISHED = 1e-3
"""Share of a tensor's non-zero weights that may become zero without a word."""


def _vanished_warning(tensor: PlannedTensor, share: float) -> str:
    type_name = getattr(tensor.to_type, "name", tensor.to_type)
    return (
        f"warning: {share:.2%} of the non-zero weights of `{tensor.name}` are too small for {type_name} "
        "and are 0 now; BF16 keeps them"
    )


@dataclass(frozen=True)
class QuantizePlan:
    """Everything that is known before the first byte is written."""

    source: Path
    destination: Path
    tensors: tuple[PlannedTensor, ...]
    total_bytes: int
    """Size of the output, all files together, to the byte."""
    shards: tuple[int, ...]
    """Tensors in each output file; one number unless the output is split."""
    coverage: ImatrixCoverage | None
    """Which tensors the imatrix has data for; None without an imatrix."""
    _core: _ikq.QuantizePlan = field(repr=False, compare=False)

    def run(
        self, *, _isa: str | None = None, _outside: _ikq._Outside | None = None, **options: Unpack[RunOptions]
    ) -> QuantizeResult:
        """Runs the plan, and continues where an interrupted run of the same plan ended.

        The output is written to `NAME.part` beside its final name and renamed when it is complete; an
        existing file stays as it is until then. `NAME.journal` records which work items are done. Both stay
        when the run fails, is interrupted or killed, and the next call reuses everything in them whose hash
        is right. The bytes do not depend on the number of threads, the machine or interruptions.

        Args:
            **options: See `RunOptions`.

        Raises:
            ikq.errors.FormatError: A weight is NaN or infinite; names tensor, expert, row and column.
            ikq.errors.RefusedError: A weight is larger than its type can keep, and `clamp` was not given;
                another process writes this output, an interrupted run of *another* plan
                has done much work on it, `reuse` is not of ikq, or a tensor does not fit `max_ram`.
            OSError: Reading or writing failed; a full disk names the bytes that were needed.
            KeyboardInterrupt: Ctrl-C; says what is kept.
        """
        check_run_options(options)
        start = time.perf_counter()
        not_ternary: list[PlannedTensor] = []
        measure_errors, on_note = options.get("measure_errors", False), options.get("on_note")
        workers, _ = self._memory(options.get("n_threads"), options.get("max_ram"), measure_errors)
        self.destination.parent.mkdir(parents=True, exist_ok=True)
        if self.source.is_dir():
            # the buffers in which its vocabulary was read have the size of a run's
            give_back()
        with self._telling_what_is_left(on_note):
            ran = self._core.run(
                self.destination,
                n_threads=workers,
                isa_name=_isa,
                restart=options.get("restart", False),
                reuse=_paths(options.get("reuse")),
                keep_finished=options.get("partial_requant", False),
                measure_errors=measure_errors,
                clamp=options.get("clamp", False),
                progress=self._on_tensor(not_ternary, options.get("progress"), on_note),
                on_bytes=options.get("on_bytes"),
                on_note=on_note,
                outside=_outside,
            )
        return QuantizeResult(
            plan=self,
            files=tuple(Path(f) for f in ran.files),
            seconds=time.perf_counter() - start,
            not_ternary=tuple(not_ternary),
            outcomes=tuple(_outcome(*row) for row in ran.tensors),
            n_items=ran.n_items,
            n_resumed=ran.n_resumed,
            n_damaged=ran.n_damaged,
        )

    def _on_tensor(
        self,
        not_ternary: list[PlannedTensor],
        progress: Callable[[PlannedTensor, float], None] | None,
        on_note: Callable[[str], None] | None,
    ) -> Callable[[int, float, bool, float], None]:
        """What is called with every tensor that is done: tells the caller, and adds to `not_ternary`."""

        def done(index: int, seconds: float, is_not_ternary: bool, vanished: float) -> None:
            tensor = self.tensors[index]
            if is_not_ternary:
                not_ternary.append(tensor)
            if progress is not None:
                progress(tensor, seconds)
            if on_note is not None and vanished > _MUCH_VANISHED:
                on_note(_vanished_warning(tensor, vanished))

        return done

    @contextlib.contextmanager
    def _telling_what_is_left(self, on_note: Callable[[str], None] | None) -> Iterator[None]:
        """Says which partial files a run leaves: for the next one, or, when it is done, of other commands."""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {self._what_is_kept()}") from None
        except (IkqError, OSError):
            if on_note is not None and self._partials():
                on_note(self._what_is_kept())
            raise
        if on_note is not None and (left := self._partials()):
            names = ", ".join(p.name for p in sorted(left))
            on_note(f"left from a command with another split, and of no use to this one: {names}")

    def predict_memory(
        self,
        *,
        n_threads: int | None = None,
        max_ram: int | str | None = None,
        measure_errors: bool = False,
    ) -> tuple[int, int]:
        """The number of threads that `run` lets work at once, and the bytes that they use at most.

        What the process uses already comes on top (`resource.getrusage`).

        Raises:
            ikq.errors.RefusedError: A tensor does not fit `max_ram`.
        """
        return self._memory(n_threads, max_ram, measure_errors)

    def predict_seconds(
        self,
        *,
        n_threads: int | None = None,
        max_ram: int | str | None = None,
        measure_errors: bool = False,
        _isa: str | None = None,
    ) -> float:
        """Seconds that `run` will take from the beginning.

        It quantizes a few parts of every kind of tensor, and measures with a temporary file how fast the
        output's disk is.

        Raises:
            ikq.errors.FormatError: A weight that was tried is NaN or infinite.
        """
        workers, _ = self._memory(n_threads, max_ram, measure_errors)
        return self._core.seconds(self.folder, workers, isa_name=_isa, measure_errors=measure_errors)

    @property
    def folder(self) -> Path:
        """The folder of the output, or the nearest above it that is there."""
        parent = self.destination.absolute().parent
        return next(p for p in (parent, *parent.parents) if p.exists())

    def _memory(
        self, n_threads: int | None, max_ram: int | str | None, measure_errors: bool
    ) -> tuple[int, int]:
        if n_threads is not None and n_threads <= 0:
            n_threads = None
        limit = None if max_ram is None else parse_size(max_ram)
        return self._core.memory(n_threads, max_ram=limit, measure_errors=measure_errors)

    def _partials(self) -> list[Path]:
        """Partial files of this output that are there."""
        prefix = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", self.destination.name)
        shards = self.destination.parent.glob(f"{glob.escape(prefix)}-?????-of-?????.gguf.part")
        whole = self.destination.with_name(f"{self.destination.name}.part")
        return [*([whole] if whole.exists() else []), *shards]

    def _what_is_kept(self) -> str:
        partials = self._partials()
        if not partials:
            return "nothing was begun"
        more = f" and {len(partials) - 1} more" if len(partials) > 1 else ""
        return (
            f"what is done is kept in {min(partials)}{more}: the same command goes on with it, "
            "with --restart it begins anew"
        )


@dataclass(frozen=True)
class TensorOutcome:
    """The outcome of a run for one tensor."""

    how: Literal["encoded", "copied", "reused", "repacked"]
    seconds: float
    """The time of all threads spent on it, in this run and in interrupted ones that it continued."""
    error: float | None
    """Relative root mean square error, sqrt(sum (x - y)^2 / sum x^2) over source x and result y; None where
    it was not measured (copied or reused, or nobody asked)."""
    weighted_error: float | None
    """The same with the columns' importance as weights; equals `error` without an imatrix."""
    error_without_gain: float | None
    """Weighted, of the multiple of the result that is nearest to the source: the error of the codes,
    whether or not the stored scales undo the gain."""
    gain: float | None
    """sum(w x y) / sum(w x^2): how large the result is along the source; below 1 where scales are as
    fitted."""
    expert_errors: tuple[float, ...] | None
    """Weighted, of each matrix (expert) of the tensor."""
    not_ternary: bool
    """Its type is ternary and its weights are not."""
    vanished: float = 0.0
    """The share of its non-zero weights that are zero now because the type's scales do not go that low."""


@dataclass(frozen=True)
class QuantizeResult:
    """The result of a finished run."""

    plan: QuantizePlan
    files: tuple[Path, ...]
    """The files written: one, or the shards of a split set."""
    seconds: float
    not_ternary: tuple[PlannedTensor, ...] = ()
    """Tensors that got a ternary type though their weights are not ternary: little of them is left."""
    outcomes: tuple[TensorOutcome, ...] = ()
    """What was done to each tensor, in the order of `plan.tensors`."""
    n_items: int = 0
    """Work items (blocks of rows) of the whole plan."""
    n_resumed: int = 0
    """Items that an interrupted run had done."""
    n_damaged: int = 0
    """Items that an interrupted run had noted as done, but whose bytes were not in its files."""


def plan_quantization(
    source: PathLike,
    destination: PathLike | None,
    type: str | QuantType,
    **options: Unpack[QuantizeOptions],
) -> QuantizePlan:
    """Decides every tensor's type, statistics, offset and size; reads no weights and writes nothing.

    The arguments are those of `quantize_file`, which runs the plan, and so are the errors.
    """
    name = _ftype_name(type)
    imatrix = options.get("imatrix")
    if imatrix is not None and not isinstance(imatrix, Imatrix):
        imatrix = Imatrix(imatrix)
    source = Path(source)
    model = _open(source, name, options)
    return _plan_model(model, source, destination, name, imatrix, options)


def _open(source: Path, type_name: str, options: QuantizeOptions) -> _ikq.Model:
    """A GGUF file, or a checkpoint folder as one."""
    if not source.is_dir():
        return _ikq.Model.open(os.fspath(source))
    for word in ("repack", "unrepack", "keep_split"):
        if options.get(word):
            raise RefusedError(f"--{word.replace('_', '-')} is for GGUF files, and {source} is a folder")
    from ikq.checkpoint.opening import Checkpoint  # with the `tokenizers` library

    # experts of gpt-oss are copied where they keep their type, and are floats to all other types
    return Checkpoint(source, blocks=type_name.upper().startswith(("MXFP4", "COPY"))).model()


def _plan_model(
    model: _ikq.Model,
    source: Path,
    destination: PathLike | None,
    name: str,
    imatrix: Imatrix | None,
    options: QuantizeOptions,
) -> QuantizePlan:
    """Plans what becomes of a model that is open."""
    recipe = options.get("recipe")
    wanted = wishes(options, () if recipe is None else _recipe_rules(recipe, model))
    with naming_places(options):
        core = _ikq.plan_quantize(model, name, None if imatrix is None else imatrix._core, wanted)
    if destination is None:
        changes = [word for word in ("repack", "unrepack") if options.get(word)]
        stem = f"{source.stem}-{changes[0]}ed" if changes else f"ggml-model-{name.upper()}"
        destination = (source if source.is_dir() else source.parent) / f"{stem}.gguf"
    for what, file in (
        ("imatrix", None if imatrix is None else imatrix.path),
        ("error_feedback", options.get("error_feedback")),
        ("recipe", recipe),
        ("tensor_type_file", options.get("tensor_type_file")),
    ):
        if file is not None and is_same_file(Path(destination), Path(file)):
            raise RefusedError(f"the output {destination} is the file of {what}; choose another name")
    return QuantizePlan(
        source=source,
        destination=Path(destination),
        tensors=tuple(_planned(t) for t in core.tensors()),
        total_bytes=core.total_bytes,
        shards=tuple(core.shards),
        coverage=None if (coverage := core.coverage()) is None else ImatrixCoverage._of(coverage),
        _core=core,
    )


def quantize_file(
    source: PathLike,
    destination: PathLike | None,
    type: str | QuantType,
    **options: Unpack[QuantizeFileOptions],
) -> QuantizeResult:
    """Quantizes a model to a file; what `python -m ikq quantize` runs.

    Args:
        source: A GGUF model, or any shard of a split set, or a checkpoint folder of `transformers`.
        destination: The file to write; None is `ggml-model-TYPE.gguf` beside the source (with `repack`,
            `NAME-repacked.gguf`). With a split, the shards are named after it.
        type: The file type: a type or a mix by name (`"IQ4_KS"`, `"Q4_K_M"`; `ftypes` lists them), with the
            rules that people know from llama-quantize for some of them, or a `QuantType`, which means the mix
            of that base.
        **options: See `QuantizeOptions` for what is written, and `RunOptions` for how.

    Raises:
        ikq.errors.RefusedError: What was asked makes no sense or would do harm; the message names
            the way out. `MissingImatrixError` is one: the imatrix is incomplete, or a type needs one.
        ikq.errors.FormatError: A damaged file, unknown names, NaN or infinity in the weights.
        OSError: Files that cannot be read or written.
    """
    what = quantize_options(options, keywords_of(RunOptions))
    return plan_quantization(source, destination, type, **what).run(**run_options(options))


def _paths(given: PathLike | Sequence[PathLike] | None) -> list[str]:
    if given is None:
        return []
    return [os.fspath(p) for p in ([given] if isinstance(given, (str, os.PathLike)) else given)]


def _recipe_rules(path: PathLike, model: _ikq.Model) -> list[str]:
    """Rules of a recipe, without those for tensors that are floats and never quantized."""
    kept: list[str] = []
    others: list[str] = []
    for name, dims, type_id, _ in model.tensors():
        is_kept = type_id == QuantType.F32 and (
            sum(n > 1 for n in dims) < 2 or "ffn_gate_inp" in name or not name.endswith("weight")
        )
        (kept if is_kept else others).append(name)
    return applicable_rules(read_recipe(path), kept, others)


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


def _outcome(
    how: str,
    seconds: float,
    not_ternary: bool,
    vanished: float,
    errors: tuple[float, float, float, float, list[float]] | None,
) -> TensorOutcome:
    plain, weighted, without_gain, gain, experts = errors or (None, None, None, None, None)
    return TensorOutcome(
        how=cast("Literal['encoded', 'copied', 'reused', 'repacked']", how),
        seconds=seconds,
        error=plain,
        weighted_error=weighted,
        error_without_gain=without_gain,
        gain=gain,
        expert_errors=None if experts is None else tuple(experts),
        not_ternary=not_ternary,
        vanished=vanished,
    )


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
        repacked=t.repacked,
        unbiased=t.unbiased,
        feedback=cast("Literal['used', 'missing', 'not used']", t.feedback),
        without_feedback=tuple(t.without_feedback),
        reason=t.reason,
        fallback_from=None if t.fallback_from is None else QuantType(t.fallback_from),
        bytes_in=t.bytes_in,
        bytes_out=t.bytes_out,
        imatrix=own.get(t.statistics, t.statistics),
        lacks_imatrix=t.statistics == "missing",
        unseen_experts=tuple(t.unseen_experts),
        thin_experts=tuple(t.thin_experts),
    )
