"""Options that say what a text must be."""

from __future__ import annotations

import argparse
import json
from typing import Any

import ikq
from ikq.files.text_files import read_lines

__all__ = ["add_grammar", "grammar_options"]


def add_grammar(parser: argparse.ArgumentParser) -> None:
    """Adds them; names are those that users of llama-cli know."""
    group = parser.add_argument_group(
        "form", "What the answer must be; tokens that would break it are never chosen. Needs ikq[serve]."
    )
    one = group.add_mutually_exclusive_group()
    one.add_argument("--grammar", metavar="GBNF", help="a text of this grammar, in llama.cpp's notation")
    one.add_argument("--grammar-file", metavar="FILE", help="the same from a file")
    one.add_argument(
        "-j", "--json-schema", metavar="JSON", help="JSON that is valid under this schema; {} for any"
    )
    one.add_argument("-jf", "--json-schema-file", metavar="FILE", help="the same from a file")
    one.add_argument("--regex", metavar="PATTERN", help="a text that this regular expression matches")


def grammar_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `Model.generate`.

    Raises:
        RefusedError: a schema is not JSON.
        FormatError: a file is not UTF-8.
        OSError: a file cannot be read.
    """
    if args.grammar is not None or args.grammar_file is not None:
        return {"grammar": _text(args.grammar, args.grammar_file)}
    if args.json_schema is not None or args.json_schema_file is not None:
        text = _text(args.json_schema, args.json_schema_file)
        try:
            return {"json_schema": json.loads(text)}
        except (ValueError, RecursionError) as e:
            raise ikq.RefusedError(f"{args.json_schema_file or '--json-schema'} is not JSON: {e}") from None
    return {} if args.regex is None else {"regex": args.regex}


def _text(text: str | None, file: str | None) -> str:
    if text is not None or file is None:
        return text or ""
    return "\n".join(read_lines(file))
