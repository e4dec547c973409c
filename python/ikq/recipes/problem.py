"""The choices of a recipe: for every tensor the types that it may get, with exact sizes.

Sizes, fallbacks and what is never quantized are those of the quantizer's own plan, one plan per type, so that
a recipe's file has the size that was promised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.arrays.quant_types import QuantType, as_type
from ikq.errors import FormatError, RefusedError, UsageError
from ikq.files.gguf import GGUFReader
from ikq.quantizing.pipeline import PlannedTensor, QuantizePlan, plan_quantization
from ikq.quantizing.report.records import kind_and_layer
from ikq.statistics.imatrix import Imatrix

__all__ = ["DEFAULT_TYPES", "Problem", "TensorChoices", "parse_types", "plan_of_types", "read_problem"]

DEFAULT_TYPES = tuple(
    t
    for t in QuantType
    if t.can_encode
    and t.is_storable
    and t.family in ("legacy", "k", "i", "iqk", "trellis")
    # Q8_KV holds rows for one kind of product; other programs refuse it for embeddings
    and t.name != "Q8_KV"
)
"""What a recipe may use unless told otherwise: all types of weights that are not ternary, floats or FP4."""

_EVERYTHING = "."
_MATRICES_WITHOUT_RULES = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class TensorChoices:
    """A tensor whose type is to be chosen."""

    name: str
    kind: str
    """Its name without layer and ending: `attn_q`, `ffn_down_exps`, `output`."""
    layer: int | None
    shape: tuple[int, ...]
    """As numpy has it: experts, rows, elements of a row."""
    source_type: QuantType | int
    types: tuple[QuantType | int, ...]
    """The types that it may get, ordered by size; its own type is among them if it may stay as it is."""
    bytes: NDArray[np.int64]
    """Bytes in the file for each of them, with the padding behind."""
    imatrix: str | None
    """Entry of the statistics of its input."""

    @property
    def n_weights(self) -> int:
        """Elements."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Problem:
    """A model for which a recipe is wanted."""

    source: Path
    imatrix: Imatrix | None
    tensors: tuple[TensorChoices, ...]
    """Those with a choice, in the order of the file."""
    overhead: int
    """Bytes of the output that do not depend on any choice: metadata, norms, routers."""
    n_weights: int
    """Elements of all tensors, those without a choice included; what bits per weight are counted by."""
    fixed_bytes: Mapping[str, int]
    """Bytes of tensors without a choice, by name."""

    @property
    def least_bytes(self) -> int:
        """Size of the smallest file that can be made."""
        return self.overhead + sum(int(t.bytes[0]) for t in self.tensors)

    @property
    def smallest(self) -> str:
        """A text about the smallest file, for error messages."""
        least = self.least_bytes
        bits = 8 * (least - self.overhead + sum(self.fixed_bytes.values())) / self.n_weights
        return (
            f"the smallest file with these types has {least} bytes "
            f"({least / 1e9:.3f} GB, {bits:.3f} bits per weight)"
        )

    @property
    def most_bytes(self) -> int:
        """Size of the largest."""
        return self.overhead + sum(int(t.bytes[-1]) for t in self.tensors)

    def total_bytes(self, choice: Sequence[int] | NDArray[np.int64]) -> int:
        """Size of the file with one index into `types` per tensor."""
        chosen = zip(self.tensors, choice, strict=True)
        return self.overhead + sum(int(t.bytes[k]) for t, k in chosen)

    def types_of(self, choice: Sequence[int] | NDArray[np.int64]) -> dict[str, QuantType | int]:
        """The chosen types by name."""
        return {t.name: t.types[k] for t, k in zip(self.tensors, choice, strict=True)}


def parse_types(
    words: str | Iterable[str], among: Sequence[QuantType] | None = None
) -> tuple[QuantType, ...]:
    """Types by name, by family (`k`, `i`, `iqk`, `trellis`, `legacy`), or by program (`llama.cpp`).

    Args:
        words: A comma-separated list, or several. `-NAME` takes types away again.
        among: What a list that begins so takes away from, and what families and programs are parts of;
            `None`: `DEFAULT_TYPES`, and only types that can be written are taken.

    Raises:
        ikq.errors.UsageError: An unknown name.
        ikq.errors.RefusedError: Nothing is left, or a type that cannot be written.
    """
    text = words if isinstance(words, str) else ",".join(words)
    known = DEFAULT_TYPES if among is None else among
    chosen: dict[QuantType, None] = {}
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts and parts[0].startswith("-"):
        chosen.update(dict.fromkeys(known))
    for part in parts:
        if part == "-":
            raise UsageError(f"--types {text!r}: a type is missing behind -")
        found = _named(part.removeprefix("-"), known, must_be_written=among is None)
        if part.startswith("-"):
            for t in found:
                chosen.pop(t, None)
        else:
            chosen.update(dict.fromkeys(found))
    if not chosen:
        raise RefusedError(
            f"--types {text!r} leaves no type to choose from; "
            f"without it there are {', '.join(t.name for t in known)}"
        )
    return tuple(chosen)


