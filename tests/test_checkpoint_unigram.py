"""Unigram tokenizers of checkpoints: to GGUF keys, and that these encode as the checkpoint's own does."""

import base64
import json

import pytest
from checkpoint_folders import _field, write_sentencepiece
from tokenizers import Tokenizer
from unigram_models import SPACE, table

import ikq
from ikq.checkpoint.config import Config
from ikq.checkpoint.tokenizer import tokenizer_keys
from ikq.errors import FormatError, UnsupportedError
from ikq.files.gguf import Metadata

PREFIX = "tokenizer.ggml."
# every score is a float32 number; some runs can be split in two ways that are equally good
WORDS = {
    SPACE: -2.0,
    "a": -3.0,
    "b": -3.5,
    "ab": -4.0,
    SPACE + "a": -3.25,
    "aa": -5.0,
    "ba": -5.5,
    "é": -6.0,
    "1": -4.0,
}
WORDS |= dict.fromkeys("cdefghijklmnopqrstuvwxyz.,:!-='ABCDEFGHIJ023456789", -7.0)
SPECIAL = ["<unk>", "<s>", "</s>"]
TEXTS = ["a ab  aab", " aaaaaa bbb", "héé 日本 1", "ba\tab\n", "<unk>", ""]
REPLACED = {"\t": " ", "\n": " ", "\r": " ", "\u00a0": " ", "\u3000": " ", "A": "a"}


def keys_of(folder, n_vocab):
    return Metadata(tokenizer_keys(folder, Config(folder / "config.json", {"vocab_size": n_vocab}), "llama"))


def json_of(words=WORDS, *, byte_fallback=True, normalizers=None, pre_tokenizer=None, **model):
    """`tokenizer.json`: special tokens, bytes, words."""
    names = [*SPECIAL, *(f"<0x{b:02X}>" for b in range(256 if byte_fallback else 0))]
    standard = [
        {"type": "Replace", "pattern": {"Regex": "(?<!\\n)^"}, "content": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": t, "special": True, **flags} for i, t in enumerate(SPECIAL)
        ],
        "normalizer": {"type": "Sequence", "normalizers": standard if normalizers is None else normalizers},
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "byte_fallback": byte_fallback,
            "vocab": [[name, 0.0] for name in names] + [[word, score] for word, score in words.items()],
            **model,
        },
    }  # fmt: skip


def write(folder, whole, **options):
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    given = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, **options}
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    return folder


def charsmap(table):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
# what transformers writes for models that drop spaces
MERGING = [
    charsmap(table(REPLACED)),
    {"type": "Strip", "strip_left": False, "strip_right": True},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE},
]


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize(
    ("steps", "pre", "prefix", "merge"),
    [
        (None, None, True, False),
        (MERGING, METASPACE, True, True),
        ([{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}], None, False, False),
    ],
)
def test_from_json(tmp_path, byte_fallback, steps, pre, prefix, merge):
    whole = json_of(byte_fallback=byte_fallback, normalizers=steps, pre_tokenizer=pre)
    n = len(whole["model"]["vocab"])
    keys = keys_of(write(tmp_path, whole), n + 2)
    assert keys[f"{PREFIX}model"] == "t5"
    assert (keys[f"{PREFIX}add_space_prefix"], keys[f"{PREFIX}remove_extra_whitespaces"]) == (prefix, merge)
    assert (f"{PREFIX}precompiled_charsmap" in keys) == (steps is MERGING)
    assert [keys[f"{PREFIX}{k}_token_id"] for k in ("bos", "eos", "unknown")] == [1, 2, 0]
    assert (keys[f"{PREFIX}add_bos_token"], keys[f"{PREFIX}add_eos_token"]) == (True, False)
    kinds = keys[f"{PREFIX}token_type"]
    assert kinds[:3] == [2, 3, 3]
    assert kinds[3:] == [6] * (256 if byte_fallback else 0) + [1] * len(WORDS) + [5, 5]
    theirs, ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), ikq.Tokenizer(keys)
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, parse_special=True) == expected
    assert ours.encode("a", add_special=True)[0] == 1


