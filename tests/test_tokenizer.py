"""Tokenizers of real models, token for token: vocabularies, fixtures, and the tiny MoE."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from model_files import NAMES, reader

import ikq

VOCAB = SHARED / "models" / "vocab"
SEPARATOR = "\n__ggml_vocab_test__\n"
SDIST = "llama-cpp-python==0.3.36"
PUBLISHED = (
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
)


def check_vocabulary(path):
    """Ids of every text as published, and the text back from them. Returns the number of texts."""
    tokenizer = ikq.Tokenizer.from_reader(ikq.GGUFReader(path))
    texts = Path(f"{path}.inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = Path(f"{path}.out").read_text().splitlines()
    for text, line in zip(texts, lines, strict=True):
        ids = [int(word) for word in line.split()]
        assert tokenizer.encode(text) == ids, repr(text)
        if tokenizer.model != "bert":  # which forgets case and white space
            assert tokenizer.decode(ids, skip_special=False) == text
            assert tokenizer.decode_bytes(ids, skip_special=False) == text.encode()
    return len(texts)


@pytest.mark.parametrize("name", ["deepseek-coder", "llama-bpe", "llama-spm", "qwen2"])
def test_vocabularies(name):
    if not VOCAB.is_dir():
        pytest.skip("../shared/models/vocab is not there: tokenizers are not compared with published ids")
    assert check_vocabulary(VOCAB / f"ggml-vocab-{name}.gguf") == 46


@pytest.fixture(scope="session")
def published():
    """Folder of the vocabularies that a release of llama-cpp-python carries; kept between runs.

    IKQ_PUBLISHED_VOCABS names a folder that has them already.
    """
    given = os.environ.get("IKQ_PUBLISHED_VOCABS")
    if given:
        return Path(given)
    kept = Path(tempfile.gettempdir()) / f"ikq-vocabs-{SDIST.replace('==', '-')}-{os.getuid()}"
    if not kept.is_dir():
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            _download(Path(folder))
            _unpack(Path(folder)).rename(kept)
    return kept


def _download(folder):
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--retries=0", "--timeout=10", "--no-deps"]
    command = [*pip, "--no-binary=llama-cpp-python", f"--dest={folder}", SDIST]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except subprocess.SubprocessError as e:
        reason = (getattr(e, "stderr", None) or str(e)).strip().splitlines()[-1]
        pytest.skip(f"{SDIST} cannot be downloaded, its vocabularies are not tested: {reason}")


def _unpack(folder):
    unpacked = folder / "models"
    unpacked.mkdir()
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        for member in archive:
            name = Path(member.name).name
            if member.isfile() and name.startswith("ggml-vocab-"):
                (unpacked / name).write_bytes(archive.extractfile(member).read())
    return unpacked


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vocabularies(published, name):
    assert check_vocabulary(published / f"ggml-vocab-{name}.gguf") >= 46


@pytest.mark.parametrize("name", NAMES)
def test_fixtures(name):
    """Prompts of the fixtures: the first ids of each text, BOS included where the model wants one."""
    model = reader(name)
    folder = SHARED / "models" / "fixtures" / name.split("/")[0]
    info = json.loads((folder / "info.json").read_text())
    tokenizer = ikq.Tokenizer.from_reader(model)
    with np.load(folder / "oracle.npz") as oracle:
        for i, text in enumerate(info["prompt_texts"]):
            expected = oracle[f"prompt{i}_ids"].reshape(-1).tolist()
            assert tokenizer.encode(text, add_special=True)[: len(expected)] == expected


def test_tiny_moe(tiny_moe):
    hf_path = SHARED / "models" / "tiny-moe-hf" / "tokenizer.json"
    heldout = SHARED / "models" / "text" / "heldout.txt"
    if not hf_path.is_file():
        pytest.skip(
            "../shared/models is not there: the tiny MoE's tokenizer is not compared with its original"
        )
    from tokenizers import Tokenizer

    original = Tokenizer.from_file(str(hf_path))
    tokenizer = ikq.Tokenizer.from_reader(ikq.GGUFReader(tiny_moe))
    text = heldout.read_bytes().decode()
    expected = original.encode(text, add_special_tokens=False).ids
    ids = tokenizer.encode(text, parse_special=True)
    assert ids == expected
    assert tokenizer.decode(ids) == text
    for chunk in (text[i : i + 997] for i in range(0, 60_000, 997)):
        assert tokenizer.encode(chunk) == original.encode(chunk, add_special_tokens=False).ids
        # no BOS is ever added, though some engines take token 11 for it
        assert tokenizer.encode(chunk, add_special=True) == tokenizer.encode(chunk)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.end_ids) == (None, 4093, {4093, 4095})
    assert tokenizer.encode("", add_special=True) == []


def test_greedy_prompts(tiny_moe):
    stored = SHARED / "models" / "tiny-moe-hf-greedy.json"
    if not stored.is_file():
        pytest.skip("../shared/models is not there: prompts of the tiny MoE are not tokenized")
    tokenizer = ikq.Tokenizer.from_reader(ikq.GGUFReader(tiny_moe))
    for case in json.loads(stored.read_text()):
        assert tokenizer.encode(case["prompt"], add_special=True) == case["prompt_ids"]
        assert tokenizer.decode(case["continuation_ids"]) == case["continuation_text"]


def test_missing_name_of_the_pre_tokenizer_is_told():
    from small_vocabs import bpe

    with pytest.warns(UserWarning, match="does not name its pre-tokenizer"):
        assert ikq.Tokenizer(bpe(pre=None)).pre == "default"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ikq.Tokenizer(bpe(pre="default"))


def test_long_texts_are_encoded_as_short_ones_are(tiny_moe):
    """Long ones go another way, on which other threads go on."""
    with ikq.GGUFReader(tiny_moe) as reader:
        tokenizer = ikq.Tokenizer.from_reader(reader)
    line = "import os; x = '\N{GREEK SMALL LETTER LAMDA}'\n"
    assert tokenizer.encode(line * 1000) == tokenizer.encode(line) * 1000
