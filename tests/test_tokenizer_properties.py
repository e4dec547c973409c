"""Tokenizers on texts and vocabularies that a test makes up."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_vocabs import bpe, spm

import ikq
from ikq.tokenizer import PRE_TOKENIZERS, TokenType

# texts near what splits words: digits in rows, spaces, line ends, contractions, scripts, marks
FRAGMENTS = (
    *("1", "23", "4567", " ", "   ", "\n", "\r\n", "\t", "'s", "'LL", "n't", "the", "The", "iPhone", "ü"),
    *(
        "日本",
        "한국",
        "ไทย",
        "क्षि",
        "é",
        "🦙",
        "🏳️‍🌈",
        "...",
        "://",
        "<|im_end|>",
        "<tool>",
        "\u2581",
        "\xa0",
        "\0",
    ),
)
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))


@pytest.mark.parametrize("pre", sorted(name for name, rule in PRE_TOKENIZERS.items() if not rule.raw))
def test_byte_level_bpe_gives_back_what_it_got(pre):
    tokenizer = ikq.Tokenizer(bpe(pre))

    @given(TEXTS)
    def check(text):
        for parse_special in (False, True):
            ids = tokenizer.encode(text, parse_special=parse_special)
            assert tokenizer.decode(ids, skip_special=False) == text

    check()


@pytest.mark.parametrize("pre", ["gemma4", "sarvam-moe"])
def test_plain_bpe_gives_back_what_it_got(pre):
    metadata = spm(model="gpt2", pre=pre, merges=["▁ t", "h e", "▁t he"])
    tokenizer = ikq.Tokenizer(metadata)

    @given(TEXTS.filter(lambda text: "\u2581" not in text))  # which is a space there
    def check(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check()
    assert tokenizer.encode(" the\n\n") == [tokenizer.id_of("▁the"), *[tokenizer.id_of("<0x0A>")] * 2]


@given(TEXTS.filter(lambda text: "\u2581" not in text))
def test_spm_gives_back_what_it_got(text):
    for add_space_prefix in (True, False):
        tokenizer = ikq.Tokenizer(spm(add_space_prefix=add_space_prefix))
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, add_special=True)) == text


def slow_spm(text, scores):
    """Merges the best pair of all, again and again."""
    symbols = list(text)
    while True:
        pairs = [
            (-scores[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in scores
        ]
        if not pairs:
            return symbols
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@given(
    st.dictionaries(st.text("abc▁", min_size=1, max_size=4), st.integers(-4, 4).map(float), min_size=1),
    st.text("abc ", max_size=30),
)
def test_spm_merges_the_best_pair_first(scores, text):
    """Scores that tie, tokens that can be made in several ways: as by trying all pairs each time."""
    tokenizer = ikq.Tokenizer(spm(tuple(scores.items()), add_space_prefix=False))
    expected = []
    for symbol in slow_spm(text.replace(" ", "▁"), scores):
        token = tokenizer.id_of(symbol)
        expected += [token] if token is not None else [6 + byte for byte in symbol.encode()]
    assert tokenizer.encode(text) == expected


def test_space_prefix():
    tokenizer = ikq.Tokenizer(spm())
    the, space = tokenizer.id_of("▁the"), tokenizer.id_of("▁")
    assert tokenizer.encode("the") == [the]
    assert tokenizer.encode(" the") == [space, the]
    # behind a special token a text begins anew
    assert tokenizer.encode("<tool>the") == [5, the]
    assert tokenizer.encode("") == []
    assert tokenizer.encode("", add_special=True) == [1]
    assert tokenizer.decode([1, the, the]) == "the the"
    assert tokenizer.decode([1, the, the], skip_special=False) == "<s>the the"


def test_special_tokens():
    for metadata in (bpe(), spm(add_space_prefix=False)):
        tokenizer = ikq.Tokenizer(metadata)
        start, end, tool = (tokenizer.id_of(text) for text in ("<|im_start|>", "<|im_end|>", "<tool>"))
        text = "<|im_start|>the<|im_end|><tool><unk>"
        parsed = tokenizer.encode(text, parse_special=True)
        assert parsed[0] == start
        assert parsed[-3:] == [end, tool, tokenizer.id_of("<unk>")]
        plain = tokenizer.encode(text)
        # user-defined tokens are always found, the others are text
        assert tool in plain
        assert not {start, end, tokenizer.id_of("<unk>")} & set(plain)
        assert tokenizer.decode(parsed) == "the<tool>"
        assert tokenizer.decode(parsed, skip_special=False) == text
        assert tokenizer.end_ids == {end, tokenizer.eos}
        assert tokenizer.eot == end
        assert [tokenizer.is_control(i) for i in (start, end, tool)] == [True, True, False]
        assert tokenizer.token_bytes(end) == b"<|im_end|>"
        assert tokenizer.token_type(tool) == TokenType.USER_DEFINED


def test_the_longest_special_token_wins():
    tokens = ["<a", "<abcd", "<abcde>", "<ab", "<abcz"]
    metadata = bpe(merges=["a b"])
    metadata["tokenizer.ggml.tokens"] += tokens
    metadata["tokenizer.ggml.token_type"] += [4] * len(tokens)
    tokenizer = ikq.Tokenizer(metadata)
    for text in (*tokens, "<abcd<abcde><a", "<abc", "<<abcz"):
        pieces = [
            tokenizer.token_bytes(i).decode() for i in tokenizer.encode(text) if tokenizer.token_type(i) == 4
        ]
        rest, expected = text, []
        while rest:
            longest = max((t for t in tokens if rest.startswith(t)), key=len, default=None)
            expected += [longest] if longest else []
            rest = rest[len(longest) if longest else 1 :]
        assert pieces == expected


def test_bos_and_eos():
    bos, eos = ikq.Tokenizer(bpe()).bos, ikq.Tokenizer(bpe()).eos
    for changes, first, last in (
        ({}, [], []),
        ({"add_bos_token": True}, [bos], []),
        ({"add_bos_token": True, "add_eos_token": True}, [bos], [eos]),
        ({"add_bos_token": True, "bos_token_id": None}, [], []),
        ({"pre": "llama-bpe"}, [bos], []),  # these models begin with BOS if the file does not say
        ({"pre": "llama-bpe", "add_bos_token": False}, [], []),
    ):
        tokenizer = ikq.Tokenizer(bpe(**changes))
        assert tokenizer.encode("12", add_special=True) == [*first, *tokenizer.encode("12"), *last]
    # a template that writes BOS itself does not get a second one
    tokenizer = ikq.Tokenizer(bpe(add_bos_token=True))
    assert tokenizer.encode("<s>12", add_special=True, parse_special=True) == tokenizer.encode(
        "12", add_special=True
    )


def test_ends_of_harmony():
    """<|end|> closes each message there; <|return|> and <|call|> end the answer."""
    metadata = bpe()
    names = ["<|end|>", "<|return|>", "<|call|>", "<|channel|>"]
    metadata["tokenizer.ggml.tokens"] += names
    metadata["tokenizer.ggml.token_type"] += [3] * 4
    tokenizer = ikq.Tokenizer(metadata)
    assert tokenizer.end_ids >= {tokenizer.id_of("<|return|>"), tokenizer.id_of("<|call|>")}
    assert tokenizer.id_of("<|end|>") not in tokenizer.end_ids
    assert not tokenizer.is_control(tokenizer.id_of("<|channel|>"))


def test_marks_of_reasoning_are_shown():
    """Some files call them control tokens; without them nobody could tell where the answer begins."""
    metadata = bpe()
    metadata["tokenizer.ggml.tokens"] += ["[THINK]", "[/THINK]"]
    metadata["tokenizer.ggml.token_type"] += [3, 3]
    tokenizer = ikq.Tokenizer(metadata)
    ids = tokenizer.encode("[THINK]1[/THINK]2<|im_end|>", parse_special=True)
    assert len(ids) == 5
    assert tokenizer.decode(ids) == "[THINK]1[/THINK]2"
    # they are special in prompts all the same
    assert len(tokenizer.encode("[THINK]")) > 1


def test_html_does_not_end_a_text():
    """Types of <s> and </s>: control tokens, or a vocabulary with the tags of HTML."""
    for start, end, ends in ((1, 1, False), (4, 4, False), (3, 3, True), (3, 4, True), (4, 3, True)):
        metadata = bpe(eos_token_id=None)
        tokens, types = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
        types[tokens.index("<s>")], types[tokens.index("</s>")] = start, end
        assert (tokens.index("</s>") in ikq.Tokenizer(metadata).end_ids) is ends


def test_phi3_swallows_white_space_behind_special_tokens():
    plain, phi = spm(), {**spm(), "general.name": "Phi-3 mini"}
    text = "<|im_end|>\n the"
    the = ikq.Tokenizer(plain).id_of("▁the")
    assert ikq.Tokenizer(phi).encode(text, parse_special=True) == [4, the]
    assert ikq.Tokenizer(plain).encode(text, parse_special=True) != [4, the]


@given(TEXTS, st.data())
def test_streams_never_show_half_a_character(text, data):
    tokenizer = ikq.Tokenizer(bpe())
    ids = tokenizer.encode(text)
    decoder = ikq.StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in ids]
    assert decoder.flush() == ""
    assert "".join(pieces) == text
    cut = data.draw(st.integers(0, len(ids)))
    pieces = [*(decoder.push(token) for token in ids[:cut]), decoder.flush()]
    whole = b"".join(tokenizer.token_bytes(token) for token in ids[:cut])
    assert "".join(pieces) == whole.decode(errors="replace")
    # nothing but what is sure: each state of the screen begins the text
    shown = "".join(pieces[:-1])
    assert text.startswith(shown)
    # after the end a new text may follow
    assert "".join(decoder.push(token) for token in ids) == text


def test_stream_at_every_split():
    """A character's bytes one by one, whole, cut off, and wrong."""
    tokenizer = ikq.Tokenizer(bpe(merges=["a b"]))
    for text in ("aü€🦙b", "\U0010ffff\x7f\x80"):
        data = text.encode()
        for end in range(len(data) + 1):
            decoder = ikq.StreamDecoder(tokenizer)
            shown = ""
            for byte in data[:end]:
                shown += decoder.push(byte)
                assert "\ufffd" not in shown
                assert text.startswith(shown)
            rest = decoder.flush()
            assert shown + rest == data[:end].decode(errors="replace")
            assert rest in ("", "\ufffd")
    decoder = ikq.StreamDecoder(tokenizer)
    assert [decoder.push(b) for b in b"\xe2\x82a\xff"] == ["", "", "\ufffda", "\ufffd"]


