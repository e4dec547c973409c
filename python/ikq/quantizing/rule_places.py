"""Messages about rules `regex=type` that say where a rule stands: `naming_places`."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence

from ikq.arrays.quant_types import as_type
from ikq.errors import FormatError, RefusedError, UsageError
from ikq.files.text_files import read_lines
from ikq.quantizing.options import QuantizeOptions
from ikq.recipes.files import AFTER_SIGN, read_rule_lines

__all__ = ["naming_places"]

_MESSAGE = re.compile(
    r"(?:(?P<file>.+), line (?P<line>\d+): )?custom rule `(?P<rule>.*?)`(?:: | matches no tensor)", re.DOTALL
)
# what the core says of an expression has it again, with a mark below the fault that a sentence cannot have
_DRAWING = re.compile(r"regex parse error:.*error: ", re.DOTALL)


@contextlib.contextmanager
def naming_places(options: QuantizeOptions) -> Iterator[None]:
    """Adds to what the core says of a rule the option, or the file and line, that it is from.

    Raises:
        ikq.errors.RefusedError: Raised inside about a rule, with its place.
        ikq.errors.UsageError: A rule of the command line has an unknown type.
    """
    try:
        yield
    except RefusedError as e:
        found = _MESSAGE.match(str(e))
        if found is None:
            raise
        said = _DRAWING.sub("", str(e))
        if found["file"] is None:
            place = _place(found["rule"], options)
            raise type(e)(f"{place}: {said}" if place else said) from None
        cut = "#" in read_lines(found["file"])[int(found["line"]) - 1]
        raise type(e)(f"{said} ({AFTER_SIGN})" if cut else said) from None
    except FormatError as e:
        for option, texts in _on_command_line(options).items():
            for text in texts:
                if "=" in text and not _is_type(text.rpartition("=")[2]):
                    raise UsageError(f"{option} {text}: {e}") from None
        raise


def _place(rule: str, options: QuantizeOptions) -> str | None:
    """The option, or the file and line, of the first rule that reads so."""
    wanted = _normal(rule)
    for option, texts in _on_command_line(options).items():
        if any(_normal(text) == wanted for text in texts):
            return option
    for file in (options.get("tensor_type_file"), options.get("recipe")):
        if file is None:
            continue
        # its lines are rules, or the core had said so; it may be gone by now
        with contextlib.suppress(OSError, FormatError):
            for line in read_rule_lines(file):
                if _normal(line.rule) == wanted:
                    return f"{os.fspath(file)}, line {line.number}"
    return None


def _on_command_line(options: QuantizeOptions) -> dict[str, list[str]]:
    """Rules that are no file's, by option."""
    return {
        "--custom-q": [part for text in _several(options.get("custom_q", ())) for part in text.split(",")],
        "--tensor-type": _several(options.get("tensor_type", ())),
    }


def _is_type(word: str) -> bool:
    try:
        as_type(word)
    except FormatError:
        return False
    return True


def _several(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _normal(rule: str) -> str:
    pattern, _, word = rule.rpartition("=")
    return f"{pattern.strip()}={word.strip().lower()}"
