"""Vocabularies that have the marks of a form as control tokens, or as plain text."""

import re

from small_vocabs import CONTROL, NORMAL, bpe

import ikq
from ikq.text.tools.spelling import Harmony, JsonCalls, NamedCalls, ObjectCalls, TaggedCalls

MARK = re.compile(r"\]<\]minimax\[>\[|<[^<>\s\"=]+>|\[[A-Z_/]+\]")


def marks_of(form):
    """Texts of a form that models have tokens for."""
    spelling = form.spelling
    texts = [*spelling.section, *spelling.call, *(form.reasoning or ()), *form.dropped]
    if isinstance(spelling, NamedCalls):
        texts += [spelling.before_name, spelling.arguments]
    if isinstance(spelling, ObjectCalls):
        return sorted({*(m for t in texts for m in MARK.findall(t)), spelling.quote})
    if isinstance(spelling, TaggedCalls):
        texts += [*spelling.name, *spelling.key, *spelling.value, spelling.end]
    if isinstance(spelling, Harmony):
        texts += [
            "<|channel|>",
            "<|message|>",
            "<|start|>",
            "<|end|>",
            "<|call|>",
            "<|return|>",
            "<|constrain|>",
        ]
    if isinstance(spelling, JsonCalls):
        texts += []
    return sorted({m for t in texts for m in MARK.findall(t)})


def tokenizer_of(form, *, control=True):
    """A vocabulary of bytes, some words, and the marks of a form."""
    vocab = bpe()
    tokens, types = vocab["tokenizer.ggml.tokens"], vocab["tokenizer.ggml.token_type"]
    for mark in marks_of(form) if control else []:
        tokens.append(mark)
        types.append(CONTROL)
    for word in ('{"', '":', '":Ġ', '",Ġ"', '"}', "}}", "name", "get_weather", ">Ċ", "</", "ĊĊ"):
        tokens.append(word)
        types.append(NORMAL)
    return ikq.Tokenizer(vocab)
