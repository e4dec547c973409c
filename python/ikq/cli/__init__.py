"""The command line: `ikq VERB ...`. One module per verb.

A verb's module has `NAME`, `HELP` (one line for the list of verbs), `add_arguments(parser)`, and
`run(args)`, which does the work and returns the exit code; it may have `ALIASES`, and `ERROR_CODE` where 1
says something else. It uses public names of `ikq` only. `args.verb` is the name that was typed,
`args.command` the whole command.

Exit codes: 0 done; 1 error; 2 refused or wrong usage; 130 interrupted. An expected error is one
sentence on standard error; `IKQ_DEBUG=1` shows the traceback as well.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import ikq

VERBS = (
    "run",
    "serve",
    "bench",
    "sweep_bench",
    "quantize",
    "recipe",
    "imatrix",
    "perplexity",
    "kld",
    "explain",
    "types",
    "gguf_dump",
    "gguf_split",
    "gguf_hash",
    "diff",
    "validate",
    "info",
    "cuda",
    "tokenize",
)
"""Modules of this package, in the order of the help text."""

DONE, ERROR, REFUSED, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations: a new option would change what an old command means.

    `allow_abbrev` says so for options with two dashes only.
    """

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        found: list[Any] = super()._get_option_tuples(option_string)
        # of those with one dash only a letter with its value behind it: -n5
        return [option for option in found if option[1] == option_string[:2]]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = _Parser(
        prog="ikq",
        description="Quantize GGUF models with every tensor type of ggml, and run them.",
        epilog="Set IKQ_DEBUG=1 for tracebacks, IKQ_ISA=scalar|avx2|avx512 to force an instruction set.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ikq {ikq.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    for name in VERBS:
        module = importlib.import_module(f"ikq.cli.{name}")
        aliases = getattr(module, "ALIASES", ())
        verb = verbs.add_parser(
            module.NAME,
            aliases=aliases,
            help=module.HELP,
            description=module.__doc__,
            allow_abbrev=False,
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run, error_code=getattr(module, "ERROR_CODE", ERROR))
    return parser


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code.

    Raises:
        SystemExit: from argparse: code 0 after `--help`, 2 after wrong usage.
    """
    error_code = ERROR
    try:
        parsed = build_parser().parse_args(arguments)
        error_code = parsed.error_code
        parsed.command = ("ikq", *arguments)
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as e:
        return _fail(str(e) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # the reader of a pipe (`ikq types | head`) has left; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except ikq.RefusedError as e:
        return _fail(str(e), REFUSED)
    except OSError as e:
        return _fail(_os_sentence(e), error_code)
    except (ikq.IkqError, ValueError, MemoryError) as e:
        return _fail(str(e) or "out of memory", error_code)


def _os_sentence(e: OSError) -> str:
    reason = e.strerror or str(e)
    if e.filename is None or str(e.filename) in reason:
        return reason
    return f"{e.filename}: {reason[:1].lower()}{reason[1:]}"


def _fail(sentence: str, code: int) -> int:
    if os.environ.get("IKQ_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    print(f"error: {sentence}", file=sys.stderr)
    return code