def _named(
    word: str, known: Sequence[QuantType] = DEFAULT_TYPES, *, must_be_written: bool = True
) -> tuple[QuantType, ...]:
    families = {t.family for t in known}
    if word.lower() in families:
        return tuple(t for t in known if t.family == word.lower())
    if word.lower() in ("llama.cpp", "ik_llama.cpp"):
        return tuple(t for t in known if word.lower() in t.known_to)
    try:
        t = as_type(word)
    except FormatError as e:
        raise UsageError(
            f"{e} (a family is one of {', '.join(sorted(families))}, a program llama.cpp)"
        ) from None
    if must_be_written and not (t.can_encode and t.is_storable):
        raise RefusedError(f"{t.name} cannot be written to a file; `ikq types` says which can")
    return (t,)


def plan_of_types(
    source: Path,
    imatrix: Imatrix | None,
    rules: Sequence[str],
    *,
    type: str = "COPY",
    allow_requantize: bool = False,
) -> QuantizePlan:
    """The quantizer's plan for rules `regex=type`; matrices that none of them names get `type`."""
    return plan_quantization(
        source,
        source.with_name("recipe.gguf"),
        type,
        imatrix=imatrix,
        tensor_type=list(rules),
        allow_requantize=allow_requantize,
        ignore_imatrix_rules=True,
        allow_missing=True,
    )


def read_problem(
    source: Path,
    imatrix: Imatrix | None,
    types: Iterable[QuantType] = DEFAULT_TYPES,
    *,
    fix: Sequence[str] = (),
    allow_requantize: bool = False,
) -> Problem:
    """Plans every type for every tensor.

    Args:
        source: The model, or any shard of a split set.
        imatrix: Statistics, which decide what types need and may have.
        types: What may be chosen. A tensor may also stay as it is.
        fix: `regex=type`: tensors in whose names the expression is found get that type, and no other. The
            first that fits holds.
        allow_requantize: Choose for tensors that are quantized already, too.

    Raises:
        ikq.errors.RefusedError: A rule of `fix` that fits nothing, a model without a tensor to choose for.
        ikq.errors.UsageError: A rule that is none.
        ikq.errors.FormatError: A damaged file.
    """
    wanted = tuple(dict.fromkeys(types))
    fixed = [_fix_rule(text) for text in fix]
    all_types = tuple(dict.fromkeys([*wanted, *(rule.type for rule in fixed)]))
    if not all_types:
        raise RefusedError("there is no type to choose from; name some with --types")
    if not _can_be_quantized(source):
        raise RefusedError(f"{source} has no tensor whose type could be chosen")
    # a plan holds the statistics, which are large: only one is kept at a time
    plans: dict[QuantType, tuple[PlannedTensor, ...]] = {}
    totals = []
    for t in all_types:
        plan = plan_of_types(
            source,
            imatrix,
            [f"{_EVERYTHING}={t.name}"],
            type=_ikq.ftype_of_type(int(t)) or "COPY",
            allow_requantize=allow_requantize,
        )
        plans[t] = tuple(plan.tensors)
        totals.append(plan.total_bytes)
        del plan
    sizes = _Sizes.read(source)
    tensors: list[TensorChoices] = []
    fixed_bytes: dict[str, int] = {}
    n_weights = 0
    for i, first in enumerate(plans[all_types[0]]):
        of_type = {t: planned[i] for t, planned in plans.items()}
        n_weights += int(np.prod(first.shape))
        if all(
            p.copied and p.to_type == p.from_type and not _is_kept_type(p.reason) for p in of_type.values()
        ):
            fixed_bytes[first.name] = sizes.padded(first.bytes_out)
        else:
            tensors.append(_choices(of_type, wanted, _deciding(fixed, first.name), sizes))
    overhead = max(
        total - sum(sizes.padded(p.bytes_out) for p in planned)
        for total, planned in zip(totals, plans.values(), strict=True)
    )
    problem = Problem(
        source=source,
        imatrix=imatrix,
        tensors=tuple(tensors),
        overhead=overhead + sum(fixed_bytes.values()),
        n_weights=n_weights,
        fixed_bytes=fixed_bytes,
    )
    _check_all_used(fixed, problem)
    return problem


