"""`ikq convert [options] FOLDER [OUT.gguf]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ikq
from ikq.checkpoint.adapter import is_adapter, read_adapter
from ikq.cli.numbers import size, whole_number
from ikq.cli.output_options import add_output_options
from ikq.cli.quantize import run_with_bar
from ikq.cli.quantize_lines import print_prediction, print_summary, tensor_lines

NAME = "convert"
HELP = "convert a checkpoint folder of transformers, or a LoRA adapter, to GGUF"
EXAMPLES = (
    "ikq convert Qwen3-30B-A3B model-bf16.gguf --outtype bf16",
    "ikq convert --fp8-as-q8 DeepSeek-V3 model-q8_0.gguf",
    "ikq convert --base Llama-3.2-1B my-adapter adapter.gguf",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options; names are those that users of the conversion script know."""
    parser.usage = "ikq convert [options] FOLDER [OUT.gguf]"
    parser.description = (
        "Writes safetensors, configuration and tokenizer of a folder as one GGUF file. `ikq quantize FOLDER "
        "OUT.gguf TYPE` quantizes without this step. A folder with adapter_config.json is a LoRA adapter of "
        "PEFT."
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="with config.json, *.safetensors and tokenizer files"
    )
    parser.add_argument(
        "target", metavar="OUT.gguf", nargs="?", help="the file, else ggml-model-TYPE.gguf in the folder"
    )
    parser.add_argument(
        "--outtype",
        choices=["auto", "bf16", "f16", "f32", "q8_0"],
        default="auto",
        help="what matrices become; auto (default) keeps the floats that the folder has",
    )
    parser.add_argument(
        "--fp8-as-q8", action="store_true", help="matrices of 8-bit floats become Q8_0, without bf16 between"
    )
    parser.add_argument(
        "--base",
        metavar="FOLDER",
        help="of an adapter: the checkpoint of its model, else where adapter_config.json says",
    )
    add_output_options(parser)
    parser.add_argument(
        "-t", "--threads", metavar="N", type=whole_number, help="threads, default one per CPU"
    )
    parser.add_argument("--max-ram", metavar="N(M|G)", type=size, help="most bytes in work at a time")
    parser.add_argument(
        "--restart",
        action="store_true",
        help="begin anew; without it the same command goes on where an interrupted one ended",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print tensors, size, memory, disk and time; write nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    if is_adapter(args.folder):
        return _adapter(args)
    if args.base is not None:
        raise ikq.RefusedError("--base is for adapters: the folder has no adapter_config.json")
    plan = ikq.plan_conversion(
        args.folder,
        args.target,
        args.outtype,
        fp8_as_q8=args.fp8_as_q8,
        override_kv=args.override_kv,
        split_max_size=args.split_max_size,
        split_max_tensors=args.split_max_tensors,
        no_tensor_first_split=args.no_tensor_first_split,
    )
    lines = tensor_lines(plan)
    if args.dry_run:
        for line in lines.values():
            print(line)
        print_summary(plan, None)
        print_prediction(plan, args.threads, args.max_ram, measure_errors=False)
        return 0

    def carry_out(**reports: object) -> ikq.QuantizeResult:
        how: dict[str, object] = {"n_threads": args.threads, "restart": args.restart, "max_ram": args.max_ram}
        return plan.run(**how, **reports)  # type: ignore[arg-type]  # options and callbacks by their names

    if sys.stderr.isatty() and sys.stdout.isatty():
        result = run_with_bar(plan, carry_out)
    else:
        result = carry_out(
            progress=lambda t, _: print(lines[t.name], flush=True),
            on_note=lambda text: print(text, flush=True),
        )
    print_summary(plan, result)
    return 0


def _adapter(args: argparse.Namespace) -> int:
    """Converts an adapter, which is small: options about time, memory and several files are none of its."""
    given = {
        "--fp8-as-q8": args.fp8_as_q8,
        "--override-kv": args.override_kv,
        "--split-max-size": args.split_max_size,
        "--split-max-tensors": args.split_max_tensors,
        "--no-tensor-first-split": args.no_tensor_first_split,
    }
    for option, value in given.items():
        if value:
            raise ikq.RefusedError(f"{option} is not for adapters")
    if args.dry_run:
        for name, tensor in read_adapter(Path(args.folder), args.base, args.outtype).tensors.items():
            print(f"{name}: {list(tensor.shape)}")
        return 0
    print(ikq.convert_adapter(args.folder, args.target, args.base, args.outtype))
    return 0
