"""Texts from other systems: byte order marks, line ends, other encodings."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_quantize_options import MODEL, ikq_command

import ikq
from ikq.errors import FormatError
from ikq.files.text_files import read_lines, read_literally

RULES = "# mine\nattn_v=q8_0\nattn_k=q6_0"
FORMS = {
    "as it is": RULES.encode(),
    "byte order mark": b"\xef\xbb\xbf" + RULES.encode(),
    "Windows": RULES.replace("\n", "\r\n").encode() + b"\r\n",
    "UTF-16": RULES.encode("utf-16"),
    "UTF-16, other order": b"\xfe\xff" + RULES.encode("utf-16-be"),
}


@pytest.mark.parametrize("form", FORMS)
def test_rules_are_those_that_a_reader_sees(tmp_path: Path, form: str) -> None:
    file = tmp_path / "rules.txt"
    file.write_bytes(FORMS[form])
    assert read_lines(file) == RULES.split("\n")
    plan = ikq.plan_quantization(MODEL, None, "Q4_0", tensor_type_file=file)
    types = {t.name: t.to_type.name for t in plan.tensors}
    assert (types["blk.0.attn_v.weight"], types["blk.0.attn_k.weight"]) == ("Q8_0", "Q6_0")
    plan = ikq.plan_quantization(MODEL, None, "Q4_0", recipe=file)
    assert {t.name: t.to_type.name for t in plan.tensors} == types


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"attn_v=q8_0\n# caf\xe9\n", "0xe9 is not UTF-8"), (b"attn_v=q8_0\nattn\0_k=q8_0\n", "NUL")],
)
def test_what_is_no_text_is_named_by_its_line(tmp_path: Path, data: bytes, why: str) -> None:
    file = tmp_path / "rules.txt"
    file.write_bytes(data)
    for option in ("tensor_type_file", "recipe"):
        with pytest.raises((FormatError, ikq.RefusedError), match=rf"rules\.txt, line 2.*{why}"):
            ikq.plan_quantization(MODEL, None, "Q4_0", **{option: file})  # type: ignore[misc]


def test_literal_texts_keep_a_mark_and_say_so(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfimport os\r\n")
    notes: list[str] = []
    assert read_literally(file, notes.append) == "\ufeffimport os\r\n"
    assert len(notes) == 1
    assert "prompt.txt begins with a byte order mark" in notes[0]
    for verb in ("tokenize", "run", "perplexity"):
        options = {"run": ["-no-cnv", "-n", "1"], "perplexity": ["-c", "8"], "tokenize": []}[verb]
        done = ikq_command(verb, "-m", MODEL, "-f", file, *options)
        assert "begins with a byte order mark" in done.stderr, (verb, done.stderr)
    file.write_text("import os", encoding="utf-16")
    done = ikq_command("tokenize", "-m", MODEL, "-f", file)
    assert done.returncode == 1
    assert "is UTF-16" in done.stderr
    file.write_bytes(b"caf\xe9")
    done = ikq_command("run", "-m", MODEL, "-f", file, "-no-cnv")
    assert done.returncode == 1
    assert "not UTF-8 at byte 3" in done.stderr


def test_lines_end_where_files_end_them(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("a\x0bb\u2028c\n\nd", encoding="utf-8", newline="")
    assert read_lines(file) == ["a\x0bb\u2028c", "", "d"]
    file.write_bytes(b"")
    assert read_lines(file) == []
