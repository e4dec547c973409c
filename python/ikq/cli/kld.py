"""`ikq kld`: how far a model is from the one it was made from."""

from __future__ import annotations

import argparse

import ikq
from ikq.cli import quality

NAME = "kld"
HELP = "measure the KL divergence of a model from its original, and how often both agree"
EXAMPLES = (
    "ikq kld -m model.gguf --base-model model-bf16.gguf -f text.txt",
    "ikq kld -m model.gguf --kl-divergence-base base.kld",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.usage = (
        "ikq kld -m Q.gguf (--kl-divergence-base FILE | --base-model BASE.gguf -f TEXT) [options]\n"
        "       ikq kld --write -m BASE.gguf -f TEXT --kl-divergence-base FILE [--compact] [options]"
    )
    parser.description = (
        "Compares a model's distributions with those of a base: from a file that llama-perplexity, "
        "`ikq perplexity` or --write made, or from the base model itself."
    )
    quality.add_options(parser)
    parser.add_argument("--base-model", metavar="FILE.gguf", help="the base as a model; needs -f")
    parser.add_argument("--write", action="store_true", help="the model is the base: write the file")
    parser.add_argument("--kl-divergence", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    file, model = args.kl_divergence_base, args.base_model
    if bool(file) == bool(model):
        raise ikq.RefusedError("name the base: either --kl-divergence-base FILE or --base-model FILE.gguf")
    if args.write:
        if not file:
            raise ikq.RefusedError("--write needs --kl-divergence-base FILE")
        return quality.measure(args)
    if args.compact is not None:
        raise ikq.RefusedError("--compact is for --write; a file that is there says itself what it is")
    return quality.compare(args, model)
