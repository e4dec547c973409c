"""Tokenizers of checkpoints as keys of GGUF files, and that they encode as the checkpoint's own does."""

import json

import pytest
from checkpoint_folders import LLAMA3, QWEN2, bpe_json, write_sentencepiece, write_tokenizer
from conftest import SHARED
from model_files import reader
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

import ikq
from ikq.checkpoint.config import Config
from ikq.checkpoint.pre_tokenizer import PROBE, recognise, splits
from ikq.checkpoint.sentencepiece import read_sentencepiece
from ikq.checkpoint.tokenizer import _load, tokenizer_keys
from ikq.errors import FormatError, UnsupportedError
from ikq.files.gguf import Metadata
from ikq.tokenizer.pre_tokenizers import PRE_TOKENIZERS

TEXTS = (
    "Hello world, don't  panic!\n\n  def f(x):\n\treturn x[1234] ",
    "\u00e4\u00f6\u00fc \u4f60\u597d 12345",
    PROBE,
)
BPE, SPM = "qwen3/qwen3-bf16", "llama/llama-bf16"
ALIKE = {"qwen2", "bailingmoe"}  # possessive quantifiers change nothing there


def keys_of(folder, architecture="llama", **config):
    given = Config(folder / "config.json", {"vocab_size": 512, **config})
    return Metadata(tokenizer_keys(folder, given, architecture))


