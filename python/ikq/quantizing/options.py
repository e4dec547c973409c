"""Keywords of the functions that quantize, each in one place: `QuantizeOptions`, `RunOptions`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from ikq import _ikq
from ikq.arrays.quant_types import TypeLike, as_type
from ikq.errors import FormatError, RefusedError, UsageError
from ikq.statistics.imatrix import Imatrix

if TYPE_CHECKING:
    from ikq.quantizing.pipeline import PlannedTensor

__all__ = [
    "EFFORTS",
    "QuantizeFileOptions",
    "QuantizeOptions",
    "RunOptions",
    "WorkOptions",
    "check_run_options",
    "effort_of",
    "keywords_of",
    "parse_size",
    "quantize_options",
    "run_options",
    "wishes",
]

PathLike = str | os.PathLike[str]

EFFORTS = ("normal", "max")

_MOST_BYTES = 2**63
_MOST_LAYERS = 2**31


class QuantizeOptions(TypedDict, total=False):
    """Keywords that decide what is written, all optional; each is the command's option of that name."""

    pure: bool
    """Use TYPE for every matrix that no option names, including `output.weight`, without the rules of
    TYPE."""

    attn_q_type: TypeLike | None
    """The type of `attn_q`, which overrides the rules of TYPE; the following options do so for other
    roles."""
    attn_k_type: TypeLike | None
    attn_v_type: TypeLike | None
    attn_qkv_type: TypeLike | None
    """Fused query, key and value."""
    attn_output_type: TypeLike | None
    ffn_gate_type: TypeLike | None
    """Experts, shared experts and merged `ffn_gate_up_exps` too; not the router."""
    ffn_up_type: TypeLike | None
    ffn_down_type: TypeLike | None

    custom_q: str | Sequence[str]
    """Rules `"regex=type,regex=type"`, or several such strings, which override TYPE and the options for
    roles; the first pattern found in a tensor's name decides. A rule that matches nothing is an error."""
    tensor_type: str | Sequence[str]
    """Rules `"regex=type"`, one per string, after those of `custom_q`; the pattern may contain commas."""
    tensor_type_file: PathLike | None
    """A text file of such rules, one (or a comma-separated list) per line, after those above."""
    recipe: PathLike | None
    """A recipe, from `ikq recipe` or another program: a file of such rules, after those above. Rules for
    norms and routers that change nothing are ignored; files with line ends of Windows are accepted."""

    token_embedding_type: TypeLike | None
    """The type of `token_embd.weight`, which overrides all rules."""
    per_layer_token_embedding_type: TypeLike | None
    """The type of `per_layer_token_embd.weight`, which overrides all rules."""
    output_tensor_type: TypeLike | None
    """The type of `output.weight` (or of the tied embedding), which overrides all rules."""
    ffn_gate_inp_type: TypeLike | None
    """The type of the MoE router `ffn_gate_inp.weight`, which otherwise keeps its type."""
    leave_output_tensor: bool
    """Copy `output.weight` unchanged."""
    extra_output_tensor: TypeLike | None
    """Also write `output_extra.weight`, the output matrix in this type, if smaller than the source's."""
    symmetric_q40: bool
    """Encode Q4_0 with the levels -7 to 7, as some programs need it that repack it for other hardware."""

    biased: bool
    """Store scales as they were fitted. By default they are divided by the gain g = sum(w x y) / sum(w x^2)
    of the fit (x the source, y the decoded result, w the imatrix or 1), so that results are not smaller than
    the source on average. This makes squared errors larger by 1 / sqrt(g), but mixes diverge less from the
    source. Types of 8 bits and more, ternary ones, IQ6_K, MXFP4, NVFP4, IQ2_KT and IQ3_KT are the same either
    way."""
    unbiased: bool
    """The opposite of `biased` and the default; accepted for callers that were written for earlier
    versions."""

    imatrix: PathLike | Imatrix | None
    """Activation statistics: an imatrix file (`.dat` or GGUF) or an `Imatrix`."""
    error_feedback: PathLike | None
    """A covariance file (`ikq imatrix --covariance`): the error of each column is compensated by the columns
    after it, as far as their inputs are correlated. Types of 8 bits, ternary ones, those whose scales are
    powers of two or 8-bit floats, IQ1_S_R4 and IQ1_M_R4 are encoded as without."""
    effort: Literal["normal", "max"]
    """With `max`, codes and scales of rows with error feedback are chosen again when the row is done, in a
    few rounds in which the errors of all its columns are known. This takes 7 to 20 times as long."""
    include_weights: Sequence[str]
    """Use only the statistics of tensors whose names contain one of these."""
    exclude_weights: Sequence[str]
    """Use no statistics of tensors whose names contain one of these."""
    hide_imatrix: bool
    """Do not write the imatrix's name and size into the file."""
    ignore_imatrix_rules: bool
    """Do not refuse types that need statistics where there are none."""
    allow_missing: bool
    """Accept an imatrix without data for some tensors, or for more than 5 % of a tensor's experts."""

    only_layer: int | None
    """Write only the tensors of this block, for `reuse` by a run that writes all of them. Their types and
    statistics are the same as in the whole model."""

    repack: bool
    """Change no weights, but write the tensors in their interleaved types, where they have one and their rows
    form whole groups. TYPE is ignored (give COPY), and options about types cannot be combined with this."""
    unrepack: bool
    """The inverse of `repack`: write interleaved tensors in the plain types with the same codes, if any."""
    repack_pattern: str | Sequence[str]
    """Repack (or the inverse) only tensors whose names match; comma-separated lists of regular
    expressions."""

    allow_requantize: bool
    """Accept tensors that are quantized already."""
    override_kv: Sequence[str] | Mapping[str, int | float | bool | str]
    """Metadata to change: `"KEY=TYPE:VALUE"` with TYPE int, float, bool or str, or a mapping. The rules see
    the changed values."""
    split_max_size: int | str | None
    """Split the output into files of at most this many bytes (`"4G"`, `"500M"`)."""
    split_max_tensors: int | None
    """Split the output into files of at most this many tensors."""
    no_tensor_first_split: bool
    """Let the first file of a split hold metadata only."""
    keep_split: bool
    """Split the output like the source, with the same tensors in each file. A single file stays one."""


