"""Checkpoints to GGUF files: `plan_conversion`, `convert_checkpoint`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ikq.checkpoint.opening import Checkpoint, OutType
from ikq.errors import RefusedError
from ikq.quantizing.options import QuantizeOptions
from ikq.quantizing.pipeline import QuantizePlan, QuantizeResult, _plan_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from ikq.quantizing.pipeline import PlannedTensor

__all__ = ["OUT_TYPES", "convert_checkpoint", "plan_conversion"]

OUT_TYPES = ("auto", "bf16", "f16", "f32", "q8_0")
"""What matrices may become."""

OutTypeName = Literal["auto", "bf16", "f16", "f32", "q8_0"]


def plan_conversion(
    folder: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    out_type: OutTypeName = "auto",
    *,
    fp8_as_q8: bool = False,
    override_kv: tuple[str, ...] | list[str] = (),
    split_max_size: int | str | None = None,
    split_max_tensors: int | None = None,
    no_tensor_first_split: bool = False,
) -> QuantizePlan:
    """Decides what `convert_checkpoint` writes; reads no weights and writes nothing.

    The arguments are those of `convert_checkpoint`, which runs the plan, and so are the errors.
    """
    if out_type not in OUT_TYPES:
        raise RefusedError(f"matrices cannot become {out_type!r:.40}; take one of {', '.join(OUT_TYPES)}")
    folder = Path(folder)
    floats: OutType = "auto" if out_type == "q8_0" else out_type
    checkpoint = Checkpoint(
        folder, floats, blocks=out_type == "auto", fp8_as_floats=fp8_as_q8, exact=out_type == "q8_0"
    )
    options: QuantizeOptions = {
        "override_kv": list(override_kv),
        "split_max_size": split_max_size,
        "split_max_tensors": split_max_tensors,
        "no_tensor_first_split": no_tensor_first_split,
    }
    fp8 = checkpoint.fp8_names()
    type_name = "COPY"
    if out_type == "q8_0":
        type_name = "Q8_0"
        options["pure"] = True
    elif fp8_as_q8 and fp8:
        type_name = checkpoint.out_type
        options["tensor_type"] = [f"{_one_of(fp8)}=q8_0"]
    if destination is None:
        shown = checkpoint.out_type if type_name == "COPY" else type_name
        destination = folder / f"ggml-model-{'Q8_0' if fp8_as_q8 and fp8 else shown}.gguf"
    return _plan_model(checkpoint.model(), folder, destination, type_name, None, options)


def convert_checkpoint(
    folder: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None = None,
    out_type: OutTypeName = "auto",
    *,
    fp8_as_q8: bool = False,
    override_kv: tuple[str, ...] | list[str] = (),
    split_max_size: int | str | None = None,
    split_max_tensors: int | None = None,
    no_tensor_first_split: bool = False,
    n_threads: int | None = None,
    restart: bool = False,
    max_ram: int | str | None = None,
    progress: Callable[[PlannedTensor, float], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> QuantizeResult:
    """Writes a checkpoint folder of `transformers` as a GGUF file; what `ikq convert` runs.

    Args:
        folder: With `config.json`, safetensors files and tokenizer files.
        destination: The file to write; None is `ggml-model-TYPE.gguf` in the folder.
        out_type: The type of matrices in the file. `auto` keeps the checkpoint's floats (and the MXFP4 of
            gpt-oss), and makes quantized matrices of other forms BF16 or F16, whichever the floats beside
            them are.
        fp8_as_q8: Matrices that are stored as 8-bit floats become Q8_0 directly, not by way of BF16.
        override_kv: Metadata to change, as `KEY=TYPE:VALUE`.
        split_max_size: Split into files of at most this size.
        split_max_tensors: Split into files of at most so many tensors.
        no_tensor_first_split: The first file of a split holds metadata only.
        n_threads: Threads; None is one per CPU.
        restart: Begin anew; by default the call continues where an interrupted one ended.
        max_ram: The largest number of bytes that are worked on at a time.
        progress: Called with each finished tensor and the seconds it took.
        on_note: Called with messages about what earlier runs have left.

    Raises:
        ikq.errors.FormatError: A file is damaged, or they do not fit together.
        ikq.errors.UnsupportedError: An architecture, quantization method or tokenizer that is not known.
        ikq.errors.RefusedError: What was asked makes no sense; the message names the way out.
        OSError: Files that are missing, or cannot be read or written.
    """
    plan = plan_conversion(
        folder,
        destination,
        out_type,
        fp8_as_q8=fp8_as_q8,
        override_kv=override_kv,
        split_max_size=split_max_size,
        split_max_tensors=split_max_tensors,
        no_tensor_first_split=no_tensor_first_split,
    )
    return plan.run(n_threads=n_threads, restart=restart, max_ram=max_ram, progress=progress, on_note=on_note)


def _one_of(names: list[str]) -> str:
    """A regular expression for these names."""
    return f"^({'|'.join(re.escape(name) for name in names)})$"
