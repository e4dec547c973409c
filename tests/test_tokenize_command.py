"""`ikq tokenize`: output, sources of the text, and what is wrong with them."""

import io
import json

import pytest

from ikq.__main__ import main

LINES = "   970 -> 'import'\n   313 -> ' m'\n   483 -> 'ath'\n"


def command(capsys, *arguments):
    code = main(["tokenize", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_forms(capsys, tiny_moe):
    text = ("-m", tiny_moe, "-p", "import math")
    assert command(capsys, *text) == (0, LINES, "")
    assert command(capsys, *text, "--ids") == (0, "[970, 313, 483]\n", "")
    assert command(capsys, *text, "--show-count") == (0, f"{LINES}Total number of tokens: 3\n", "")
    code, out, _ = command(capsys, *text, "--json")
    assert code == 0
    assert json.loads(out) == {
        "n_tokens": 3,
        "tokens": [
            {"id": 970, "text": "import", "hex": b"import".hex()},
            {"id": 313, "text": " m", "hex": b" m".hex()},
            {"id": 483, "text": "ath", "hex": b"ath".hex()},
        ],
    }


def test_special_tokens_and_bytes(capsys, tiny_moe):
    text = ("-m", tiny_moe, "-p", "<|im_end|>")
    assert command(capsys, *text) == (0, "  4095 -> '<|im_end|>'\n", "")
    assert "4095" not in command(capsys, *text, "--no-parse-special", "--ids")[1]
    # parts of a character are shown as bytes
    assert command(capsys, "-m", tiny_moe, "-p", "ü")[1] == "   127 -> b'\\xc3'\n   120 -> b'\\xbc'\n"
    # backslashes are backslashes
    assert "\\\\" in command(capsys, "-m", tiny_moe, "-p", r"\n")[1]
    assert command(capsys, "-m", tiny_moe, "-p", "", "--ids")[1] == "[]\n"


def test_sources(capsys, tiny_moe, tmp_path, monkeypatch):
    file = tmp_path / "text"
    file.write_bytes(b"import math")
    assert command(capsys, "-m", tiny_moe, "-f", file)[1] == LINES
    for option in ([], ["--stdin"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"import math")))
        assert command(capsys, "-m", tiny_moe, *option)[1] == LINES


def test_errors(capsys, tiny_moe, tmp_path, monkeypatch):
    file = tmp_path / "text"
    file.write_bytes(b"a\xff")
    code, out, err = command(capsys, "-m", tiny_moe, "-f", file)
    assert (code, out, err) == (1, "", f"error: {file} is not UTF-8 at byte 1\n")
    code, out, err = command(capsys, "-m", tiny_moe, "-f", tmp_path / "missing")
    assert (code, out) == (1, "")
    assert "no such file" in err
    code, _, err = command(capsys, "-m", file, "-p", "a")
    assert code == 1
    assert "ends at byte 2" in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert command(capsys, "-m", tiny_moe)[2] == "error: standard input is not UTF-8 at byte 0\n"
    with pytest.raises(SystemExit):
        main(["tokenize", "-p", "no model"])


def test_bos(capsys, tmp_path):
    from small_vocabs import bpe

    import ikq

    file = tmp_path / "vocab.gguf"
    with ikq.GGUFWriter(file, {"general.architecture": "llama", **bpe(add_bos_token=True)}):
        pass
    bos = ikq.Tokenizer(bpe()).bos
    assert command(capsys, "-m", file, "-p", "12", "--ids")[1].startswith(f"[{bos}, ")
    assert f"{bos}" not in command(capsys, "-m", file, "-p", "12", "--ids", "--no-bos")[1]
    code, _, err = command(capsys, "-m", tmp_path / "vocab.gguf", "-f", tmp_path)
    assert code == 1
    assert "directory" in err