class WorkOptions(TypedDict, total=False):
    """Keywords of everything that quantizes a file: limits of threads and memory, clamping, and messages."""

    n_threads: int | None
    """Threads; None (or a number below 1) is one per CPU."""
    max_ram: int | str | None
    """The largest number of bytes that are worked on at a time, a number or `"500M"`; fewer threads work if
    it is not enough for all. None means half of the available memory."""
    clamp: bool
    """Cut off weights that are larger than their tensor's type can represent, such as those above 65504 in
    F16; by default they are refused."""
    on_note: Callable[[str], None] | None
    """Called with messages for the user, such as what earlier runs have left."""


class RunOptions(WorkOptions, total=False):
    """Keywords that decide how a plan is carried out, all optional."""

    restart: bool
    """Begin anew, whatever an interrupted run has left; by default the run continues with that."""
    reuse: PathLike | Sequence[PathLike] | None
    """An older output of ikq (a file or a split model), or several: their tensors are reused where source,
    type, imatrix and encoder are the same."""
    partial_requant: bool
    """Keep finished shards of the output that have the right contents (checked by their bytes, not by their
    names)."""
    measure_errors: bool
    """Measure every tensor's error; see `TensorOutcome`."""
    progress: Callable[[PlannedTensor, float], None] | None
    """Called with each tensor, in order, when it is in the file, and the seconds of work (of all threads
    together) that it took."""
    on_bytes: Callable[[int], None] | None
    """Called several times a second with the bytes of the source processed since the last call; for bars."""


class QuantizeFileOptions(QuantizeOptions, RunOptions, total=False):
    """The keywords of `quantize_file`."""