def write(folder, name, **options):
    """The tokenizer of a fixture, with other options in tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder, reader(name).metadata, name)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return folder


# Pre-tokenizers


def test_the_probe_tells_all_rules_apart():
    by_cuts = {}
    for name, rule in PRE_TOKENIZERS.items():
        if not rule.raw:
            by_cuts.setdefault(splits(rule), {})[rule.patterns] = name
    same = [set(rules.values()) for rules in by_cuts.values() if len(rules) > 1]
    assert len(same) <= 1
    assert all(
        {PRE_TOKENIZERS[n].patterns for n in names} <= {PRE_TOKENIZERS[n].patterns for n in ALIKE}
        for names in same
    )


@pytest.mark.parametrize("name", sorted(n for n, rule in PRE_TOKENIZERS.items() if not rule.raw))
def test_every_rule_is_recognised(name):
    rule = PRE_TOKENIZERS[name]
    parts = [Split(Regex(p), "isolated") for p in rule.patterns]
    made = Sequence([*parts, ByteLevel(add_prefix_space=False, use_regex=False)])
    found = PRE_TOKENIZERS[recognise(made, whole_words=rule.whole_words, add_bos=rule.add_bos)]
    assert splits(found) == splits(rule)
    assert (found.whole_words, found.add_bos) == (rule.whole_words, rule.add_bos)


def test_rules_that_are_not_known():
    with pytest.raises(UnsupportedError, match="rule that is not known"):
        recognise(Split(Regex("[aeiou]"), "isolated"), whole_words=False, add_bos=False)
    gpt2 = ByteLevel(add_prefix_space=False, use_regex=True)
    assert recognise(gpt2, whole_words=False, add_bos=False) == "gpt-2"
    with pytest.raises(UnsupportedError, match="but for whole words as gpt-2 does"):
        recognise(gpt2, whole_words=True, add_bos=False)


# BPE


@pytest.mark.parametrize(("pattern", "pre"), [(QWEN2, "qwen2"), (LLAMA3, "chatglm-bpe")])
def test_bpe_encodes_alike(tmp_path, pattern, pre):
    m = reader(BPE).metadata
    texts, kinds = m["tokenizer.ggml.tokens"], m["tokenizer.ggml.token_type"]
    whole = bpe_json(texts, m["tokenizer.ggml.merges"], kinds, pattern)
    whole["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    keys = keys_of(tmp_path)
    assert keys["tokenizer.ggml.pre"] == pre
    theirs, ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), ikq.Tokenizer(keys)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert "tokenizer.ggml.eos_token_id" not in keys


def test_vocabularies_shorter_than_the_embedding(tmp_path):
    keys = keys_of(write(tmp_path, BPE), vocab_size=520)
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == 520
    assert keys["tokenizer.ggml.tokens"][-8:] == [f"[PAD{i}]" for i in range(512, 520)]
    assert keys["tokenizer.ggml.token_type"][-9:] == [3] + [5] * 8
    ikq.Tokenizer(keys)


def test_added_tokens(tmp_path):
    folder = write(tmp_path, BPE)
    whole = json.loads((folder / "tokenizer.json").read_text())
    for text, token, special in (("<tool>", 512, False), ("<|odd|>", 513, False), ("<s>", 515, True)):
        whole["added_tokens"].append(
            {"id": token, "content": text, "special": special}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        )
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    keys = keys_of(folder, vocab_size=516)
    assert keys["tokenizer.ggml.tokens"][512:] == ["<tool>", "<|odd|>", "[PAD514]", "<s>"]
    assert keys["tokenizer.ggml.token_type"][512:] == [4, 3, 5, 3]
    # those that the embedding has no row for are left out
    assert keys_of(folder, vocab_size=513)["tokenizer.ggml.tokens"][511:] == [
        keys["tokenizer.ggml.tokens"][511],
        "<tool>",
    ]
    with pytest.raises(FormatError, match="is token 500, and the embedding has 500 rows"):
        keys_of(folder, vocab_size=500)


def test_special_tokens(tmp_path):
    folder = write(tmp_path, BPE, bos_token=None, eos_token={"content": "<|im_end|>"}, pad_token="no such")
    keys = keys_of(folder, bos_token_id=7, eos_token_id=[509, 511], pad_token_id=9999)
    assert keys["tokenizer.ggml.bos_token_id"] == 7
    assert keys["tokenizer.ggml.eos_token_id"] == 511
    assert keys["tokenizer.ggml.eot_token_id"] == 509
    assert "tokenizer.ggml.padding_token_id" not in keys
    (folder / "generation_config.json").write_text('{"eos_token_id": [511, 510]}')
    assert keys_of(folder)["tokenizer.ggml.eot_token_id"] == 510


def test_bos_by_what_the_tokenizer_does(tmp_path):
    folder = write(tmp_path, BPE, add_bos_token=None, add_eos_token=None, bos_token="<|im_start|>")
    assert keys_of(folder)["tokenizer.ggml.add_bos_token"] is False
    whole = json.loads((folder / "tokenizer.json").read_text())
    special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [510], "tokens": ["<|im_start|>"]}}
    pieces = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    whole["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": pieces,
        "special_tokens": special,
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    keys = keys_of(folder)
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False


# SentencePiece


def test_sentencepiece_without_its_model(tmp_path):
    """From tokenizer.json alone: scores follow from the order of merges."""
    metadata = reader(SPM).metadata
    texts, scores, kinds = (metadata[f"tokenizer.ggml.{k}"] for k in ("tokens", "scores", "token_type"))
    ids = {t: i for i, t in enumerate(texts)}
    merges = []
    for i, text in enumerate(texts):
        if kinds[i] == 1:
            merges += [
                (scores[i], text[:n], text[n:])
                for n in range(1, len(text))
                if text[:n] in ids and text[n:] in ids
            ]
    merges.sort(key=lambda m: -m[0])
    space = "\u2581"
    whole = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": t,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for i, t in enumerate(texts)
            if kinds[i] in (2, 3)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": space},
                {"type": "Replace", "pattern": {"String": " "}, "content": space},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": [[a, b] for _, a, b in merges],
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}'
    )
    keys = keys_of(tmp_path)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.token_type"] == kinds
    assert "tokenizer.ggml.add_space_prefix" not in keys
    theirs, ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), ikq.Tokenizer(keys)
    of_fixture = ikq.Tokenizer(metadata)
    for text in TEXTS[:2]:
        found = ours.encode(text)
        assert found == of_fixture.encode(text)
        assert found == theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode("a", add_special=True)[0] == 1


def test_tokens_added_to_sentencepiece(tmp_path):
    decoder = {"512": {"content": "<tool>", "special": False}, "2": {"content": "<eos>", "special": True}}
    folder = write(tmp_path, SPM, added_tokens_decoder=decoder, eos_token="<eos>")
    (folder / "added_tokens.json").write_text('{"<extra>": 514}')
    assert keys_of(folder)["tokenizer.ggml.tokens"][2] == "<eos>"
    assert (
        len(keys_of(folder)["tokenizer.ggml.tokens"]) == len(keys_of(folder)["tokenizer.ggml.scores"]) == 512
    )
    with pytest.raises(FormatError, match="is token 500, and the embedding has 500 rows"):
        keys_of(folder, vocab_size=500)
    keys = keys_of(folder, vocab_size=515)
    assert keys["tokenizer.ggml.tokens"][512:] == ["<tool>", "[PAD513]", "<extra>"]
    assert keys["tokenizer.ggml.token_type"][512:] == [4, 5, 4]
    assert keys["tokenizer.ggml.tokens"][2] == "<eos>"
    assert keys["tokenizer.ggml.eos_token_id"] == 2
    assert keys["tokenizer.ggml.add_eos_token"] is False


def test_damaged_sentencepiece(tmp_path):
    path = tmp_path / "tokenizer.model"
    write_sentencepiece(path, ["<unk>", "a"], [0.0, -1.0], [2, 1], True)
    good = path.read_bytes()
    assert read_sentencepiece(path).texts == ["<unk>", "a"]
    for data in (
        b"",
        b"\xff" * 20,
        good[:7],
        b"\x0b" + good,
        b"\x0a\xff\xff\xff\x7f" + good,
        b"not a model at all",
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="no model of SentencePiece"):
            read_sentencepiece(path)
    write_sentencepiece(path, ["<unk>", "a"], [0.0, -1.0], [2, 1], True, model_type=3)
    with pytest.raises(UnsupportedError, match=r"other than BPE and unigram \(words\) are not"):
        read_sentencepiece(path)


def test_another_file_beside_tokenizer_json(tmp_path):
    """`tokenizer.model` that is no model of SentencePiece does not stand in the way of tokenizer.json."""
    folder = write(tmp_path, BPE)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert keys_of(folder)["tokenizer.ggml.model"] == "gpt2"
    (folder / "tokenizer.json").unlink()
    # it is of tiktoken's form, and damaged
    with pytest.raises(FormatError, match="no token for the byte 0"):
        keys_of(folder)
    (folder / "tokenizer.model").write_bytes(b"something else\n")
    with pytest.raises(FormatError, match="no model of SentencePiece"):
        keys_of(folder)


# Chat templates


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/x.jinja"])
def test_a_template_that_is_no_text(tmp_path, name):
    folder = write(tmp_path, BPE)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match=rf"{name} is no text in UTF-8"):
        keys_of(folder)


def test_templates(tmp_path):
    folder = write(tmp_path, BPE, chat_template="one")
    assert keys_of(folder)["tokenizer.chat_template"] == "one"
    (folder / "chat_template.jinja").write_text("two")
    keys = keys_of(folder)
    assert keys["tokenizer.chat_template"] == "two"
    assert "tokenizer.chat_templates" not in keys
    named = [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
        {"name": "rag", "template": "c"},
    ]
    (folder / "chat_template.jinja").unlink()
    keys = keys_of(write(folder, BPE, chat_template=named))
    assert keys["tokenizer.chat_template"] == "a"
    assert keys["tokenizer.chat_templates"] == ["rag", "tool_use"]
    assert keys["tokenizer.chat_template.tool_use"] == "b"
    write(folder, BPE)
    (folder / "chat_template.json").write_text('{"chat_template": "d"}')
    assert keys_of(folder)["tokenizer.chat_template"] == "d"


def test_the_folder_that_the_tiny_model_came_from(tmp_path):
    """A tokenizer of 4096 tokens as `transformers` saved it, against the file that another converter made."""
    source = SHARED / "models" / "tiny-moe-hf"
    expected = ikq.GGUFReader(SHARED / "models" / "tiny-moe-bf16.gguf").metadata
    config = Config.read(source)
    keys = Metadata(tokenizer_keys(source, config, "qwen3moe"))
    assert dict(keys) == {k: v for k, v in expected.items() if k.startswith("tokenizer.")}


def test_a_panic_of_the_library_is_an_error(tmp_path, monkeypatch):
    class PanicException(BaseException):  # as the library calls it
        pass

    def panic(path):
        raise PanicException("slice index starts at 3 but ends at 2")

    monkeypatch.setattr(Tokenizer, "from_file", panic)
    with pytest.raises(FormatError, match="t.json is no tokenizer: slice index"):
        _load(tmp_path / "t.json")


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_marks_within_words_are_refused(tmp_path, key):
    folder = write(tmp_path / "a", BPE)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"][key] = "##"
    path.write_text(json.dumps(whole))
    with pytest.raises(UnsupportedError, match=f"tokenizer.json: `{key}` is '##'"):
        keys_of(folder)
