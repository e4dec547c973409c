"""Unigram tokenizers: the search, replacements of characters, spaces, and SentencePiece's own result."""

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unigram_models import SPACE, slow_split, table, unigram

import ikq
from ikq.tokenizer.charsmap import Charsmap

DOCS = Path(__file__).parents[1] / "docs"


@given(
    st.dictionaries(st.text("abc" + SPACE, min_size=1, max_size=4), st.integers(-6, 0).map(float)),
    st.text("abcd ", max_size=30),
    st.booleans(),
)
def test_the_best_sum_wins(words, text, bytes_too):
    """Scores that tie, and characters that are no tokens: as by trying all tokens at every place."""
    tokenizer = ikq.Tokenizer(unigram(words, bytes_too=bytes_too))
    expected = []
    for part, known in slow_split(text.replace(" ", SPACE), words):
        if known:
            expected.append(tokenizer.id_of(part))
        else:
            expected += [4 + byte for byte in part.encode()] if bytes_too else [0]
    assert tokenizer.encode(text) == expected


def test_tokens_that_are_no_text():
    words = {"<": -1.0, "s": -1.0, ">": -1.0, "a": -2.0}
    tokenizer = ikq.Tokenizer(unigram(words, bytes_too=True))
    assert [tokenizer.text_of(i) for i in tokenizer.encode("<s>")] == ["<", "s", ">"]
    assert tokenizer.encode("<s>a", parse_special=True) == [1, tokenizer.id_of("a")]
    # names of bytes and of the unknown token are text
    assert len(tokenizer.encode("<0x41>")) == 6
    assert 0 not in tokenizer.encode("<unk>")
    assert tokenizer.encode("a<tool>a") == [tokenizer.id_of("a"), 3, tokenizer.id_of("a")]
    # a run that no token covers is one unknown token where there are no bytes
    assert ikq.Tokenizer(unigram(words)).encode("axyz\u0430") == [7, 0]
    assert ikq.Tokenizer(unigram({}, add_eos_token=True)).encode("xyz", add_special=True) == [0, 2]


@pytest.mark.parametrize(
    ("prefix", "merge", "found"),
    [
        (False, False, "_a__b_"),
        (True, False, "__a__b_"),
        (False, True, "a_b"),
        (True, True, "_a_b"),
    ],
)
def test_spaces(prefix, merge, found):
    words = {SPACE: -1.0, "a": -1.0, "b": -1.0}
    tokenizer = ikq.Tokenizer(unigram(words, add_space_prefix=prefix, remove_extra_whitespaces=merge))
    ids = tokenizer.encode(" a  b ")
    assert "".join(tokenizer.text_of(i) for i in ids).replace(SPACE, "_") == found
    assert tokenizer.decode(ids) == found.replace("_", " ")[prefix:]
    assert tokenizer.encode("") == []
    assert (tokenizer.encode("  ") == []) == merge


# Replacements of characters

KEYS = st.text("abé\u0301か\u3099\U0001f999 ", min_size=1, max_size=3)


def replaced(text, new):
    """The longest of the keys at each place, by trying them all."""
    found, at = "", 0
    while at < len(text):
        keys = [key for key in new if text.startswith(key, at)]
        key = max(keys, key=len, default="")
        found += new[key] if key else text[at]
        at += len(key) or 1
    return found


@given(st.dictionaries(KEYS, st.text("xyé ", max_size=3), max_size=6), st.lists(KEYS).map("".join))
def test_the_longest_run_is_replaced(new, text):
    assert Charsmap(table(new) if new else b"").apply(text) == replaced(text, new)


def test_replacements_come_before_spaces():
    words = {SPACE: -1.0, "a": -1.0, "b": -1.0}
    given_table = table({"A": "a", "\t": " ", "\u200b": "", "b\u0301": "b"})
    made = unigram(words, charsmap=given_table, remove_extra_whitespaces=True)
    tokenizer = ikq.Tokenizer(made)
    assert [tokenizer.text_of(i) for i in tokenizer.encode("\t A\t b\u0301\u200b\u200b ")] == [
        "a",
        SPACE,
        "b",
    ]
    # some files have bytes with signs
    signed = [b - 256 if b > 127 else b for b in given_table]
    key = "tokenizer.ggml.precompiled_charsmap"
    assert ikq.Tokenizer(made | {key: signed}).encode("AA") == tokenizer.encode("aa")