def keywords_of(options: type) -> frozenset[str]:
    """The names of a `TypedDict`'s keywords."""
    return frozenset(options.__annotations__)


def quantize_options(options: Mapping[str, object], others: frozenset[str]) -> QuantizeOptions:
    """The keywords that are not among `others`. Unknown ones stay, for `wishes` to refuse."""
    return cast("QuantizeOptions", {name: value for name, value in options.items() if name not in others})


def run_options(options: Mapping[str, object]) -> RunOptions:
    """The keywords that decide how a plan is carried out, out of those of `quantize_file`."""
    how = keywords_of(RunOptions)
    return cast("RunOptions", {name: value for name, value in options.items() if name in how})


def check_run_options(options: RunOptions) -> None:
    """Refuses what `QuantizePlan.run` does not take.

    Raises:
        TypeError: An unknown keyword.
    """
    if unknown := options.keys() - keywords_of(RunOptions):
        raise TypeError(f"unknown option {sorted(unknown)[0]!r}; see help(ikq.RunOptions)")


def wishes(options: QuantizeOptions, recipe_rules: Iterable[str] = ()) -> dict[str, Any]:
    """The options as the core takes them: every one present, types as ids.

    Args:
        options: The options.
        recipe_rules: What the file of `recipe` says.

    Raises:
        TypeError: An unknown keyword.
        ikq.errors.RefusedError: Options that exclude one another.
        ikq.errors.UsageError: An unknown type name.
    """
    unknown = options.keys() - keywords_of(QuantizeOptions)
    if unknown:
        raise TypeError(f"unknown option {sorted(unknown)[0]!r}; see help(ikq.QuantizeOptions)")
    given: Mapping[str, Any] = options

    _check_repack(options)

    def type_id(name: str) -> int | None:
        value: TypeLike | None = given.get(name)
        try:
            return None if value is None else int(as_type(value))
        except FormatError as e:
            raise UsageError(f"--{name.replace('_', '-')}: {e}") from None

    file = options.get("tensor_type_file")
    size = options.get("split_max_size")
    max_tensors, keep_split = options.get("split_max_tensors"), options.get("keep_split", False)
    if (size is not None) + (max_tensors is not None) + keep_split > 1:
        raise RefusedError("give one of --split-max-size, --split-max-tensors and --keep-split")
    if max_tensors is not None and not 0 < max_tensors < _MOST_BYTES:
        raise RefusedError(f"--split-max-tensors {max_tensors}: expected 1 or more")
    only_layer = options.get("only_layer")
    if only_layer is not None and not 0 <= only_layer < _MOST_LAYERS:
        raise RefusedError(f"--only-layer {only_layer}: no model has that layer")
    if options.get("no_tensor_first_split", False) and size is None and max_tensors is None:
        raise RefusedError("--no-tensor-first-split needs --split-max-size or --split-max-tensors")
    return {
        "pure": options.get("pure", False),
        "roles": [(role, t) for role in _ikq.roles() if (t := type_id(f"{role}_type")) is not None],
        "custom": [
            *(("list", text) for text in _several(options.get("custom_q", ()))),
            *(("rule", text) for text in _several(options.get("tensor_type", ()))),
            *([] if file is None else [("file", os.fspath(file))]),
            *(("rule", text) for text in recipe_rules),
        ],
        "token_embedding_type": type_id("token_embedding_type"),
        "per_layer_token_embedding_type": type_id("per_layer_token_embedding_type"),
        "output_tensor_type": type_id("output_tensor_type"),
        "ffn_gate_inp_type": type_id("ffn_gate_inp_type"),
        "leave_output_tensor": options.get("leave_output_tensor", False),
        "extra_output_tensor": type_id("extra_output_tensor"),
        "symmetric_q40": options.get("symmetric_q40", False),
        "biased": _is_biased(options),
        "allow_requantize": options.get("allow_requantize", False),
        "ignore_imatrix_rules": options.get("ignore_imatrix_rules", False),
        "include_weights": _several(options.get("include_weights", ())),
        "exclude_weights": _several(options.get("exclude_weights", ())),
        "hide_imatrix": options.get("hide_imatrix", False),
        "override_kv": _overrides(options.get("override_kv", ())),
        "max_bytes": None if size is None else parse_size(size),
        "max_tensors": max_tensors,
        "keep_split": keep_split,
        "no_tensor_first_split": options.get("no_tensor_first_split", False),
        "allow_missing": options.get("allow_missing", False),
        "repack": options.get("repack", False),
        "unrepack": options.get("unrepack", False),
        "repack_pattern": _several(options.get("repack_pattern", ())),
        "error_feedback": None
        if (covariances := options.get("error_feedback")) is None
        else os.fspath(covariances),
        "in_rounds": _is_in_rounds(options),
        "only_layer": only_layer,
    }


