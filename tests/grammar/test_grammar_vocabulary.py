"""What a grammar allows is what a reader gets, byte for byte."""

import numpy as np
import pytest
from conftest import SHARED
from small_vocabs import bpe, spm

import ikq
from ikq.grammar import compile_constraint
from ikq.grammar.vocabulary import is_special, words_of

pytest.importorskip("llguidance")

FILES = ("deepseek-coder", "llama-spm", "qwen2")


def checked(tokenizer):
    """Bytes of all tokens; what is no text is one token that no text has."""
    words = words_of(tokenizer)
    assert words_of(tokenizer) is words
    n_special = 0
    for token in range(tokenizer.n_vocab):
        if tokenizer.token_bytes(token)[:1] == b"\xff":
            assert words.compiled.is_special_token(token)  # no text has this byte
        elif is_special(tokenizer, token):
            n_special += 1
            assert words.compiled.is_special_token(token)
            assert words.specials[tokenizer.text_of(token)] == token
        else:
            assert not words.compiled.is_special_token(token)
            assert words.compiled.decode_bytes([token]) == tokenizer.token_bytes(token)
    return n_special


@pytest.mark.parametrize("name", FILES)
def test_real_vocabularies(name):
    path = SHARED / "models" / "vocab" / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip("../shared/models/vocab is not there: grammars are tested with small vocabularies only")
    tokenizer = ikq.Tokenizer.from_reader(ikq.GGUFReader(path))
    n_special = checked(tokenizer)
    assert 0 < n_special < 1000
    # any text is a text, and nothing else is
    mask = compile_constraint(tokenizer, regex="(?s:.*)").mask()
    special = np.array([is_special(tokenizer, t) for t in range(tokenizer.n_vocab)])
    ends = np.array(sorted(tokenizer.end_ids))
    assert mask[ends].all()
    special[ends] = False
    assert not mask[special].any()
    text = 'Zürich: "naïve" 😀\n\tif x == 1:'
    ids = tokenizer.encode(text)
    assert compile_constraint(tokenizer, regex="(?s:.*)").n_allowed(ids) == len(ids)


@pytest.mark.parametrize("metadata", [bpe(), spm()], ids=["bpe", "spm"])
def test_small_vocabularies(metadata):
    tokenizer = ikq.Tokenizer(metadata)
    assert checked(tokenizer) == 5  # <tool> is user-defined, and part of texts


def test_bytes_of_characters():
    """A token may be a part of a character."""
    tokenizer = ikq.Tokenizer(bpe())
    constraint = compile_constraint(tokenizer, regex="[äö]")
    for byte in "ä".encode():
        mask = constraint.mask()
        assert mask[byte]
        assert mask.sum() == (1 if byte == "ä".encode()[0] else 2)
        constraint.accept(byte)
    assert constraint.must_stop


def test_a_vocabulary_without_an_end():
    plain = {k: v for k, v in bpe().items() if "eos" not in k}
    texts = list(plain["tokenizer.ggml.tokens"])
    for name in ("</s>", "<|im_end|>"):
        texts[texts.index(name)] = f"x{name[1:3]}x"
    tokenizer = ikq.Tokenizer({**plain, "tokenizer.ggml.tokens": texts})
    assert not tokenizer.end_ids
    constraint = compile_constraint(tokenizer, regex="ab?")
    assert constraint.mask().shape == (tokenizer.n_vocab,)
    constraint.accept(ord("a"))
    assert constraint.is_complete
    assert list(np.flatnonzero(constraint.mask())) == [ord("b")]


def test_marks_of_harmony_are_no_text():
    metadata = bpe()
    for name in ("<|channel|>", "<|message|>"):
        metadata["tokenizer.ggml.tokens"].append(name)
        metadata["tokenizer.ggml.token_type"].append(3)
    tokenizer = ikq.Tokenizer(metadata)
    assert not tokenizer.is_control(tokenizer.id_of("<|channel|>"))
    assert is_special(tokenizer, tokenizer.id_of("<|channel|>"))
    assert words_of(tokenizer).split(b"a<|channel|>b") == [b"a", tokenizer.id_of("<|channel|>"), b"b"]
