"""`ikq quantize --sequential`: layer by layer, before the run that writes the output."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import ikq
from ikq.cli.notes import note_on_stderr
from ikq.cli.numbers import at_least, whole_number
from ikq.files.text_files import read_literally
from ikq.quantizing.options import QuantizeOptions
from ikq.quantizing.pipeline import QuantizePlan
from ikq.quantizing.sequential import layers_folder, quantize_layers
from ikq.statistics.calibrate import windows_of

__all__ = ["add_options", "check", "prepare", "tidy"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    group = parser.add_argument_group("layer by layer")
    group.add_argument(
        "--sequential",
        action="store_true",
        help="make every layer for what the layers before it, quantized, give it for a text (-f), with error "
        "feedback",
    )
    group.add_argument("-f", "--file", metavar="TEXT", help="the text")
    group.add_argument(
        "-c",
        "--ctx-size",
        metavar="N",
        type=at_least(1),
        default=512,
        help="tokens of a chunk of it, default 512",
    )
    group.add_argument(
        "--chunks", metavar="N", type=whole_number, default=-1, help="most chunks, default all of the text"
    )


def check(args: argparse.Namespace) -> None:
    """Refuses options that do not go together.

    Raises:
        ikq.errors.RefusedError: They do not.
    """
    if args.sequential and not args.file:
        raise ikq.RefusedError("--sequential needs a text: -f TEXT")
    if args.sequential and Path(args.words[0]).is_dir():
        raise ikq.RefusedError(
            "--sequential runs the source, which must be a GGUF file: ikq convert makes one"
        )
    if not args.sequential and args.file:
        raise ikq.RefusedError("-f is for --sequential")


def prepare(
    args: argparse.Namespace,
    plan: QuantizePlan,
    type_name: str,
    n_threads: int | None,
    options: QuantizeOptions,
) -> None:
    """Makes the layers; `args` then has what the run that writes the output needs of them.

    Raises:
        ikq.errors.RefusedError: As `quantize_layers`.
        OSError: The text cannot be read.
    """
    if args.restart:
        tidy(plan)
    with ikq.GGUFReader(plan.source) as reader:
        tokenizer = ikq.Tokenizer.from_reader(reader)
    windows = windows_of(
        tokenizer, read_literally(args.file, note_on_stderr), n_ctx=args.ctx_size, chunks=args.chunks
    )
    layers = quantize_layers(
        plan.source,
        layers_folder(plan.destination),
        type_name,
        windows,
        dataset=args.file,
        n_threads=n_threads,
        max_ram=args.max_ram,
        clamp=args.clamp,
        on_note=lambda text: print(text, flush=True),
        **options,
    )
    args.error_feedback = str(layers.covariances)
    args.reuse = [*args.reuse, *map(str, layers.files)]


def tidy(plan: QuantizePlan) -> None:
    """Removes what is left of the layers."""
    shutil.rmtree(layers_folder(plan.destination), ignore_errors=True)