# Options about types and statistics, which have no effect on a model that is only repacked.
_ABOUT_TYPES = (
    *("pure", "attn_q_type", "attn_k_type", "attn_v_type", "attn_qkv_type", "attn_output_type"),
    *("ffn_gate_type", "ffn_up_type", "ffn_down_type", "custom_q", "tensor_type", "tensor_type_file"),
    "recipe",
    *("token_embedding_type", "per_layer_token_embedding_type", "output_tensor_type", "ffn_gate_inp_type"),
    *("leave_output_tensor", "extra_output_tensor", "symmetric_q40", "biased", "unbiased", "imatrix"),
    "error_feedback",
)


def _is_biased(options: QuantizeOptions) -> bool:
    if options.get("biased") and options.get("unbiased"):
        raise RefusedError("--biased and --unbiased exclude each other: the latter is the default")
    return options.get("biased", False)


def effort_of(options: QuantizeOptions) -> str:
    """The effort.

    Raises:
        ikq.errors.RefusedError: One that there is not.
    """
    effort: str = options.get("effort", "normal")
    if effort not in EFFORTS:
        raise RefusedError(f"--effort {effort}: expected one of {', '.join(EFFORTS)}")
    return effort


def _is_in_rounds(options: QuantizeOptions) -> bool:
    effort = effort_of(options)
    if effort == "max" and options.get("error_feedback") is None:
        raise RefusedError("--effort max goes with --error-feedback or --sequential")
    return effort == "max"


def _check_repack(options: QuantizeOptions) -> None:
    asked = [f"--{name}" for name in ("repack", "unrepack") if options.get(name)]
    if len(asked) > 1:
        raise RefusedError("--repack and --unrepack undo each other: give one of them")
    if not asked:
        if options.get("repack_pattern"):
            raise RefusedError("--repack-pattern needs --repack or --unrepack")
        return
    for name in _ABOUT_TYPES:
        if options.get(name):
            raise RefusedError(
                f"{asked[0]} only moves bits: --{name.replace('_', '-')} has no effect with it; leave it out"
            )


def parse_size(size: int | str) -> int:
    """Bytes of `"4G"`, `"500M"`, `"64K"` or a plain number.

    The units are powers of 1000, as users of `gguf-split` know them.

    Raises:
        ValueError: Not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)B?\s*", str(size), re.IGNORECASE)
    n = int(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ") if match else 0
    if not 0 < n < _MOST_BYTES:
        raise ValueError(f"{size!r} is not a size; write a number with K, M or G, such as 4G")
    return n


def _several(texts: str | Iterable[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _overrides(given: str | Sequence[str] | Mapping[str, int | float | bool | str]) -> list[str]:
    if not isinstance(given, Mapping):
        return _several(given)
    return [f"{key}={_kind(key, value)}:{_text(value)}" for key, value in given.items()]


def _kind(key: str, value: object) -> str:
    # bool first: it is an int
    for kind, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "str")):
        if isinstance(value, kind):
            return name
    raise RefusedError(f"override_kv[{key!r}] is {value!r}; give an int, a float, a bool or a str")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
