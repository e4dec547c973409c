"""Tokenizers whose tokens have ranks (tiktoken, tekken), and that what is written encodes as they do.

The encoders that they are compared with work by ranks: one is written here, the other is tiktoken's own where
that is installed.
"""

import base64
import json
import random
from itertools import pairwise

import numpy as np
import pytest
from checkpoint_folders import LLAMA3, QWEN2, make_folder
from conftest import ROOT
from tokenizers import Regex
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split

import ikq
from ikq.checkpoint.config import Config
from ikq.checkpoint.pre_tokenizer import PROBE
from ikq.checkpoint.ranks import RankedTokens
from ikq.checkpoint.tiktoken import read_pattern
from ikq.checkpoint.tokenizer import tokenizer_keys
from ikq.errors import FormatError, UnsupportedError
from ikq.files.gguf import GGUFReader, Metadata

TINY = ROOT / "tests" / "data" / "tiny-moe-bf16.gguf"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# as the models' own code has them
KIMI = [
    r"[\p{Han}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
]
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KIMI_CODE = (
    "import tiktoken\nopen('/nowhere', 'w')\n\n\nclass TikTokenTokenizer:\n    num_reserved_special_tokens = 256\n"
    f"    pat_str = '|'.join(\n        [\n{''.join(f'            {p!r},{chr(10)}' for p in KIMI)}        ]\n    )\n"
)


def trained(n):
    """Bytes by rank: those of the tiny model's merges, the first `n` of them."""
    reader = GGUFReader(TINY)
    tokens, merges = (reader.metadata[f"tokenizer.ggml.{k}"] for k in ("tokens", "merges"))
    del tokens
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in visible]
    of_character = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    # single bytes in an order of their own, as published files have them
    ranks = {bytes([b]): i for i, b in enumerate([*sorted(visible), *hidden])}
    for merge in merges:
        text = bytes(of_character[c] for c in merge.replace(" ", ""))
        if len(ranks) < n:
            ranks.setdefault(text, len(ranks))
    assert len(ranks) == n
    return ranks


