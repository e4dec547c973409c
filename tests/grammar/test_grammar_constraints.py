"""Constraints token by token, and what is refused before any token."""

import builtins

import pytest
from small_vocabs import bpe

import ikq
from ikq.grammar import compile_constraint

pytest.importorskip("llguidance")

TOKENIZER = ikq.Tokenizer(bpe())
END = TOKENIZER.id_of("</s>")


def refused(**what):
    with pytest.raises(ikq.GrammarError) as e:
        compile_constraint(TOKENIZER, **what)
    return e.value


def test_states():
    constraint = compile_constraint(TOKENIZER, regex="ab?")
    assert not constraint.is_complete
    assert not constraint.mask()[END]
    constraint.accept(ord("a"))
    other = constraint.clone()
    assert constraint.is_complete
    assert constraint.mask()[END]
    assert not constraint.must_stop
    assert constraint.n_allowed([ord("b"), ord("b")]) == 1
    assert constraint.n_allowed([ord("b"), END]) == 2
    constraint.accept(ord("b"))
    assert constraint.must_stop
    assert other.n_allowed([ord("b")]) == 1
    constraint.accept(END)
    with pytest.raises(ikq.GrammarError, match="not allowed here"):
        other.accept(ord("x"))


def test_kinds():
    assert compile_constraint(TOKENIZER, json_object=True).n_allowed(list(b'{"a": [1, null]}')) == 16
    assert compile_constraint(TOKENIZER, json_object=True).n_allowed(list(b"[")) == 0
    assert compile_constraint(TOKENIZER, json_schema=True).n_allowed(list(b"[1]")) == 3
    assert compile_constraint(TOKENIZER, json_schema={}).n_allowed(list(b"[1]")) == 3
    assert compile_constraint(TOKENIZER, lark='start: "a" /[0-9]/').n_allowed(list(b"a1b")) == 2
    with pytest.raises(ValueError, match="one of json_schema, .* is needed, not none"):
        compile_constraint(TOKENIZER)
    with pytest.raises(ValueError, match="not json_object and regex"):
        compile_constraint(TOKENIZER, json_object=True, regex="a")


@pytest.mark.parametrize(
    ("schema", "keyword", "place"),
    [
        ({"not": {}}, "not", "/not"),
        (
            {"properties": {"a/b": {"items": {"uniqueItems": True}}}},
            "uniqueItems",
            "/properties/a~1b/items/uniqueItems",
        ),
        ({"anyOf": [True, {"if": {}, "then": False}]}, "if", "/anyOf/1/if"),
        ({"$defs": {"x": {"contains": {}}}}, "contains", "/$defs/x/contains"),
        ({"x-guidance": {"lenient": True}}, "x-guidance", "/x-guidance"),
        (False, "false", "/"),
        ({"oneOf": [{"type": "string"}, {"minLength": 3}]}, "oneOf", "/oneOf"),
        ({"items": {"$ref": "http://example.com/x"}}, "$ref", "/items/$ref"),
        ({"$ref": "#/nowhere"}, "$ref", "/$ref"),
        ({"type": "odd"}, "type", "/type"),
        ({"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}, "pattern", "/properties/a/pattern"),
        ({"type": "string", "pattern": "("}, "pattern", "/pattern"),
        ({"type": "integer", "minimum": "x"}, "minimum", "/minimum"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "maxLength", "/maxLength"),
        ({"enum": []}, "enum", "/enum"),
    ],
)
def test_schemas_that_are_refused(schema, keyword, place):
    e = refused(json_schema=schema)
    assert f"`{keyword}`" in str(e)
    assert (e.keyword, e.place) == (keyword, place)


def test_what_limits_nothing_is_left_out():
    schema = {
        "type": "array",
        "items": {"type": "string", "format": "iri", "maxLength": 2.0},
        "uniqueItems": False,
        "then": {"type": "string"},
        "minContains": 3,
        "x-more": 1,
    }
    before = repr(schema)
    constraint = compile_constraint(TOKENIZER, json_schema=schema)
    assert repr(schema) == before
    assert constraint.n_allowed(list(b'["ab"]')) == 6
    assert constraint.n_allowed(list(b'["abc"]')) == 4


def test_white_space_has_an_end():
    """Some models would never stop to write it."""
    constraint = compile_constraint(TOKENIZER, json_object=True)
    assert constraint.n_allowed(list(b"{" + b"\n" * 100)) == 41


def test_expressions_that_are_refused():
    assert "regular expression" in str(refused(regex="[0-9"))
    assert "regular expression" in str(refused(regex="(?=x)a"))
    assert "allows no text" in str(refused(regex="[^\\x{0}-\\x{10FFFF}]")) or True
    assert "grammar" in str(refused(lark="start: nothing"))
    assert "grammar" in str(refused(lark="start"))


def test_without_the_library(monkeypatch):
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "llguidance":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ikq.UnsupportedError, match=r"pip install 'ikq\[serve\]'"):
        compile_constraint(TOKENIZER, regex="a")