@given(st.data())
def test_damaged_tables(data):
    good = table({"A": "a", "é": "e\u0301", "か\u3099": "が"})
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    bad = bad[: data.draw(st.integers(0, len(bad)))]
    try:
        Charsmap(bytes(bad)).apply("AéかBか\u3099" * 3)
    except ikq.FormatError:
        return


def test_damaged_metadata():
    words = {"a": -1.0}
    prefix = "tokenizer.ggml."
    for changes, message in (
        ({"scores": None}, "scores` is missing"),
        ({"scores": [0.0, 0.0, 0.0, 0.0, -float("inf")]}, "infinite"),
        ({"precompiled_charsmap": "a"}, "no array of bytes"),
        ({"precompiled_charsmap": [1, 2.5]}, "no array of bytes"),
        ({"precompiled_charsmap": [256]}, "no array of bytes"),
        ({"precompiled_charsmap": list(struct.pack("<I", 8))}, "damaged"),
        ({"remove_extra_whitespaces": 1}, "not true or false"),
        ({"tokens": ["a"], "token_type": [1], "scores": [0.0], "unknown_token_id": 7}, "unknown_token_id"),
    ):
        with pytest.raises(ikq.FormatError, match=message):
            ikq.Tokenizer(unigram(words, **changes))
    with pytest.raises(ikq.FormatError, match="damaged"):
        ikq.Tokenizer(unigram(words) | {f"{prefix}precompiled_charsmap": [1, 0, 0, 0, 1]})


def test_long_texts():
    """Time grows with the length, not with its square."""
    words = {SPACE: -1.0, "a": -1.0, "aa": -1.5, SPACE + "the": -2.0, SPACE * 4: -1.0}
    tokenizer = ikq.Tokenizer(unigram(words, bytes_too=True, charsmap=table({"a\u0301": "á"})))
    for text in (" " * 40_000, "a" * 40_000, " the" * 10_000, "日" * 20_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


# SentencePiece

OPTIONS = {
    "nmt_nfkc": {},
    "bytes and spaces as they are": {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "lower case without a prefix": {"add_dummy_prefix": False, "normalization_rule_name": "nmt_nfkc_cf"},
    "pieces across words": {"split_by_whitespace": False, "normalization_rule_name": "nfkc"},
}
ALPHABET = "abc dehT  \t\n\u2581.\xe9\xfc\u0301\u2460\ufb01\u65e5\u672c\uff76\uff9e\u304b\u3099\uac00\u1100\u1161\xa8\u200b\0<>"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_as_sentencepiece(options, tmp_path):
    """Lines of the documentation, characters of all kinds: every token, but for splits that are equally good."""
    library = pytest.importorskip("sentencepiece")
    lines = [line for path in sorted(DOCS.glob("*.md")) for line in path.read_text().splitlines()][:600]
    lines += [
        "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002",
        "\ud55c\uad6d\uc5b4 \ubb38\uc7a5",
        "\xdcbergr\xf6\xdfe",
    ] * 5
    made = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in lines if line]), model_writer=made, vocab_size=500,
        model_type="unigram", hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(made.getvalue())
    theirs = library.SentencePieceProcessor(model_proto=made.getvalue())
    # here, since it needs the model that was made
    from ikq.checkpoint.config import Config
    from ikq.checkpoint.tokenizer import tokenizer_keys
    from ikq.files.gguf import Metadata

    config = Config(tmp_path / "config.json", {"vocab_size": theirs.vocab_size()})
    ours = ikq.Tokenizer(Metadata(tokenizer_keys(tmp_path, config, "llama")))
    assert ours.model == "t5"

    def same(text):
        found, expected = ours.encode(text), theirs.encode(text)
        if found == expected:
            return True
        # the library adds float32 numbers, so it takes any of several splits whose sums are one but for the rounding
        sums = [sum(map(theirs.get_score, ids)) for ids in (found, expected)]
        assert theirs.decode(found) == theirs.decode(expected)
        assert sums[0] == pytest.approx(sums[1], rel=len(found) * 2.0**-23, abs=0)
        return False

    assert sum(not same(text) for text in lines) <= len(lines) / 50

    @given(st.one_of(st.text(ALPHABET), st.text()))
    def check(text):
        same(text)

    check()