def test_stream_skips_control_tokens():
    tokenizer = ikq.Tokenizer(bpe())
    ids = tokenizer.encode("12<|im_end|>", parse_special=True)
    for skip_special, text in ((True, "12"), (False, "12<|im_end|>")):
        decoder = ikq.StreamDecoder(tokenizer, skip_special=skip_special)
        assert "".join(map(decoder.push, ids)) == text


def test_what_is_not_a_token_or_text():
    tokenizer = ikq.Tokenizer(bpe())
    for token in (-1, tokenizer.n_vocab, 1 << 40):
        for call in (tokenizer.token_bytes, tokenizer.is_control, lambda t: tokenizer.decode([t])):
            with pytest.raises(ikq.FormatError, match="not in the vocabulary"):
                call(token)
    with pytest.raises(ikq.FormatError, match="surrogate"):
        tokenizer.encode("a\ud800")


def test_unknown_kinds_are_named():
    with pytest.raises(ikq.UnsupportedError, match="'qwen9'.*deepseek-v3.*qwen2"):
        ikq.Tokenizer(bpe("qwen9"))
    with pytest.raises(ikq.UnsupportedError, match="'rwkv'"):
        ikq.Tokenizer(bpe(model="rwkv"))
    with pytest.raises(ikq.FormatError, match="no tokenizer"):
        ikq.Tokenizer({})


