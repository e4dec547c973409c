#!/usr/bin/env python3
"""Write the generated Rust sources of `rust/ikq-formats/src/codebook` from `tables.json`.

    python tools/make_codebooks.py path/to/tables.json [output folder]

The same input gives the same bytes. Grids are stored as one small integer per entry: field `j` of the
integer is the number of the level of element `j`; `codebook/mod.rs` expands them at compile time.
The folder defaults to `rust/ikq-formats/src/codebook` beside this script's own folder.
"""

from __future__ import annotations

import json
import pathlib
import sys
import zlib
from typing import Any

HEAD = """//! {what}
//!
//! Generated from the project's `tables.json` by `tools/make_codebooks.py`, which also writes the
//! checksums in `checksums.rs`; do not edit. The numbers are those of ggml (llama.cpp and
//! ik_llama.cpp), without which no file of these types can be read.
"""

# Rust name, table, bits of a packed element, levels
IQ1 = [("IQ1S", "iq1s_grid", 2, [-1, 0, 1])]
IQ2 = [(f"IQ2{s.upper()}", f"iq2{s}_grid", 2, [8, 25, 43]) for s in ("xxs", "xs", "s")]
IQ3 = [
    ("IQ3XXS", "iq3xxs_grid", 3, [4, 12, 20, 28, 36, 44, 52, 62]),
    ("IQ3S", "iq3s_grid", 3, [1, 3, 5, 7, 9, 11, 13, 15]),
]

# Rust name, table, element type, one line of documentation
VALUES = [
    ("IQ4NL_VALUES", "iq4nl_values", "i8", "IQ4_NL and IQ4_XS codes; block scales of IQ1_KT and IQ2_KT."),
    ("IQ2NL_VALUES", "iq2nl_values", "i8", "IQ2_K and IQ2_KS: row 0 normal, row 1 shifted (+5)."),
    ("IQ3NL_VALUES", "iq3nl_values", "i8", "IQ3_K and IQ3_KS: row 0 normal, row 1 shifted (+4)."),
    (
        "IQ4K_VALUES",
        "iq4k_values",
        "i8",
        "IQ4_K, IQ4_KS, IQ4_KSS: row 0 is `IQ4NL_VALUES`, row 1 shifted (+4).",
    ),
    ("IQ5NL_VALUES", "iq5nl_values", "i8", "IQ5_K and IQ5_KS: row 0 normal, row 1 shifted (+2)."),
    ("IQ6NL_VALUES", "iq6nl_values", "i8", "IQ6_K: row 0 normal, row 1 shifted (+1)."),
    ("IQ2KL_VALUES", "iq2kl_values", "i8", "IQ2_KL: the two values of a pair of neighbouring elements."),
    ("FP4_E2M1_X2", "fp4_e2m1_x2", "i8", "MXFP4 and NVFP4: twice the E2M1 value of a code."),
    (
        "IQ2KL_INDEX",
        "iq2kl_index",
        "i8",
        "Encoder of IQ2_KL: `8 * l1 + l2` (two columns of `IQ3NL_VALUES`) -> pair code, or\n"
        "/// `-(row + 1)` into `IQ2KL_NEIGHBOURS` where no pair has these values.",
    ),
    (
        "IQ2KL_NEIGHBOURS",
        "iq2kl_neighbours",
        "u8",
        "Encoder of IQ2_KL: candidate pair codes near an off-grid pair.",
    ),
]


def lines(items: list[str], width: int = 104) -> str:
    """The items, comma separated, in indented lines of at most `width` characters."""
    out, line = [], ""
    for item in items:
        if line and len(line) + len(item) + 2 > width:
            out.append(line.rstrip())
            line = ""
        line += item + ", "
    return "".join(f"    {text}\n" for text in [*out, line.rstrip()])


def pack(row: list[int], bits: int, levels: list[int]) -> int:
    return sum(levels.index(v) << (bits * j) for j, v in enumerate(row))


def grid_file(what: str, grids: list[tuple[str, str, int, list[int]]], tables: dict[str, Any]) -> str:
    text = HEAD.format(what=what)
    for name, table, bits, levels in grids:
        data = tables[table]["data"]
        n_elements = len(data[0])
        level_type = "i8" if min(levels) < 0 else "u8"
        packed = [f"0x{pack(row, bits, levels):04x}" for row in data]
        text += f"\n/// What the packed elements of [`{name}_PACKED`] stand for.\n"
        text += f"pub const {name}_LEVELS: [{level_type}; {len(levels)}] = {levels};\n"
        text += f"\n/// {len(data)} entries of {n_elements} elements, {bits} bits each.\n"
        text += (
            f"#[rustfmt::skip]\npub(super) const {name}_PACKED: [u16; {len(data)}] = [\n{lines(packed)}];\n"
        )
    return text


def values_file(tables: dict[str, Any]) -> str:
    text = HEAD.format(what="Non-linear value tables, and the encoder's tables of IQ2_KL.")
    for name, table, dtype, doc in VALUES:
        data = tables[table]["data"]
        if isinstance(data[0], list):
            rust_type = f"[[{dtype}; {len(data[0])}]; {len(data)}]"
            if len(data[0]) > 8:
                body = "".join(
                    f"    [\n{lines([str(v) for v in row], 100).replace('    ', '        ')}    ],\n"
                    for row in data
                )
            else:
                body = lines([str(row) for row in data])
        else:
            rust_type = f"[{dtype}; {len(data)}]"
            body = lines([str(v) for v in data])
        text += f"\n/// {doc}\n#[rustfmt::skip]\npub const {name}: {rust_type} = [\n{body}];\n"
    return text


def checksums_file(tables: dict[str, Any]) -> str:
    text = HEAD.format(what="CRC-32 (zlib) of every table as bytes in row-major order, for the tests.")
    rows = []
    names = [(f"{name}_GRID", table) for name, table, _, _ in IQ1 + IQ2 + IQ3]
    names += [(name, table) for name, table, _, _ in VALUES]
    names += [("KSIGNS", "ksigns"), ("SIGN_SCRAMBLE", "sign_scramble"), ("IQ1BN_TRITS", "iq1bn_values")]
    for name, table in names:
        shift = 1 if table == "iq1bn_values" else 0  # the crate keeps trits 0, 1, 2
        flat = [v for row in tables[table]["data"] for v in (row if isinstance(row, list) else [row])]
        crc = zlib.crc32(bytes((v + shift) & 255 for v in flat))
        rows.append(f'    ("{name}", 0x{crc:08x}),\n')
    return f"{text}\n#[rustfmt::skip]\npub const CHECKSUMS: &[(&str, u32)] = &[\n{''.join(rows)}];\n"


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    tables = json.loads(pathlib.Path(sys.argv[1]).read_text())
    default = pathlib.Path(__file__).resolve().parent.parent / "rust/ikq-formats/src/codebook"
    out = pathlib.Path(sys.argv[2]) if len(sys.argv) == 3 else default
    files = {
        "iq1_grid.rs": grid_file("The ternary codebook shared by IQ1_S and IQ1_M, packed.", IQ1, tables),
        "iq2_grids.rs": grid_file("The codebooks of IQ2_XXS, IQ2_XS and IQ2_S, packed.", IQ2, tables),
        "iq3_grids.rs": grid_file("The codebooks of IQ3_XXS and IQ3_S, packed.", IQ3, tables),
        "values.rs": values_file(tables),
        "checksums.rs": checksums_file(tables),
    }
    for name, text in files.items():
        (out / name).write_text(text)


if __name__ == "__main__":
    main()