def joined(piece, ranks):
    """The published algorithm, as plainly as can be: the lowest rank first, the leftmost of several."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[p] for p in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def by_ranks(text, ranks, pattern):
    """Ids of a text; a piece that is a token is that token."""
    pieces = [p.encode() for p, _ in Split(Regex(pattern), "isolated").pre_tokenize_str(text)]
    return [i for p in pieces for i in ([ranks[p]] if p in ranks else joined(p, ranks))]


def texts():
    """Prose, code, and letters of all kinds at random."""
    rng = random.Random(0)
    found = [PROBE, (ROOT / "docs" / "design.md").read_text()]
    found += [p.read_text() for p in sorted((ROOT / "python" / "ikq" / "checkpoint").glob("*.py"))]
    kinds = (
        "abcdeABC '\n\t.,/1230",
        "aab ",
        "".join(
            map(chr, [*range(0xA0, 0x250), *range(0x370, 0x3E0), *range(0x4E00, 0x4E40), 0x301, 0x1F600])
        ),
        "\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8 \u4f60\u597dab\u0e44\u0e17\u0e22 A'S",
    )
    found += ["".join(rng.choices(rng.choice(kinds), k=rng.randrange(1, 80))) for _ in range(400)]
    return found


TEXTS = texts()


def write_ranks(path, ranks):
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for t, i in ranks.items()))


def write_tekken(path, ranks, n_special=20, special=None, pattern=TEKKEN, more=()):
    """A file whose vocabulary is all of `ranks`; `more` are entries that it has no room for."""
    config = {
        "pattern": pattern,
        "default_vocab_size": n_special + len(ranks),
        "default_num_special_tokens": n_special,
    }
    tokens = [*ranks, *more]
    whole = {
        "config": config,
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None}
            for i, t in enumerate(tokens)
        ],
    }
    if special is not None:
        whole["special_tokens"] = special
    path.write_text(json.dumps(whole))


def keys_of(folder, n_vocab, **config):
    given = Config(folder / "config.json", {"vocab_size": n_vocab, **config})
    return Metadata(tokenizer_keys(folder, given, "deepseek2"))


def kimi(folder, n_base, n_special=40):
    """A folder as Kimi-K2's."""
    ranks = trained(n_base)
    write_ranks(folder / "tiktoken.model", ranks)
    (folder / "tokenization_kimi.py").write_text(KIMI_CODE)
    added = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 5: "<think>", n_special + 3: "<|beyond|>"}
    options = {
        "added_tokens_decoder": {
            str(n_base + i): {"content": text, "special": i != 5} for i, text in added.items()
        },
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "tokenizer_class": "TikTokenTokenizer",
        "chat_template": "{{ messages }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return ranks


# Ranks as merges


@pytest.mark.parametrize("seed", range(40))
def test_merges_of_any_vocabulary(seed):
    """Tokens at random, most of which no training would make: parts with higher ranks, none at all, overlaps."""
    rng = random.Random(seed)
    letters = b"ab" if seed % 2 else b"abc"
    some = {bytes(rng.choices(letters, k=rng.randrange(2, 7))) for _ in range(rng.randrange(1, 60))}
    order = [bytes([b]) for b in range(256)] + sorted(some)
    rng.shuffle(order)
    ranks = {token: i for i, token in enumerate(order)}
    ranked = RankedTokens(ranks.items(), "x")
    vocab = {text: rank for rank, text in ranked.texts().items()}
    pieces = [bytes(rng.choices(letters, k=rng.randrange(1, 24))) for _ in range(60)]
    for merges in (ranked.merges(), ranked.all_merges()):
        bpe = BPE(vocab, [tuple(m.split(" ")) for m in merges])
        for piece in pieces:
            assert [t.id for t in bpe.tokenize(piece.decode())] == joined(piece, ranks), (piece, merges)


def test_merges_of_a_trained_vocabulary_are_all_of_it():
    ranks = trained(2000)
    ranked = RankedTokens(ranks.items(), "x")
    merges = ranked.merges()
    assert ["".join(m.split(" ")) for m in merges] == [
        text for rank, text in sorted(ranked.texts().items()) if rank >= 256
    ]
    assert set(merges) < set(ranked.all_merges())


def test_a_long_token_takes_no_long_time():
    """Bytes whose joining is as deep as can be; the square of their number would take minutes."""
    powers = [b"a" * 2**i for i in range(1, 17)]
    ranks = {bytes([b]): b for b in range(256)} | {t: 256 + i for i, t in enumerate(powers)}
    merges = RankedTokens(ranks.items(), "x").merges()
    assert len(merges) == len(powers)
    assert merges[-1] == f"{'a' * 2**15} {'a' * 2**15}"


# tiktoken


@pytest.mark.parametrize(
    ("pattern", "pre"), [("|".join(KIMI), "kimi-k2"), (QWEN2, "qwen2"), (LLAMA3, "llama-bpe")]
)
@pytest.mark.parametrize("encoder", ["here", "tiktoken"])
def test_texts_are_encoded_as_by_ranks(tmp_path, pattern, pre, encoder):
    ranks = trained(3000)
    write_ranks(tmp_path / "tiktoken.model", ranks)
    (tmp_path / "tokenization_x.py").write_text(f"PAT_STR = r'''{pattern}'''\n")
    keys = keys_of(tmp_path, 3100)
    assert keys["tokenizer.ggml.pre"] == pre
    assert keys["tokenizer.ggml.model"] == "gpt2"
    ours = ikq.Tokenizer(keys)
    if encoder == "tiktoken":
        tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
        made = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS:
        found = ours.encode(text)
        if encoder == "tiktoken":
            assert found == made.encode(text, disallowed_special=())
        elif len(text) < 3000:
            assert found == by_ranks(text, ranks, pattern)
        assert ours.decode(found) == text


def test_a_folder_of_kimi(tmp_path):
    ranks = kimi(tmp_path, 600)
    keys = keys_of(tmp_path, 640, eos_token_id=602)
    texts, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert (len(texts), len(kinds)) == (640, 640)
    assert kinds == [1] * 600 + [3] * 40
    assert texts[600:607] == [
        "[BOS]",
        "[EOS]",
        "<|im_end|>",
        "<|reserved_token_603|>",
        "<|reserved_token_604|>",
        "<think>",
        "<|reserved_token_606|>",
    ]
    assert texts[639] == "<|reserved_token_639|>"
    expected = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.bos_token_id": 600,
        "tokenizer.ggml.eos_token_id": 601,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert {k: v for k, v in keys.items() if not isinstance(v, list)} == expected
    # as many as there are tokens of several bytes: 600 without the single ones
    assert len(keys["tokenizer.ggml.merges"]) == 344
    tokenizer = ikq.Tokenizer(keys)
    text = "<think>import math<|im_end|>"
    found = tokenizer.encode(text, parse_special=True)
    assert (found[0], found[-1]) == (605, 602)
    assert found[1:-1] == by_ranks("import math", ranks, "|".join(KIMI))
    assert 602 in tokenizer.end_ids


def test_a_whole_checkpoint(tmp_path):
    """From the folder to the tokens that the file's tokenizer gives."""
    folder = make_folder(tmp_path / "hf", "qwen3/qwen3-bf16")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    ranks = kimi(folder, 480, 32)
    ikq.convert_checkpoint(folder, tmp_path / "m.gguf")
    tokenizer = ikq.Tokenizer.from_reader(GGUFReader(tmp_path / "m.gguf"))
    for text in TEXTS[-40:]:
        assert tokenizer.encode(text) == by_ranks(text, ranks, "|".join(KIMI))


@pytest.mark.parametrize("name", ["tokenizer.model", "qwen.tiktoken"])
def test_other_names_of_files(tmp_path, name):
    write_ranks(tmp_path / name, trained(500))
    with pytest.raises(
        UnsupportedError, match=r"tokenization_\*.py of the checkpoint only, which is missing"
    ):
        keys_of(tmp_path, 500)
    (tmp_path / "tokenization_x.py").write_text(f"class X:\n    pat_str = {QWEN2!r}\n")
    keys = keys_of(tmp_path, 520)
    assert keys["tokenizer.ggml.pre"] == "qwen2"
    # ids that nothing names are of no use
    assert keys["tokenizer.ggml.tokens"][500:502] == ["[PAD500]", "[PAD501]"]
    assert keys["tokenizer.ggml.token_type"][499:] == [1] + [5] * 20


def test_rules_in_code(tmp_path):
    """Texts that stand there are taken; nothing is run."""
    path = tmp_path / "tokenization_x.py"
    for code, expected in (
        ("pat_str = 'a'", "a"),
        ("PAT_STR = ('a' 'b'\n  + 'c')", "abc"),
        ("class A:\n  pat_str = '|'.join(['a', r'\\s' + 'b'])", r"a|\sb"),
        ("pat_str = 'a'\nother = 'b'\nclass B:\n  pat_str = pat_str", "a"),
    ):
        path.write_text(code)
        assert read_pattern(tmp_path, {}) == expected
    for code in ("x = 1", "pat_str = make()", "pat_str = 'a'\nPAT_STR = 'b'", "pat_str = '|'.join([x])"):
        path.write_text(code)
        with pytest.raises(UnsupportedError, match="rules for splitting text"):
            read_pattern(tmp_path, {})
    for code in ("pat_str = (", "pat_str = " + "(" * 5000, "\0"):
        path.write_text(code)
        with pytest.raises(FormatError, match="no Python that can be read"):
            read_pattern(tmp_path, {})
    # the file that is named counts
    path.write_text("pat_str = 'a'")
    (tmp_path / "tokenization_y.py").write_text("pat_str = 'b'")
    with pytest.raises(UnsupportedError, match="2 rules"):
        read_pattern(tmp_path, {})
    assert read_pattern(tmp_path, {"auto_map": {"AutoTokenizer": ["tokenization_y.Y", None]}}) == "b"
    # not one of another place
    outside = {"auto_map": {"AutoTokenizer": ["someone/repo--tokenization_y.Y", None]}}
    with pytest.raises(UnsupportedError, match="2 rules"):
        read_pattern(tmp_path, outside)


def test_rules_that_are_not_known(tmp_path):
    write_ranks(tmp_path / "tiktoken.model", trained(300))
    code = tmp_path / "tokenization_x.py"
    code.write_text("pat_str = '[aeiou]'")
    with pytest.raises(UnsupportedError, match="rule that is not known"):
        keys_of(tmp_path, 300)
    code.write_text("pat_str = '(('")
    with pytest.raises(FormatError, match="cannot be read"):
        keys_of(tmp_path, 300)


def test_damaged_ranks(tmp_path):
    ranks = trained(300)
    path = tmp_path / "tiktoken.model"
    (tmp_path / "tokenization_x.py").write_text(f"pat_str = {QWEN2!r}")
    write_ranks(path, ranks)
    good = path.read_bytes()
    assert len(keys_of(tmp_path, 300)["tokenizer.ggml.tokens"]) == 300
    with pytest.raises(FormatError, match="is token 299, and the embedding has 299 rows"):
        keys_of(tmp_path, 299)
    for data, says in (
        (b"", "no token for the byte 0"),
        (good + b"IQ==\n", "line 301"),
        (good + b"!!! 5\n", "line 301"),
        (good + b"IQ== -1\n", "line 301"),
        (good + b"IQ== 9999999999\n", "line 301"),
        (good + b"IQ== 300\n", "is there twice"),
        (good + base64.b64encode(b"not one") + b" 299\n", "the same rank"),
        (good.split(b"\n", 1)[1], "no token for the byte"),
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=says):
            keys_of(tmp_path, 400)
    write_ranks(path, ranks)
    options = {"added_tokens_decoder": {"5": {"content": "<x>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(FormatError, match="'<x>' is there twice, or its id 5 is"):
        keys_of(tmp_path, 300)


# tekken


@pytest.mark.parametrize("encoder", ["here", "tiktoken"])
def test_tekken_is_encoded_as_by_ranks(tmp_path, encoder):
    ranks = {
        t: i
        for i, t in enumerate([*[bytes([b]) for b in range(256)], *[t for t in trained(3000) if len(t) > 1]])
    }
    # a word that is never made of others
    ranks[b" zqxjkv"] = len(ranks)
    write_tekken(tmp_path / "tekken.json", ranks, more=[b"no room", b"for these"])
    n = 20 + len(ranks)
    ours = ikq.Tokenizer(keys_of(tmp_path, n))
    if encoder == "tiktoken":
        tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
        made = tiktoken.Encoding("x", pat_str=TEKKEN, mergeable_ranks=ranks, special_tokens={})
    for text in [*TEXTS, "a zqxjkv and zqxjkvs"]:
        found = ours.encode(text)
        if encoder == "tiktoken":
            assert found == [20 + i for i in made.encode(text, disallowed_special=())]
        elif len(text) < 3000:
            assert found == [20 + i for i in by_ranks(text, ranks, TEKKEN)]
        assert ours.decode(found) == text
    assert n - 1 in ours.encode("a zqxjkv")


def test_keys_of_tekken(tmp_path):
    ranks = {t: i for i, t in enumerate([*[bytes([b]) for b in range(256)], b"ab", b"bc", b"abc", b" abc"])}
    write_tekken(tmp_path / "tekken.json", ranks)
    keys = keys_of(tmp_path, 290)
    texts, kinds = keys.pop("tokenizer.ggml.tokens"), keys.pop("tokenizer.ggml.token_type")
    assert texts[:4] == ["<unk>", "<s>", "</s>", "[INST]"]
    assert (texts[11], texts[19]) == ("<pad>", "[TOOL_CONTENT]")
    assert texts[-11:-9] == ["\u0120abc", "[PAD280]"]
    assert kinds == [3] * 20 + [1] * 260 + [5] * 10
    np.testing.assert_array_equal(keys.pop("tokenizer.ggml.scores"), np.zeros(290))
    # all pairs of a token, by the ranks of their parts
    assert keys == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "tekken",
        "tokenizer.ggml.merges": ["a b", "b c", "a bc", "ab c", "\u0120 abc"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 11,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }
    tokenizer = ikq.Tokenizer(keys_of(tmp_path, 290))
    assert tokenizer.encode("abc", add_special=True)[0] == 1
    # what config.json says of special tokens does not count
    assert keys_of(tmp_path, 290, bos_token_id=7)["tokenizer.ggml.bos_token_id"] == 1


def test_special_tokens_of_tekken(tmp_path):
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256}
    special = [
        {"rank": i, "token_str": t, "is_control": True}
        for i, t in enumerate(["<unk>", "<s>", "</s>", "[THINK]"])
    ]
    write_tekken(tmp_path / "tekken.json", ranks, n_special=6, special=special)
    keys = keys_of(tmp_path, 263)
    assert keys["tokenizer.ggml.tokens"][:6] == [
        "<unk>",
        "<s>",
        "</s>",
        "[THINK]",
        "<SPECIAL_4>",
        "<SPECIAL_5>",
    ]
    # where there is no token to pad with
    assert keys["tokenizer.ggml.padding_token_id"] == 2


def test_damaged_tekken(tmp_path):
    path = tmp_path / "tekken.json"
    ranks = {bytes([b]): b for b in range(256)}
    write_tekken(path, ranks)
    good = json.loads(path.read_text())
    with pytest.raises(FormatError, match="is token 275, and the embedding has 275 rows"):
        keys_of(tmp_path, 275)
    bad_special = [{"rank": 20, "token_str": "x"}]
    for change, says in (
        ({"config": None}, "`config`"),
        ({"config": good["config"] | {"pattern": 3}}, "`config`"),
        ({"config": good["config"] | {"default_vocab_size": -1}}, "default_vocab_size"),
        ({"config": good["config"] | {"default_num_special_tokens": 2**60}}, "default_num_special_tokens"),
        ({"config": good["config"] | {"default_vocab_size": 400}}, "no list of 380 tokens"),
        ({"vocab": good["vocab"][:200]}, "no list of 256 tokens"),
        ({"vocab": [{"rank": "x"}, *good["vocab"]]}, "no bytes in base64"),
        ({"vocab": [{"rank": 0, "token_bytes": "*"}, *good["vocab"]]}, "no bytes in base64"),
        ({"vocab": [{"rank": -5, "token_bytes": "AA=="}, *good["vocab"]]}, "is no token"),
        ({"vocab": [*good["vocab"][1:], {"rank": 0, "token_bytes": "AQ=="}]}, "there twice"),
        ({}, "no token is made of others"),
        ({"special_tokens": bad_special}, "no rank below 20"),
        ({"special_tokens": 7}, "the special token 7"),
        (
            {"special_tokens": [{"rank": 1, "token_str": "<x>"}, {"rank": 2, "token_str": "<x>"}]},
            "there twice",
        ),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(FormatError, match=says):
            keys_of(tmp_path, 400)
