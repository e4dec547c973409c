"""Options of speculative decoding."""

from __future__ import annotations

import argparse
from typing import Any

import ikq
from ikq.cli.model_options import n_layers
from ikq.cli.numbers import number, whole_number
from ikq.models import model_spec, mtp_spec
from ikq.speculation import Speculation, check_same_vocabulary

__all__ = ["add_drafters", "add_speculation", "check_files", "speculation_options"]


def add_speculation(parser: argparse.ArgumentParser) -> None:
    """Adds them; names are those that users of llama.cpp know, where it has them."""
    group = parser.add_argument_group(
        "speculation", "Drafts of several tokens that the model checks at once. The text is the same without."
    )
    _add_drafters(group)
    group.add_argument(
        "--lookup",
        nargs="?",
        type=whole_number,
        const=True,
        default=False,
        metavar="N",
        help="draft what followed the last (at least N) tokens earlier in the text",
    )
    group.add_argument(
        "--draft-max",
        "--draft",
        "--draft-n",
        type=whole_number,
        default=8,
        metavar="N",
        help="most tokens of a draft (8)",
    )
    group.add_argument(
        "--draft-min",
        "--draft-n-min",
        type=whole_number,
        default=0,
        metavar="N",
        help="drop shorter drafts (0)",
    )
    group.add_argument(
        "--draft-p-min",
        type=number,
        default=0.5,
        metavar="P",
        help="end a draft before a token that is less probable, of the 16 best to who drafts (0.5)",
    )
    group.add_argument(
        "--no-draft-adapt",
        dest="draft_adapt",
        action="store_false",
        help="always draft --draft-max tokens, not as many as gain time",
    )


def add_drafters(parser: argparse.ArgumentParser) -> None:
    """Adds what takes memory beside a model, and where."""
    group = parser.add_argument_group("speculation", "What drafts the texts of the model.")
    _add_drafters(group)


def _add_drafters(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-md",
        "--draft-model",
        "--model-draft",
        metavar="FILE",
        help="a smaller model of the same vocabulary drafts",
    )
    group.add_argument("--mtp", action="store_true", help="the model's own head for further tokens drafts")
    group.add_argument(
        "-ngld",
        "--gpu-layers-draft",
        "--n-gpu-layers-draft",
        dest="n_gpu_layers_draft",
        type=n_layers,
        metavar="N",
        help="the last N layers of the draft model go to GPUs, or to what -devd names (all, to the GPU that "
        "has the last of the model's layers)",
    )
    group.add_argument(
        "-devd",
        "--device-draft",
        metavar="NAME,...",
        help="what computes the draft model (as -dev; none: the CPU)",
    )


def speculation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `Model.generate` but `draft_model`, which `args` has as a file.

    Raises:
        RefusedError: a value is out of range, or options do not go together.
    """
    names = ("lookup", "mtp", "draft_max", "draft_min", "draft_p_min", "draft_adapt")
    options = {name: getattr(args, name) for name in names}
    try:
        Speculation(draft_model=args.draft_model, **options)
    except ValueError as e:
        raise ikq.RefusedError(str(e)) from None
    return options


def check_files(args: argparse.Namespace, reader: ikq.GGUFReader) -> None:
    """Finds out before weights are loaded whether these files can be drafted for, and draft.

    Args:
        args: The command line.
        reader: The model's file.

    Raises:
        RefusedError: the model has no head for further tokens, or the draft model another vocabulary.
        OSError, FormatError, UnsupportedError: a file cannot be read, or is no model.
    """
    if args.mtp and mtp_spec(reader) is None:
        raise ikq.RefusedError(f"--mtp: {args.model} has no head for further tokens (`nextn` tensors)")
    if args.draft_model is not None:
        with ikq.GGUFReader(args.draft_model) as draft:
            n_vocab = model_spec(reader).n_vocab, model_spec(draft).n_vocab
            check_same_vocabulary(reader.metadata, draft.metadata, n_vocab, args.draft_model)
