"""`ikq perplexity`: how well a model predicts a text."""

from __future__ import annotations

import argparse

import ikq
from ikq.cli import quality
from ikq.cli.numbers import whole_number

NAME = "perplexity"
ALIASES = ("ppl",)
HELP = "measure the perplexity of a text; write distributions for `kld`"
EXAMPLES = (
    "ikq perplexity -m model.gguf -f text.txt",
    "ikq perplexity -m model-bf16.gguf -f text.txt --kl-divergence-base base.kld --compact",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.usage = "ikq perplexity -m FILE.gguf -f TEXT [-c N] [--chunks N] [--ppl-stride N] [options]"
    parser.description = (
        "Cuts the text into windows of -c tokens, as llama-perplexity does, and scores the second half of "
        "each. Prints the estimate after every window. The text is taken literally: no escapes."
    )
    quality.add_options(parser)
    parser.add_argument(
        "--ppl-stride",
        type=whole_number,
        metavar="N",
        help="begin a window every N tokens and score its last N (0: windows follow each other)",
    )
    parser.add_argument(
        "--kl-divergence",
        action="store_true",
        help="compare with the base file instead of writing it, as `kld` does",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    if not args.kl_divergence:
        return quality.measure(args)
    if not args.kl_divergence_base:
        raise ikq.RefusedError("--kl-divergence needs --kl-divergence-base FILE")
    return quality.compare(args)
