"""`ikq tokenize`: the tokens of a text."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import ikq
from ikq.cli.notes import note_on_stderr
from ikq.files.text_files import decode_literally

NAME = "tokenize"
HELP = "show the tokens of a text"
EXAMPLES = (
    "ikq tokenize -m model.gguf -p 'Hello world'",
    "ikq tokenize -m model.gguf -f text.txt --ids",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.description = (
        "Shows the tokens that a model sees for a text: one line per token, id and text. The text is taken"
        " literally, and from standard input if neither -p nor -f is given."
    )
    parser.add_argument("-m", "--model", metavar="FILE.gguf", required=True, help="file with the tokenizer")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("-p", "--prompt", metavar="TEXT", help="the text")
    text.add_argument("-f", "--file", metavar="FILE", help="read the text from a file (UTF-8)")
    text.add_argument("--stdin", action="store_true", help="read the text from standard input")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--ids", action="store_true", help="print the ids only, as a list")
    shape.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--show-count", action="store_true", help="print the number of tokens last")
    parser.add_argument("--no-bos", action="store_true", help="no BOS or EOS even if the model wants them")
    parser.add_argument(
        "--no-parse-special", action="store_true", help="<|im_start|> and the like are text, not tokens"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the tokens."""
    with ikq.GGUFReader(args.model) as model:
        tokenizer = ikq.Tokenizer.from_reader(model)
    text = args.prompt if args.prompt is not None else _read(args.file)
    ids = tokenizer.encode(text, add_special=not args.no_bos, parse_special=not args.no_parse_special)
    if args.json:
        pieces = [(token, tokenizer.token_bytes(token)) for token in ids]
        tokens = [{"id": t, "text": b.decode(errors="replace"), "hex": b.hex()} for t, b in pieces]
        print(json.dumps({"n_tokens": len(ids), "tokens": tokens}))
        return 0
    if args.ids:
        print(ids)
    else:
        for token in ids:
            print(f"{token:6} -> {_shown(tokenizer.token_bytes(token))}")
    if args.show_count:
        print(f"Total number of tokens: {len(ids)}")
    return 0


def _read(path: str | None) -> str:
    data = sys.stdin.buffer.read() if path is None else Path(path).read_bytes()
    return decode_literally(data, path or "standard input", note_on_stderr)


def _shown(piece: bytes) -> str:
    """In quotes; as bytes if it is only a part of a character."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)