def test_a_file_that_says_it_has_no_vocabulary():
    with pytest.raises(
        ikq.FormatError, match=r"no tokenizer \(`tokenizer.ggml.model` is no_vocab\).*Model.logits"
    ):
        ikq.Tokenizer({"tokenizer.ggml.model": "no_vocab"})


MERGES = "tokenizer.ggml.merges"
HOSTILE = {
    "model of a wrong kind": bpe(model=3),
    "pre of a wrong kind": bpe(pre=[1]),
    "no tokens": bpe(tokens=None),
    "empty tokens": bpe(tokens=[]),
    "tokens are a number": bpe(tokens=3),
    "tokens are numbers": bpe(tokens=[1, 2, 3]),
    "a token that is not UTF-8": bpe(tokens=["a", b"\xff\xfe", "c"], token_type=None, merges=["a c"]),
    "no merges": bpe() | {MERGES: []},
    "merges of numbers": bpe() | {MERGES: [1]},
    "a merge of one token": bpe() | {MERGES: ["ab"]},
    "an empty merge": bpe() | {MERGES: [""]},
    "a merge that ends early": bpe() | {MERGES: ["a "]},
    "a merge of what is no token": bpe() | {MERGES: ["zz yy"]},
    "a merge to what is no token": bpe() | {MERGES: ["a b"]},
    "too few types": bpe(token_type=[1, 1]),
    "types of text": bpe(token_type=["1"] * 400),
    "BOS of a wrong kind": bpe(bos_token_id="1"),
    "BOS is a truth": bpe(bos_token_id=True),
    "add_bos_token is a number": bpe(add_bos_token=1),
    "no scores": spm(scores=None),
    "too few scores": spm(scores=[0.0]),
    "scores are NaN": spm(scores=[math.nan] * 400),
    "scores of text": spm(scores=["0"] * 400),
    "add_space_prefix is text": spm(add_space_prefix="yes"),
    "WordPiece without an unknown token": bpe(
        model="bert", tokens=["a"], token_type=None, unknown_token_id=None
    ),
}


