"""The schemas of the JSON Schema Test Suite: texts of those that can be enforced are valid, others are refused."""

import json
import zlib

import pytest
from sdists import sdist
from walks import text_of, walk

import ikq
from ikq.grammar import compile_constraint

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

SUITE = sdist("jsonschema-4.26.0") / "draft2020-12"
TOKENIZER = ikq.Tokenizer.from_reader(ikq.GGUFReader("tests/data/tiny-moe-bf16.gguf"))


def schemas():
    """All of them, with their file and description."""
    for path in sorted(SUITE.glob("*.json")):
        for group in json.loads(path.read_text()):
            yield path.stem, group["description"], group["schema"]


def test_suite():
    n = supported = texts = 0
    refused = []
    for file, description, schema in schemas():
        n += 1
        try:
            constraint = compile_constraint(TOKENIZER, json_schema=schema)
        except ikq.GrammarError as e:
            refused.append((file, description, str(e), e.keyword))
            continue
        supported += 1
        validator = jsonschema.Draft202012Validator(schema)
        for seed in range(2):
            start = zlib.crc32(f"{file} {description} {seed}".encode())
            one = constraint.clone()
            text = text_of(TOKENIZER, walk(one, TOKENIZER, start, n_free=12, n_most=150))
            if not one.is_complete:
                continue
            texts += 1
            value = json.loads(text)
            assert validator.is_valid(value), (file, description, schema, text)
    # 190 of 368 in llguidance 1.9
    assert n >= 200
    assert supported >= 185
    assert texts >= 1.9 * supported
    assert [r for r in refused if not r[3] or f"`{r[3]}`" not in r[2]] == []