def test_added_tokens(tmp_path):
    whole = json_of()
    n = len(whole["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for token, text, special in ((n, "<tool>", False), (n + 2, "<end>", True), (n + 9, "<far>", True)):
        whole["added_tokens"].append({"id": token, "content": text, "special": special, **flags})
    keys = keys_of(write(tmp_path, whole), n + 3)
    assert keys[f"{PREFIX}tokens"][n:] == ["<tool>", f"[PAD{n + 1}]", "<end>"]
    assert keys[f"{PREFIX}token_type"][n:] == [4, 5, 3]
    with pytest.raises(FormatError, match=f"is token {n - 1}, and the embedding has {n - 1} rows"):
        keys_of(tmp_path, n - 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # letters in lower case, digits one by one, spaces only where there is none: no key says so
        ({"normalizers": [{"type": "Lowercase"}]}, "cannot be said in a GGUF file .*tokens of these texts"),
        ({"normalizers": [], "pre_tokenizer": METASPACE}, "cannot be said in a GGUF file"),
        (
            {"words": {**WORDS, "11": -4.0}, "pre_tokenizer": {"type": "Digits", "individual_digits": True}},
            "cannot be",
        ),
        ({"words": {**WORDS, "yy": -0.1}}, "score of 'yy', -0.1, is no number of 32 bits"),
        ({"unk_id": None, "byte_fallback": False}, "without an unknown token"),
    ],
)
def test_what_a_file_cannot_say(tmp_path, changes, message):
    write(tmp_path, json_of(**changes))
    with pytest.raises(UnsupportedError, match=message):
        keys_of(tmp_path, 400)


@pytest.mark.parametrize(
    ("vocab", "normalizers", "message"),
    [
        ([], None, "vocabulary is missing"),
        ({"a": 1}, None, "vocabulary is missing"),
        ([["a"]], None, "for a token and its score"),
        ([["<unk>", 0.0], ["a", 1e300]], None, "score of 'a' is"),
        ([["<unk>", 0.0], ["a", -1.0]], [charsmap(b"\x04\0\0\0abcd")], "damaged"),
        ([["<unk>", 0.0], ["a", -1.0]], [charsmap(b"") | {"precompiled_charsmap": "?"}], "base64"),
    ],
)
def test_damaged_json(tmp_path, vocab, normalizers, message):
    write(tmp_path, json_of(normalizers=normalizers, vocab=vocab))
    with pytest.raises(FormatError, match=message):
        keys_of(tmp_path, 400)


# tokenizer.model


def write_model(folder, *, prefix=True, more_trainer=b"", more_rules=b""):
    texts = [*SPECIAL, *WORDS]
    kinds = [2, 3, 3] + [1] * len(WORDS)
    scores = [0.0] * 3 + list(WORDS.values())
    given = folder / "tokenizer.model"
    write_sentencepiece(
        given, texts, scores, kinds, prefix, 1, more_trainer=more_trainer, more_rules=more_rules
    )
    return len(texts)


def test_from_a_model(tmp_path):
    n = write_model(tmp_path, more_rules=_field(2, 2, table(REPLACED)))
    keys = keys_of(tmp_path, n + 1)
    assert keys[f"{PREFIX}model"] == "t5"
    assert bytes(keys[f"{PREFIX}precompiled_charsmap"]) == table(REPLACED)
    # where the model does not say, spaces are merged and one is put before the text
    assert (keys[f"{PREFIX}add_space_prefix"], keys[f"{PREFIX}remove_extra_whitespaces"]) == (True, True)
    assert keys[f"{PREFIX}tokens"][-1] == f"[PAD{n}]"
    ours = ikq.Tokenizer(keys)
    assert [ours.text_of(i) for i in ours.encode("A\t\tab ")] == [SPACE + "a", SPACE, "ab"]
    n = write_model(tmp_path, prefix=False, more_rules=_field(4, 0, 0))
    keys = keys_of(tmp_path, n)
    assert (keys[f"{PREFIX}add_space_prefix"], keys[f"{PREFIX}remove_extra_whitespaces"]) == (False, False)
    assert f"{PREFIX}precompiled_charsmap" not in keys


def test_tokenizer_json_comes_first(tmp_path):
    """The two may treat spaces in different ways; the library that most run reads this one."""
    write_model(tmp_path)
    whole = json_of(
        byte_fallback=False, normalizers=[{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    )
    keys = keys_of(write(tmp_path, whole), 400)
    assert (keys[f"{PREFIX}add_space_prefix"], keys[f"{PREFIX}remove_extra_whitespaces"]) == (False, False)
    whole["model"] = {"type": "BPE", "byte_fallback": True, "vocab": {"<unk>": 0, "a": 1}, "merges": []}
    assert keys_of(write(tmp_path, whole | {"added_tokens": []}), 400)[f"{PREFIX}model"] == "llama"


def test_models_that_are_not_converted(tmp_path):
    for more, message in (
        ({"more_trainer": _field(24, 0, 1)}, "treat_whitespace_as_suffix"),
        ({"more_rules": _field(5, 0, 0)}, "escape_whitespaces off"),
    ):
        write_model(tmp_path, **more)
        with pytest.raises(UnsupportedError, match=f"unigram models with {message} are not converted"):
            keys_of(tmp_path, 400)
    write_model(tmp_path, more_rules=_field(2, 2, b"\xff\xff\xff\xff12"))
    with pytest.raises(FormatError, match="damaged"):
        keys_of(tmp_path, 400)
    write_sentencepiece(tmp_path / "tokenizer.model", ["a"], [-1.0], [1], True, 1)
    with pytest.raises(FormatError, match="no unknown token"):
        keys_of(tmp_path, 400)
