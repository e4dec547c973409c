"""Tables of sensitivities: what a type costs at a tensor, as measured here or by others."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping

from ikq.arrays.quant_types import QuantType, as_type
from ikq.errors import FormatError
from ikq.files.text_files import read_lines
from ikq.files.whole_file import whole_file
from ikq.quantizing.options import PathLike

__all__ = ["read_sensitivities", "write_sensitivities"]

_MOST_DIVERGENCE = 1e6


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