@pytest.mark.parametrize("metadata", HOSTILE.values(), ids=HOSTILE)
def test_hostile_metadata_is_refused(metadata):
    with pytest.raises(ikq.FormatError) as e:
        ikq.Tokenizer(metadata)
    assert len(str(e.value)) < 300


def test_odd_metadata_that_is_accepted():
    # ids beyond the vocabulary name no token
    tokenizer = ikq.Tokenizer(bpe(bos_token_id=1 << 31, eos_token_id=-1, add_bos_token=True))
    assert (tokenizer.bos, tokenizer.eos) == (None, None)
    # empty tokens, tokens that are there twice, types nobody knows
    metadata = bpe()
    metadata["tokenizer.ggml.tokens"] += ["", "", "Ġt", "Ġt"]
    metadata["tokenizer.ggml.token_type"] += [1, 99, 1, -1]
    tokenizer = ikq.Tokenizer(metadata)
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"
    assert tokenizer.token_bytes(tokenizer.n_vocab - 3).startswith(b"[EMPTY_")
    # a byte token that is not spelt like one
    assert ikq.Tokenizer(spm(token_type=[6] * 400)).token_bytes(0) == b"<unk>"


VALUES = st.one_of(
    *(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
    ),
    st.lists(
        st.one_of(st.integers(-9, 9), st.floats(), st.text("ab ▁Ġ<>", max_size=3), st.binary(max_size=2)),
        max_size=5,
    ),
)


@pytest.mark.parametrize("make", [bpe, spm])
def test_random_metadata(make):
    metadata = make()

    @given(
        st.dictionaries(st.sampled_from(sorted(metadata)), VALUES, min_size=1, max_size=3),
        st.text(max_size=5),
    )
    @pytest.mark.filterwarnings("ignore:the file does not name")
    def check(changes, text):
        try:
            tokenizer = ikq.Tokenizer({k: v for k, v in (metadata | changes).items() if v is not None})
            ids = tokenizer.encode(text, add_special=True, parse_special=True)
        except (ikq.FormatError, ikq.UnsupportedError):
            return
        tokenizer.decode(ids)
        assert all(0 <= token < tokenizer.n_vocab for token in ids)

    check()


def test_long_texts():
    """Time grows with the length, not with its square: these would take minutes."""
    texts = (" " * 200_000, "a" * 200_000, "the " * 50_000, "日" * 100_000, "\n" * 100_000, "-" * 100_000)
    for metadata in (bpe(), bpe("gpt-4o"), bpe("deepseek-v3"), spm()):
        tokenizer = ikq.Tokenizer(metadata)
        for text in texts:
            assert tokenizer.decode(tokenizer.encode(text)) == text