@dataclass(frozen=True)
class _Sizes:
    """Sizes of a model's tensors as they are, and how sizes are padded in its file."""

    own: Mapping[str, int]
    alignment: int

    @staticmethod
    def read(source: Path) -> _Sizes:
        with GGUFReader(source) as reader:
            alignment = int(str(reader.metadata.get("general.alignment", 32)))
            return _Sizes({name: t.nbytes for name, t in reader.tensors.items()}, alignment)

    def padded(self, n: int) -> int:
        return -(-n // self.alignment) * self.alignment


@dataclass(frozen=True)
class _FixRule:
    """A `--fix`."""

    pattern: re.Pattern[str]
    type: QuantType
    text: str


def _deciding(fixed: Sequence[_FixRule], name: str) -> _FixRule | None:
    """The first rule that fits a tensor."""
    return next((rule for rule in fixed if rule.pattern.search(name)), None)


def _choices(
    of_type: Mapping[QuantType, PlannedTensor],
    wanted: Sequence[QuantType],
    rule: _FixRule | None,
    sizes: _Sizes,
) -> TensorChoices:
    """What a tensor may become; `of_type` has what the plan for each type makes of it."""
    first = next(iter(of_type.values()))
    options: dict[QuantType | int, int] = {}
    if rule is None:
        options[first.from_type] = sizes.padded(sizes.own[first.name])
    for t in wanted if rule is None else (rule.type,):
        p = of_type[t]
        lacking = p.lacks_imatrix and isinstance(p.to_type, QuantType) and p.to_type.needs_imatrix
        if lacking and p.name not in _MATRICES_WITHOUT_RULES and rule is None:
            continue
        options[p.to_type] = sizes.padded(p.bytes_out)
    ordered = sorted(options.items(), key=lambda o: o[1])
    kind, layer = kind_and_layer(first.name)
    entries = {p.imatrix for p in of_type.values() if p.imatrix is not None}
    return TensorChoices(
        name=first.name,
        kind=kind,
        layer=layer,
        shape=first.shape,
        source_type=first.from_type,
        types=tuple(t for t, _ in ordered),
        bytes=np.array([n for _, n in ordered], np.int64),
        imatrix=min(entries, default=None),
    )


def _check_all_used(fixed: Sequence[_FixRule], problem: Problem) -> None:
    """Refuses rules that decide for no tensor."""
    names = [t.name for t in problem.tensors]
    used = [_deciding(fixed, name) for name in names]
    for rule in fixed:
        if any(rule is other for other in used):
            continue
        if any(rule.pattern.search(name) for name in names):
            raise RefusedError(
                f"--fix {rule.text}: earlier rules decide for all tensors that it fits; put it first"
            )
        hint = " (a list takes a --fix for each rule)" if re.search(r"=\s*\w+,", rule.text) else ""
        raise RefusedError(
            f"--fix {rule.text}: no tensor that can be quantized has such a name{hint}; {problem.smallest}"
        )


def _can_be_quantized(source: Path) -> bool:
    """Whether there is a tensor that the quantizer does not keep as it is in any case."""
    plan = plan_quantization(
        source,
        source.with_name("recipe.gguf"),
        "Q8_0",
        pure=True,
        allow_requantize=True,
        ignore_imatrix_rules=True,
    )
    return any(not t.copied or _is_kept_type(t.reason) for t in plan.tensors)


def _is_kept_type(reason: str) -> bool:
    """Whether a tensor is copied because it has the wanted type already."""
    return reason.startswith("is ")


def _fix_rule(text: str) -> _FixRule:
    pattern, equals, type_name = text.rpartition("=")
    pattern = pattern.strip()
    if not equals or not pattern:
        raise UsageError(f"--fix {text!r}: expected REGEX=TYPE, such as attn_v=q8_0")
    try:
        found = re.compile(pattern)
    except re.error as e:
        raise UsageError(f"--fix {text!r}: {pattern!r} is no regular expression: {e}") from None
    try:
        types = _named(type_name.strip())
    except (UsageError, RefusedError) as e:
        raise type(e)(f"--fix {text!r}: {e}") from None
    if len(types) != 1:
        raise UsageError(f"--fix {text!r}: {type_name} is more than one type; name one of them")
    return _FixRule(found, types[0], text)
