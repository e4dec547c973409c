"""`--lora` and `--lora-scaled` of the verbs that run models."""

import argparse
import json

import pytest
from adapter_files import matrices, pairs_for, write_adapter

import ikq
from ikq.__main__ import main
from ikq.cli.lora_options import add_lora
from ikq.cli.serve import NAME as SERVE

PROMPT = "def main(arguments):\n    "
TEXT = "import os\nimport sys\n" * 30


@pytest.fixture(scope="module")
def adapter(tiny_moe, tmp_path_factory):
    with ikq.GGUFReader(tiny_moe) as reader:
        pairs = pairs_for(reader, matrices(reader), size=0.6)
        file = tmp_path_factory.mktemp("lora") / "a.gguf"
        return write_adapter(file, reader.metadata["general.architecture"], pairs)


def parsed(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_lora(parser)
    return [(str(a.path), a.scale) for a in parser.parse_args(words).lora]


def test_spellings(tmp_path):
    assert parsed() == []
    assert parsed("--lora", "a.gguf", "--lora", "b.gguf,c.gguf") == [
        ("a.gguf", 1),
        ("b.gguf", 1),
        ("c.gguf", 1),
    ]
    # one after the other, as they are numbered
    assert parsed(
        "--lora-scaled", "a.gguf:0.5,b:c.gguf:-2", "--lora", "d.gguf", "--lora-scaled", "e.gguf", "3"
    ) == [
        ("a.gguf", 0.5),
        ("b:c.gguf", -2),
        ("d.gguf", 1),
        ("e.gguf", 3),
    ]
    comma = tmp_path / "a,b.gguf"
    comma.touch()
    assert parsed("--lora", str(comma)) == [(str(comma), 1)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lora-scaled", "a.gguf"], "expected FILE:SCALE"),
        (["--lora-scaled", "a.gguf:much"], "'much': expected a number"),
        (["--lora-scaled", "a.gguf", "nan"], "a scale of nan"),
        (["--lora-scaled", "a.gguf", "1", "2"], "expected FILE:SCALE,... or FILE SCALE"),
        (["--lora-scaled", ":1"], "expected FILE:SCALE"),
        (["--lora-scaled", "a.gguf:1,"], "'': expected FILE:SCALE"),
        (["--lora-scaled", "a.gguf:1e39"], r"a.gguf: a scale of 1e\+39"),
        (["--lora", ""], "without the name of its file"),
        (["--lora", "a.gguf,"], "without the name of its file"),
    ],
)
def test_what_is_no_adapter(words, says):
    with pytest.raises(argparse.ArgumentError, match=says):
        parsed(*words)


def test_texts(tiny_moe, adapter, tmp_path, capsys):
    command = [
        "run",
        "-m",
        str(tiny_moe),
        "-p",
        PROMPT,
        "-n",
        "12",
        "--temp",
        "0",
        "-c",
        "64",
        "--no-perf",
    ]

    def text(*words):
        assert main([*command, *map(str, words)]) == 0
        return capsys.readouterr().out

    def expected(*lora):
        with ikq.Model.load(tiny_moe, n_ctx=64, lora=lora) as model:
            return PROMPT + model.generate(PROMPT, max_tokens=12, temperature=0).text()

    whole, half = expected(adapter), expected(ikq.LoraAdapter(adapter, 0.5))
    assert len({whole, half, expected()}) == 3
    assert text("--lora", adapter).strip("\n") == whole.strip("\n")
    assert text("--lora-scaled", f"{adapter}:0.5").strip("\n") == half.strip("\n")
    assert text("--lora-scaled", adapter, "0").strip("\n") == expected().strip("\n")
    # what was read with other adapters is not gone on with
    cache = str(tmp_path / "p.seq")
    text("--prompt-cache", cache, "--lora", adapter)
    assert main([*command, "--prompt-cache", cache]) == 1
    assert "LoRA adapters" in capsys.readouterr().err
    assert main([*command, "--lora", str(tmp_path / "none.gguf")]) == 1
    assert "none.gguf" in capsys.readouterr().err
    assert main([*command, "--lora", str(tiny_moe)]) == 1
    assert "`adapter` is needed" in capsys.readouterr().err


def test_quality_and_statistics(tiny_moe, adapter, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    same = ["-m", str(tiny_moe), "-f", str(file), "-c", "64"]

    def measured(verb, *words):
        assert main([verb, *same, "--json", *map(str, words)]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    plain, changed = measured("perplexity"), measured("perplexity", "--lora", adapter)
    assert plain["value"] != changed["value"]
    assert plain["value"] == measured("perplexity", "--lora-scaled", adapter, 0)["value"]
    # the base that a model with an adapter is compared with has none
    found = measured("kld", "--base-model", tiny_moe, "--lora", adapter)
    assert found["kld"]["value"] > 0.01
    assert measured("kld", "--base-model", tiny_moe)["kld"]["value"] == pytest.approx(0, abs=1e-6)
    for words, code in ((["--lora", adapter], 0), (["--lora", adapter, "--cluster", "x:1"], 2)):
        out = tmp_path / "i.gguf"
        assert main(["imatrix", *same, "-o", str(out), *map(str, words)]) == code
    assert "--lora is not for --cluster" in capsys.readouterr().err


def test_speeds(tiny_moe, adapter, capsys):
    command = ["bench", "-m", str(tiny_moe), "-p", "8", "-n", "0", "-r", "1", "-o", "json"]
    assert main([*command, "--lora", str(adapter)]) == 0
    assert json.loads(capsys.readouterr().out)


def test_a_server_without_effect(tiny_moe, adapter, monkeypatch):
    seen = []

    class Server:
        def __init__(self, *args, load_options, **kwargs):
            seen.append([a.scale for a in load_options["lora"]])

        def run(self):
            pass

    monkeypatch.setattr(ikq, "Server", Server)
    words = [SERVE, "-m", str(tiny_moe), "--lora", str(adapter), "--lora-scaled", str(adapter), "2"]
    assert main(words) == 0
    assert main([*words, "--lora-init-without-apply"]) == 0
    assert seen == [[1, 2], [0, 0]]
