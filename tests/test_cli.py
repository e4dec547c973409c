"""The command line's frame, `types` and `gguf-dump`: output, exit codes, one sentence per error."""

import importlib
import json
import os
import shlex
import subprocess
import sys

import pytest

import ikq
from ikq.__main__ import main
from ikq.cli import VERBS, VERBS_BY_TASK, build_parser


def ikq_command(*arguments, **kwargs):
    command = [sys.executable, "-m", "ikq", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **kwargs)


def test_help_everywhere(capsys):
    for arguments in (["--help"], *([verb.replace("_", "-"), "--help"] for verb in VERBS)):
        with pytest.raises(SystemExit) as e:
            main(arguments)
        assert e.value.code == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: ikq")
    done = ikq_command("--help")
    assert done.returncode == 0
    assert "quantize" in done.stdout
    assert "types" in done.stdout


def test_verbs_are_listed_by_task(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for task, verbs in VERBS_BY_TASK.items():
        part = out[out.index(f"\n{task}:\n") :].split("\n\n")[0]
        found = [
            line.split()[0] for line in part.splitlines()[2:] if line.startswith("  ") and line[2] != " "
        ]
        assert found == [verb.replace("_", "-") for verb in verbs]


@pytest.mark.parametrize("verb", VERBS)
def test_help_begins_with_examples_that_parse(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb.replace("_", "-"), "--help"])
    behind_usage = capsys.readouterr().out.split("\n\n", 1)[1]
    examples = importlib.import_module(f"ikq.cli.{verb}").EXAMPLES
    assert behind_usage.startswith("examples:\n" + "".join(f"  {line}\n" for line in examples))
    for line in examples:
        program, *words = shlex.split(line.split(">")[0])
        assert program == "ikq"
        build_parser().parse_args(words)


def test_version(capsys):
    with pytest.raises(SystemExit) as e:
        main(["--version"])
    assert e.value.code == 0
    assert capsys.readouterr().out == f"ikq {ikq.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["types", "--nonsense"], ["gguf-dump"]])
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as e:
        main(arguments)
    assert e.value.code == 2
    assert "usage: ikq" in capsys.readouterr().err


def test_types(capsys):
    assert main(["types"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["type", "id", "bpw", "block", "bytes"]
    assert [line.split()[0] for line in lines] == [t.name for t in ikq.QuantType]
    assert main(["types", "iq4_ks", "Q4_0_4x4"]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:6] == ["IQ4_KS", "144", "4.25", "256", "136", "4"]
    assert second.split()[0] == "Q4_0_4_4"


def test_types_as_json(capsys):
    assert main(["types", "--json"]) == 0
    table = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(table) == len(ikq.QuantType)
    row = table["IQ2_KT"]
    assert (row["id"], row["needs_imatrix"], row["fallback"]) == (153, True, "IQ4_NL")
    assert row["known_to"] == ["ik_llama.cpp"]


def test_an_unknown_type_is_answered_with_suggestions(capsys):
    assert main(["types", "iq4ks"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: unknown type `iq4ks`; did you mean IQ4_KS, IQ1_S, IQ2_KS? (`ikq types` lists all)\n"


def test_gguf_dump(tiny_moe, capsys):
    assert main(["gguf-dump", str(tiny_moe)]) == 0
    out = capsys.readouterr().out
    assert "general.architecture: string = 'qwen3moe'" in out
    assert "tokenizer.ggml.tokens: array[string] = [" in out
    assert "4096 in all]" in out
    assert "blk.0.ffn_up_exps.weight" in out
    assert main(["gguf-dump", "--no-metadata", str(tiny_moe)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 51 + 1
    line = next(line for line in lines if line.startswith("output.weight "))
    assert " ".join(line.split()) == "output.weight bf16 256 x 4096 2097152 bytes 16.0000 bits/weight"
    assert lines[-1].startswith("51 tensors")


def test_gguf_dump_as_json(tiny_moe, capsys):
    assert main(["gguf-dump", "--json", str(tiny_moe)]) == 0
    dump = json.loads(capsys.readouterr().out)
    assert len(dump["metadata"]["tokenizer.ggml.tokens"]["value"]) == 4096
    assert dump["metadata"]["general.architecture"] == {"type": "string", "value": "qwen3moe"}
    tensor = next(t for t in dump["tensors"] if t["name"] == "output.weight")
    assert tensor == {"name": "output.weight", "type": "bf16", "shape": [4096, 256], "nbytes": 2097152}


def test_expected_errors_are_one_sentence(tmp_path, capsys):
    empty, text = tmp_path / "empty.gguf", tmp_path / "text.gguf"
    empty.touch()
    text.write_text("nothing of the kind " * 9)
    for path, message in [
        (tmp_path / "missing.gguf", "missing.gguf: no such file or directory"),
        (tmp_path, "is a directory, not a GGUF file"),
        (empty, "is empty"),
        (text, "text.gguf: "),
    ]:
        assert main(["gguf-dump", str(path)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1
        assert "Traceback" not in err


def test_debug_shows_the_traceback(tmp_path):
    done = ikq_command("gguf-dump", tmp_path / "missing.gguf", env={**os.environ, "IKQ_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "error: " in done.stderr


def test_a_forced_instruction_set_that_is_not_there():
    done = ikq_command("types", env={**os.environ, "IKQ_ISA": "neon"})
    assert done.returncode == 0  # nothing is computed
    code = "import ikq, numpy; ikq.dequantize(bytes(34), 'Q8_0')"
    env = {**os.environ, "IKQ_ISA": "neon"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert "UnsupportedError: IKQ_ISA=neon is none of scalar, avx2, avx512" in done.stderr


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m ikq types --json | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
