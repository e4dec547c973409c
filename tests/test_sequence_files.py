"""`Sequence.save` and `Model.load_sequence`: the same bits as before, and files that do not fit or are damaged."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from model_files import NAMES, RECURRENT, path, prompt
from sequence_checks import CACHES, fresh, load, long_text, run, same

import ikq
from ikq.__main__ import main

N_MUTANTS = 1500


@pytest.mark.parametrize("name", NAMES)
def test_going_on_from_a_file(name, tmp_path):
    ids = long_text(600)
    file = tmp_path / "saved"
    with load(name, n_ctx=1024) as model:
        straight = fresh(model, ids)
        for n in (0, 1, 31, 256, 300, 570):
            with model.new_sequence() as sequence:
                if n:
                    run(model, sequence, ids[:n], 200)
                sequence.save(file)
                # saving does not change it
                assert same(straight[n:], run(model, sequence, ids[n:]))
            with load(name, n_ctx=1024, n_threads=1, n_ubatch=50) as other:
                loaded = other.load_sequence(file)
                assert loaded.tokens == ids[:n].tolist()
                assert loaded.n_unshifted == n
                fork = loaded.fork()
                assert same(straight[n:], run(other, loaded, ids[n:]))
                back = fork.rewindable(n // 2)
                fork.truncate(back)
                assert same(straight[back:], run(other, fork, ids[back:]))
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("cache", CACHES)
def test_types_of_the_cache(cache, tmp_path):
    name = "qwen3/qwen3-bf16"
    ids = prompt(name, 1)
    file = tmp_path / "saved"
    for options in (
        {"cache_type_k": cache},
        {"cache_type_v": cache},
        {"cache_type_k": cache, "cache_type_v": cache},
    ):
        with load(name, n_ctx=128, **options) as model:
            straight = fresh(model, ids)
            sequence = model.new_sequence()
            run(model, sequence, ids[:50])
            sequence.save(file)
            assert same(straight[50:], run(model, model.load_sequence(file), ids[50:]))


def test_a_shifted_sequence(tmp_path):
    name = "llama/llama-bf16"
    ids = long_text(400)
    with load(name, n_ctx=512) as model, model.new_sequence() as sequence:
        run(model, sequence, ids)
        sequence.shift(10, 200)
        sequence.save(tmp_path / "saved")
        loaded = model.load_sequence(tmp_path / "saved")
        assert loaded.tokens == sequence.tokens
        assert same(run(model, sequence, ids[:50]), run(model, loaded, ids[:50], 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_type_k": "q8_0"}, "form q8_0, f16.*f16, f16|form f16, f16.*q8_0, f16"),
        ({"cache_type_v": "f32"}, "form"),
        ({"cache_type_k": "q4_0"}, "rotated"),
        ({"cache_type_k": "q4_0", "cache_rotation": False}, "form"),
        ({"n_ctx": 40}, "50 positions, the context 40"),
    ],
)
def test_another_form_of_the_cache_is_refused(options, message, tmp_path):
    name = "qwen3/qwen3-bf16"
    file = tmp_path / "saved"
    with load(name, n_ctx=128) as model, model.new_sequence() as sequence:
        run(model, sequence, long_text(50))
        sequence.save(file)
    with load(name, **{"n_ctx": 128, **options}) as model:
        with pytest.raises(ikq.FormatError, match=message) as e:
            model.load_sequence(file)
        assert str(file) in str(e.value)
        assert model.memory.cache == 0


def test_another_model_is_refused(tmp_path):
    file = tmp_path / "saved"
    with load("qwen3/qwen3-bf16", n_ctx=128) as model, model.new_sequence() as sequence:
        run(model, sequence, long_text(50))
        sequence.save(file)
    for name in ("llama/llama-bf16", "qwen3next/qwen3next-bf16"):
        with load(name, n_ctx=128) as model, pytest.raises(ikq.FormatError, match="it is of the model"):
            model.load_sequence(file)


def test_files_that_are_none(tmp_path):
    with load("qwen3/qwen3-bf16", n_ctx=128) as model:
        with pytest.raises(FileNotFoundError) as e:
            model.load_sequence(tmp_path / "none")
        assert e.value.filename == str(tmp_path / "none")
        with pytest.raises(IsADirectoryError):
            model.load_sequence(tmp_path)
        for data in (b"", b"ikq-seq1", b"GGUF" * 10, b"ikq-seq1" + bytes(100)):
            (tmp_path / "file").write_bytes(data)
            with pytest.raises(ikq.FormatError, match="holds no sequence that can be loaded"):
                model.load_sequence(tmp_path / "file")
        with model.new_sequence() as sequence:
            run(model, sequence, [1, 2, 3])
            with pytest.raises(FileNotFoundError):
                sequence.save(tmp_path / "none" / "file")
            with pytest.raises(OSError):  # noqa: PT011  # whatever the system calls it
                sequence.save(tmp_path)
            assert sequence.n_past == 3


def test_every_byte_counts(tmp_path):
    """Without a new checksum any change is noticed; every place of the header, and some of the rest."""
    name = "qwen3/qwen3-bf16"
    file = tmp_path / "saved"
    with load(name, n_ctx=128) as model, model.new_sequence() as sequence:
        run(model, sequence, long_text(40))
        sequence.save(file)
        data = bytearray(file.read_bytes())
        n_header = 12 + struct.unpack_from("<I", data, 8)[0]
        places = [*range(n_header + 160), *np.random.default_rng(0).integers(0, len(data), 200)]
        for at in places:
            data[at] ^= 1
            file.write_bytes(data)
            with pytest.raises(ikq.FormatError, match=str(file)):
                model.load_sequence(file)
            data[at] ^= 1
        for n in (len(data) - 1, len(data) - 8, n_header, 13, 12, 11, 8, 7):
            file.write_bytes(data[:n])
            with pytest.raises(ikq.FormatError, match=str(file)):
                model.load_sequence(file)


def test_a_token_that_is_none(tmp_path):
    name = "qwen3/qwen3-bf16"
    file = tmp_path / "saved"
    with load(name, n_ctx=128) as model, model.new_sequence() as sequence:
        run(model, sequence, long_text(40))
        sequence.save(file)
        data = bytearray(file.read_bytes()[:-8])
        n_header = 12 + struct.unpack_from("<I", data, 8)[0]
        struct.pack_into("<I", data, n_header + 4, 512)
        file.write_bytes(data + struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(data))))
        with pytest.raises(ikq.FormatError, match="token 512 is not in the vocabulary"):
            model.load_sequence(file)


MUTATED = ("qwen3/qwen3-bf16", "deepseek3/deepseek3-bf16", "gemma3/gemma3-bf16", *RECURRENT)


@pytest.mark.parametrize("name", MUTATED)
def test_mutants(name, tmp_path):
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    copy = folder / f"ikq-{tmp_path.parent.name}-{tmp_path.name}.seq"
    command = [
        Path(__file__).with_name("sequence_mutants.py"),
        path(name),
        copy,
        1,
        N_MUTANTS // len(MUTATED),
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        copy.unlink(missing_ok=True)
    # a process of its own: what does not survive says at which mutant
    last = "\n".join(done.stderr.splitlines()[-30:])
    assert done.returncode == 0, f"exit code {done.returncode}: {last}"
    found = json.loads(done.stdout)
    assert sum(found.values()) == N_MUTANTS // len(MUTATED)
    assert found["logits"] > 0
    assert found["FormatError"] > 0


# run --prompt-cache


def test_prompt_cache(tiny_moe, tmp_path, capsys):
    file = tmp_path / "prompt"
    base = ["run", "-m", str(tiny_moe), "-n", "10", "--temp", "0", "--no-perf", "-c", "128"]
    cached = [*base, "--prompt-cache", str(file)]
    text = "The :mod:`os` module provides"

    def out(*arguments):
        assert main([str(a) for a in arguments]) == 0
        return capsys.readouterr()

    plain = out(*base, "-p", text).out
    with ikq.Model.load(tiny_moe, n_ctx=128) as model:
        n = len(model.tokenize(text))
    # nothing is there yet, and nothing is written
    assert out(*cached, "--prompt-cache-ro", "-p", text) == (
        plain,
        f"note: {file} held 0 of the prompt's {n} tokens\n",
    )
    assert not file.exists()
    assert out(*cached, "-p", text).out == plain
    size = file.stat().st_size
    assert out(*cached, "-p", text) == (plain, f"note: {file} held {n - 1} of the prompt's {n} tokens\n")
    longer = text + " a file\n"
    wanted = out(*base, "-p", longer).out
    assert out(*cached, "--prompt-cache-ro", "-p", longer) == (
        wanted,
        f"note: {file} held {n} of the prompt's {n + 3} tokens\n",
    )
    assert file.stat().st_size == size
    # with all, the next run goes on from what was generated
    assert out(*cached, "--prompt-cache-all", "-p", text).out == plain
    with ikq.Model.load(tiny_moe, n_ctx=128) as model:
        assert model.load_sequence(file).n_past == n + 9
    assert main([*cached, "-p", text, "-ctk", "q8_0"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert str(file) in err
    assert err.count("\n") == 1


def test_prompt_cache_of_a_chat(tiny_moe, tmp_path, capsys):
    file = tmp_path / "prompt"
    base = ["run", "-m", str(tiny_moe), "-cnv", "-st", "-n", "6", "--temp", "0", "--no-perf", "-p", "Hi"]
    assert main(base) == 0
    plain = capsys.readouterr().out
    for held in (False, True):
        assert main([*base, "--prompt-cache", str(file), "--prompt-cache-all"]) == 0
        out, err = capsys.readouterr()
        assert out == plain
        assert ("held 0 of" not in err) == held


def test_prompt_cache_after_a_shift(tiny_moe, tmp_path, capsys):
    """What a shift has moved does not come to a file, and less than the prompt does not replace that."""
    file = tmp_path / "prompt"
    options = [
        "-n",
        "60",
        "-c",
        "32",
        "--ignore-eos",
        "--context-shift",
        "--keep",
        "2",
        "--temp",
        "0",
        "--no-perf",
    ]
    arguments = ["run", "-m", str(tiny_moe), "-p", "import os, sys", *options]
    assert main([*arguments, "--prompt-cache", str(file), "--prompt-cache-all"]) == 0
    with ikq.Model.load(tiny_moe, n_ctx=32) as model:
        ids = model.tokenize("import os, sys")
        assert model.load_sequence(file).tokens == ids
        assert len(ids) > 2
    capsys.readouterr()


def test_prompt_cache_files_that_do_not_work(tiny_moe, tmp_path, capsys, monkeypatch):
    """What cannot work is said before anything is computed; a disk that fills up later costs no text."""
    base = ["run", "-m", str(tiny_moe), "-n", "5", "--temp", "0", "--no-perf", "-p", "import os"]
    assert main(base) == 0
    plain = capsys.readouterr().out
    missing = tmp_path / "missing" / "prompt"
    assert main([*base, "--prompt-cache", str(missing)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: --prompt-cache {missing}: there is no such folder; make it first\n")
    text = tmp_path / "text"
    text.write_text("no sequence")
    assert main([*base, "--prompt-cache", str(text)]) == 1
    assert capsys.readouterr().err.endswith("remove it, or name another file\n")
    assert text.read_text() == "no sequence"

    def full(self, path):
        raise OSError(28, "no space left on device", path)

    monkeypatch.setattr(ikq.Sequence, "save", full)
    file = tmp_path / "prompt"
    assert main([*base, "--prompt-cache", str(file), "--prompt-cache-all"]) == 0
    out, err = capsys.readouterr()
    assert out == plain
    assert f"note: {file} was not written: no space left on device" in err
    assert not file.exists()
