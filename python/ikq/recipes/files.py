"""Recipe files, read and written; tables of sensitivities.

A recipe file has a rule `regex=type` per line (or several, with commas), blank lines, and comments behind
`#`. The first rule whose expression is found in a tensor's name gives it its type.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ikq.arrays.quant_types import QuantType, as_type
from ikq.errors import FormatError, RefusedError, UsageError
from ikq.files.text_files import read_lines
from ikq.files.whole_file import whole_file
from ikq.quantizing.options import PathLike

__all__ = [
    "AFTER_SIGN",
    "RuleLine",
    "applicable_rules",
    "read_recipe",
    "read_rule_lines",
    "read_sensitivities",
    "recipe_type",
    "write_sensitivities",
]

_TYPE_COMMENT = re.compile(r"#\s*type:\s*(\S+)\s*$", re.IGNORECASE)
_FLOATS = ("F32", "F16", "BF16")
_MOST_DIVERGENCE = 1e6


AFTER_SIGN = r"what follows # is a comment; in an expression write \x23 for that sign"
"""Said of a rule that is none because a comment cuts it."""


class RuleLine(NamedTuple):
    """A rule `regex=type` and the line of its file, counted from 1."""

    number: int
    rule: str


def read_recipe(path: PathLike) -> list[str]:
    """Rules `regex=type` of a recipe file; line ends of any system, and a byte order mark, do not matter.

    Raises:
        OSError: The file cannot be read.
        ikq.errors.FormatError: A file that is no text.
        ikq.errors.UsageError: A line that is no rule, or names an unknown type; says which line.
        ikq.errors.RefusedError: A file without a rule.
    """
    rules = [line.rule for line in read_rule_lines(path)]
    if not rules:
        raise RefusedError(f"{path} has no rule; a recipe has lines such as blk\\..*\\.attn_q=q6_k")
    return rules


def read_rule_lines(path: PathLike) -> list[RuleLine]:
    """As `read_recipe`, with the lines that rules are in; a file may have none."""
    rules: list[RuleLine] = []
    for number, line in enumerate(read_lines(path), 1):
        before, sign, _ = line.partition("#")
        text = before.strip().strip(",").strip()
        if not text:
            continue
        parts = [part.strip() for part in text.split(",") if part.strip()]
        listed = [_rule(part) for part in parts]
        if all(rule is not None for rule in listed):
            rules += [RuleLine(number, rule) for rule in listed if rule is not None]
        elif (whole := _rule(text)) is not None:
            rules.append(RuleLine(number, whole))
        else:
            hint = f" ({AFTER_SIGN})" if sign else ""
            raise UsageError(
                f"{path}, line {number}: {text!r} is not a rule REGEX=TYPE with a known type{hint}"
            )
    return rules


def _rule(text: str) -> str | None:
    pattern, equals, word = text.rpartition("=")
    if not (equals and pattern.strip()):
        return None
    try:
        return f"{pattern.strip()}={as_type(word.strip()).name.lower()}"
    except FormatError:
        return None


def recipe_type(path: PathLike) -> str | None:
    """The TYPE that a recipe names in a comment `# type: NAME`: what the file is said to be."""
    for line in read_lines(path):
        if found := _TYPE_COMMENT.match(line.strip()):
            return found[1]
    return None


def applicable_rules(rules: Sequence[str], kept: Iterable[str], others: Iterable[str]) -> list[str]:
    """Leaves out rules that only ask of norms and routers to be the floats that they are anyway.

    Recipes of other programs name all tensors, these as f32; to the quantizer such a rule fits nothing.

    Args:
        rules: `regex=type`.
        kept: Names of tensors that are never quantized.
        others: Names of all other tensors: a rule that fits one of them stays.
    """
    names, quantized = list(kept), list(others)
    out = []
    for rule in rules:
        pattern, _, word = rule.rpartition("=")
        if word.upper() in _FLOATS:
            try:
                found = re.compile(pattern).search
                if any(map(found, names)) and not any(map(found, quantized)):
                    continue
            except re.error:
                pass
        out.append(rule)
    return out


def write_sensitivities(path: PathLike, table: Mapping[tuple[str, str], float]) -> None:
    """Writes a table as CSV: tensor, type, KL divergence that the type costs there."""
    text = io.StringIO(newline="")
    out = csv.writer(text)
    out.writerow(["tensor", "type", "value"])
    out.writerows([*key, f"{value:.9g}"] for key, value in table.items())
    with whole_file(path) as f:
        f.write(text.getvalue().encode())


def read_sensitivities(path: PathLike) -> dict[tuple[str, QuantType | None], float]:
    """A table of measured sensitivities: columns tensor, type and value, with or without a heading.

    Or, as others publish them, a heading `QTYPE,TENSOR,TENSOR,...` and a line of values for each type;
    cells may be empty there.

    A value is what the type costs there (a divergence, or a loss of log-likelihood); where the type is empty
    or `*` it is the tensor's coefficient, by which relative squared errors are multiplied.

    Raises:
        OSError: The file cannot be read.
        ikq.errors.FormatError: A line that is none, or says something else than an earlier one; says which.
    """
    table: dict[tuple[str, QuantType | None], float] = {}
    places: dict[tuple[str, QuantType | None], int] = {}
    for number, tensor, word, cell in _cells_of(path):
        where = f"{path}, line {number}: {tensor}"
        try:
            to = None if word in ("", "*") else as_type(word)
        except FormatError as e:
            raise FormatError(f"{where}: {e}") from None
        value = float(cell) if _is_number(cell) else -1.0
        if not 0 <= value <= _MOST_DIVERGENCE:
            point = f"; write {cell.replace(',', '.')}" if _is_number(cell.replace(",", ".")) else ""
            raise FormatError(
                f"{where}: {cell!r} is no divergence, a number from 0 to {_MOST_DIVERGENCE:g}"
                f"{point if ',' in cell else ''}"
            )
        if table.setdefault((tensor, to), value) != value:
            raise FormatError(
                f"{where} has {value:g} for {'all types' if to is None else to.name}, and "
                f"{table[tensor, to]:g} in line {places[tensor, to]}; remove one of them"
            )
        places.setdefault((tensor, to), number)
    if not table:
        raise FormatError(f"{path} has no line with tensor, type, value")
    return table


def _cells_of(path: PathLike) -> Iterator[tuple[int, str, str, str]]:
    """Number of the line, tensor, type and value of every value of a table.

    Raises:
        OSError, ikq.errors.FormatError: As `read_sensitivities`.
    """
    lines = read_lines(path)
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    counts = {sign: first.count(sign) for sign in (",", ";", "\t")}
    reader = csv.reader(lines, delimiter=max(counts, key=lambda sign: counts[sign]), strict=True)
    heading: list[str] | None = None
    is_first = True
    try:
        for row in reader:
            number = reader.line_num
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#"):
                continue
            was_first, is_first = is_first, False
            if was_first and cells[0].upper() == "QTYPE":
                heading = cells
            elif heading is not None:
                if len(cells) != len(heading):
                    raise FormatError(f"{path}, line {number}: {len(cells)} cells below {len(heading)} names")
                for name, cell in list(zip(heading, cells, strict=True))[1:]:
                    if cell:
                        yield number, name, cells[0], cell
            elif len(cells) < 3:
                raise FormatError(f"{path}, line {number}: expected tensor, type, value")
            elif not was_first or _is_number(cells[2]):
                yield number, cells[0], cells[1], cells[2]
    except csv.Error as e:
        raise FormatError(f"{path}, line {reader.line_num}: {e}") from None


def _is_number(text: str) -> bool:
    if "_" in text:  # Python's own, no table's
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True
