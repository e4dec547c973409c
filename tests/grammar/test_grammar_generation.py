"""Generation under a constraint: what comes out is what was asked for, drafts or not."""

import json
import re

import pytest

import ikq
from ikq.__main__ import main
from ikq.speculation.verify import Verified

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

MODEL = "tests/data/tiny-moe-bf16.gguf"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "n"],
    "additionalProperties": False,
}
SAMPLING = (
    {"temperature": 0},
    {"seed": 3},
    {"seed": 4, "mirostat": 2},
    {"seed": 5, "top_k": 0, "top_p": 1, "min_p": 0, "temperature": 3},
)


@pytest.fixture(scope="module")
def model():
    with ikq.Model.load(MODEL, n_ctx=512) as model:
        yield model


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_schemas(model, sampling):
    generation = model.generate("import json\n", json_schema=SCHEMA, max_tokens=400, **sampling)
    jsonschema.validate(json.loads(generation.text()), SCHEMA)
    assert generation.reason == "end"


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
@pytest.mark.parametrize(
    "what",
    [{"json_schema": SCHEMA}, {"regex": "(def [a-z]{1,8}\\(\\):\n    pass\n){6}"}],
    ids=["schema", "regex"],
)
def test_drafts_change_nothing(model, sampling, what):
    prompt = "def a():\n    pass\n" * 4
    alone = model.generate(prompt, max_tokens=120, **what, **sampling)
    expected = [piece.token for piece in alone]
    for adapts in (True, False):
        drafted = model.generate(prompt, max_tokens=120, lookup=True, draft_adapt=adapts, **what, **sampling)
        assert [piece.token for piece in drafted] == expected
        assert drafted.reason == alone.reason


def test_drafts_are_cut_where_the_grammar_ends_them(model, monkeypatch):
    drafts = []
    init = Verified.__init__

    def noted(self, logits, draft=()):
        drafts.append(list(draft))
        init(self, logits, draft)

    monkeypatch.setattr(Verified, "__init__", noted)
    options = {"max_tokens": 30, "temperature": 0, "lookup": True, "draft_adapt": False}
    prompt = "def a():\n    pass\n" * 4 + "def a"
    model.generate(prompt, **options).text()
    texts = [model.detokenize(draft) for draft in drafts]
    assert any(":" in text for text in texts)
    drafts.clear()
    held = model.generate(prompt, regex="[a-z() ]{60}", **options)
    assert re.fullmatch("[a-z() ]+", held.text())
    assert not any(re.search("[^a-z() ]", model.detokenize(draft)) for draft in drafts)


def test_the_other_kinds(model):
    assert model.generate("x", grammar='root ::= "yes" | "no"', temperature=0).text() in ("yes", "no")
    assert re.fullmatch("[0-9]{3}", model.generate("x", regex="[0-9]{3}", seed=1).text())
    assert model.generate("x", lark='start: "a" "b"', seed=1).text() == "ab"
    assert model.generate("x", json_object=False, json_schema=None, seed=1, max_tokens=3).text()
    chat = model.chat(
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], regex="[0-9]{3}", seed=1
    )
    assert re.fullmatch("[0-9]{3}", chat.text())


def test_ends_only_where_complete(model):
    """Not even a model that is made to end does so before."""
    end = sorted(model.tokenizer.end_ids)[0]
    biased = model.generate("x", regex="[ab]{5}c?", logit_bias={end: 100.0}, seed=1)
    assert re.fullmatch("[ab]{5}", biased.text())
    assert biased.reason == "end"
    never = model.generate("x", regex="[ab]{5}c?", ignore_eos=True, seed=1)
    assert re.fullmatch("[ab]{5}c", never.text())
    assert never.reason == "end"


def test_several_at_a_time(model):
    """Each has its own constraint."""
    texts = [model.generate("x", regex=f"[{c}]{{4}}", seed=1) for c in "abc"]
    pieces = [[next(g).text for g in texts] for _ in range(4)]
    assert ["".join(p) for p in zip(*pieces, strict=True)] == ["aaaa", "bbbb", "cccc"]


def test_refused_before_anything_is_computed(model, monkeypatch):
    monkeypatch.setattr(ikq.Model, "step", lambda *_: pytest.fail("computed"))
    with pytest.raises(ikq.GrammarError, match="`not`"):
        model.generate("x", json_schema={"not": {}})
    with pytest.raises(ikq.GrammarError, match="line 2"):
        model.chat([{"role": "user", "content": "x"}], grammar="root ::=\n(")
    with pytest.raises(ValueError, match="one of"):
        model.generate("x", regex="a", json_object=True)


def test_command(capsys, tmp_path):
    run = ["run", "-m", MODEL, "-p", "x", "--no-display-prompt", "--no-perf", "--temp", "0", "-n", "60"]
    (tmp_path / "schema.json").write_text('{"type": "integer", "minimum": 10, "maximum": 19}')
    (tmp_path / "grammar.gbnf").write_text('root ::= "yes" | "no"')
    for options, pattern in (
        (["--json-schema-file", str(tmp_path / "schema.json")], "1[0-9]"),
        (["-j", '{"enum": ["a", "b"]}'], '"[ab]"'),
        (["--grammar-file", str(tmp_path / "grammar.gbnf")], "yes|no"),
        (["--grammar", 'root ::= "z"{3}'], "zzz"),
        (["--regex", "[0-9]{2}"], "[0-9]{2}"),
    ):
        assert main([*run, *options]) == 0
        assert re.fullmatch(pattern, capsys.readouterr().out.strip())
    for options, message in (
        (["--grammar", "root ::="], None),
        (["--grammar", "root"], "line 1, column 5"),
        (["-j", "{"], "--json-schema is not JSON"),
        (["-j", '{"not": {}}'], "`not`"),
        (["--regex", "["], "regular expression"),
    ):
        code = main([*run, *options])
        assert code == (0 if message is None else 2)
        assert message is None or message in capsys.readouterr().err
