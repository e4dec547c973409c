"""The command line: `ikq VERB ...`. One module per verb.

A verb's module has `NAME`, `HELP` (one line for the list of verbs), `EXAMPLES` (two commands),
`add_arguments(parser)`, `run(args)`, which does the work and returns the exit code, and may have `ALIASES`,
and `ERROR_CODE` where 1 says something else. It uses public names of `ikq` only. `args.verb` is the name that
was typed, `args.command` the whole command.

Exit codes: 0 done; 1 error; 2 refused or wrong usage; 130 interrupted. An expected error is one
sentence on standard error; `IKQ_DEBUG=1` shows the traceback as well.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

import ikq
from ikq import _starting
from ikq.cli.numbers import VALUES_WITH_A_SIGN

VERBS_BY_TASK = {
    "quantize": ("quantize", "recipe", "imatrix", "convert"),
    "run and serve": ("run", "serve", "explain", "tokenize"),
    "measure quality": ("perplexity", "kld"),
    "measure speed": ("bench", "sweep_bench"),
    "look at files and change their form": ("gguf_dump", "diff", "validate", "gguf_hash", "gguf_split"),
    "look at ikq and this machine": ("types", "info", "cuda"),
}
"""Modules of this package by what a user wants to do, in the order of the help text."""

VERBS = tuple(verb for verbs in VERBS_BY_TASK.values() for verb in verbs)

DONE, ERROR, REFUSED, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations: a new option would change what an old command means.

    `allow_abbrev` says so for options with two dashes only. What begins with a sign and a digit is a value,
    so that an option's type can say what is wrong with `-1G`.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:  # noqa: ANN401  # those of its base
        super().__init__(*args, **keywords)
        self._negative_number_matcher = re.compile(VALUES_WITH_A_SIGN, re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Ends the process with wrong usage; says how values that look like options are given."""
        if message.endswith("expected one argument"):
            message += " (one that begins with - stands behind =, such as --types=-q2_k)"
        super().error(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:  # noqa: ANN401  # its base's
        # an older argparse makes an empty list of `--option=--`
        if action.nargs is None and arg_strings == ["--"] and action.option_strings:
            value = self._get_value(action, arg_strings[0])
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        found: list[Any] = super()._get_option_tuples(option_string)
        # of those with one dash only a letter with its value behind it: -n5
        return [option for option in found if option[1] == option_string[:2]]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    modules = {name: importlib.import_module(f"ikq.cli.{name}") for name in VERBS}
    parser = _Parser(
        prog="ikq",
        usage="ikq [-h] [--version] VERB ...",
        description=_verbs_text(modules),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="`ikq VERB --help` shows a verb's options, with examples first.\n"
        "IKQ_DEBUG=1 shows tracebacks, IKQ_ISA=scalar|avx2|avx512 forces an instruction set.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ikq {ikq.__version__}")
    # the description lists them: argparse cannot group verbs
    verbs = parser.add_subparsers(
        prog="ikq", metavar="VERB", dest="verb", required=True, help=argparse.SUPPRESS
    )
    for module in modules.values():
        verb = verbs.add_parser(
            module.NAME,
            aliases=getattr(module, "ALIASES", ()),
            description=(module.__doc__ or "").replace("`", ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(verb)
        verb.description = _with_examples(verb.description or "", module.EXAMPLES)
        verb.epilog = _filled(verb.epilog or "")
        verb.set_defaults(run=module.run, error_code=getattr(module, "ERROR_CODE", ERROR))
    return parser


def _verbs_text(modules: Mapping[str, ModuleType]) -> str:
    """All verbs with a line each, under headings that say what they are for."""
    lines = ["Quantize GGUF models with every tensor type of ggml, run them and serve them."]
    for task, names in VERBS_BY_TASK.items():
        lines += ["", f"{task}:"]
        for module in (modules[name] for name in names):
            aliases = ", ".join(getattr(module, "ALIASES", ()))
            name = f"{module.NAME} ({aliases})" if aliases else module.NAME
            lines += textwrap.wrap(
                module.HELP, 100, initial_indent=f"  {name:25} ", subsequent_indent=" " * 28
            )
    return "\n".join(lines)


def _with_examples(description: str, examples: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in examples), "", _filled(description)])


def _filled(text: str) -> str:
    return "\n\n".join(textwrap.fill(paragraph, 100) for paragraph in text.strip().split("\n\n"))


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code.

    Raises:
        SystemExit: from argparse: code 0 after `--help`, 2 after wrong usage.
    """
    error_code = ERROR
    try:
        parser = build_parser()
        _starting.end()
        parsed = parser.parse_args(arguments)
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
    forms = (f"{e.filename}:", f"'{e.filename}'", f"`{e.filename}`")
    # a path such as `folder` may also be a word of the sentence
    if e.filename is None or any(form in reason for form in forms):
        return reason
    return f"{e.filename}: {reason[:1].lower()}{reason[1:]}"


def _fail(sentence: str, code: int) -> int:
    if os.environ.get("IKQ_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    print(f"error: {sentence}", file=sys.stderr)
    return code
