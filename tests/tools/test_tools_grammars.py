"""Calls of tools under their grammars: what can be written is a call, and its arguments are valid."""

import json
from dataclasses import replace

import pytest
from form_vocabs import marks_of, tokenizer_of
from replies import NOW, SCHEMAS, TOOLS, WEATHER, parsed, values
from walks import text_of, walk

import ikq
from ikq.text.tools import form_of
from ikq.text.tools.forms import FORMS, GENERIC
from ikq.text.tools.spelling import Harmony, ObjectCalls, TaggedCalls

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

BY_NAME = {form.name: form for form in [*FORMS, GENERIC]}


def closers(form):
    """Texts that close something."""
    spelling = form.spelling
    texts = ['"', "}", "]", spelling.call[1], spelling.section[1], *(form.reasoning or ())[1:]]
    if isinstance(spelling, ObjectCalls):
        texts += [spelling.quote]
    if isinstance(spelling, TaggedCalls):
        texts += [spelling.end, *(spelling.value[1].replace("{key}", key) for key in WEATHER["properties"])]
    if isinstance(spelling, Harmony):
        texts += ["<|end|><|start|>assistant"]
    return [text for text in texts if text]


def checked(form, text, prompt=""):
    """Names of the functions that a text calls."""
    content, _, calls = parsed(form, text, prompt=prompt)
    assert calls, text
    for name, arguments in values(calls):
        jsonschema.validate(arguments, SCHEMAS[name])
    return content, [name for name, _, _ in calls]


@pytest.mark.parametrize("control", [True, False], ids=["control", "text"])
@pytest.mark.parametrize("name", BY_NAME)
def test_calls_that_are_required(name, control):
    """Marks are control tokens in one vocabulary, and plain text in the other."""
    form = replace(BY_NAME[name], tokenizer=tokenizer_of(BY_NAME[name], control=control))
    tokenizer = form.tokenizer
    n_calls = 0
    for seed in range(6):
        constraint = form.constraint(TOOLS, "required")
        tokens = walk(constraint, tokenizer, seed, closing=closers(form))
        assert constraint.is_complete
        content, names = checked(form, text_of(tokenizer, tokens))
        assert not content
        n_calls += len(names)
    assert n_calls >= 6
    for seed in range(2):
        constraint = form.constraint(TOOLS, "required", name="now")
        _, names = checked(form, text_of(tokenizer, walk(constraint, tokenizer, seed, closing=closers(form))))
        assert names == ["now"]


@pytest.mark.parametrize("control", [True, False], ids=["control", "text"])
@pytest.mark.parametrize("name", BY_NAME)
def test_calls_that_a_model_decides_on(name, control):
    """Free until the trigger; from there on it is a call."""
    form = replace(BY_NAME[name], tokenizer=tokenizer_of(BY_NAME[name], control=control))
    tokenizer = form.tokenizer
    free = form.constraint(TOOLS)
    for token in tokenizer.encode("I look."):
        mask = free.mask()
        assert mask is None or mask[token]
        free.accept(token)
    assert free.is_complete
    assert not free.must_stop
    trigger = " to=functions." if isinstance(form.spelling, Harmony) else form.spelling.trigger
    for token in tokenizer.encode(trigger, parse_special=True):
        assert free.n_allowed([token]) == 1
        free.accept(token)
    assert not free.is_complete
    text = text_of(tokenizer, walk(free, tokenizer, 3, n_free=0, closing=closers(form)))
    if isinstance(form.spelling, Harmony):
        checked(form, f"<|channel|>commentary{trigger}{text}")
    else:
        assert checked(form, f"I look.{trigger}{text}")[0] == "I look."


def test_reasoning_is_free():
    form = replace(BY_NAME["hermes"], tokenizer=tokenizer_of(BY_NAME["hermes"]))
    encode = form.tokenizer.encode
    thoughts = encode('I may write <tool_call> and "', parse_special=True)
    for choice in ("auto", "required"):
        constraint = form.constraint(TOOLS, choice, prompt="<think>\n")
        assert constraint.n_allowed(thoughts) == len(thoughts)
        for token in [*thoughts, *encode("</think>\n", parse_special=True)]:
            constraint.accept(token)
        assert constraint.is_complete == (choice == "auto")
        calls = encode('<tool_call>\n{"name": "now"', parse_special=True)
        assert constraint.n_allowed(calls) == len(calls)
        said = encode("No.")
        assert constraint.n_allowed(said) == (len(said) if choice == "auto" else 0)
    # the model opens it itself
    constraint = form.constraint(TOOLS, "required")
    opened = encode("<think>Hm.</think><tool_call>\n", parse_special=True)
    assert constraint.n_allowed(opened) == len(opened)
    assert constraint.n_allowed(encode("Hm.")) == 0
    # and may not end in it
    for token in opened[:2]:
        constraint.accept(token)
    assert not constraint.mask()[sorted(form.tokenizer.end_ids)].any()


def test_a_token_that_goes_on_behind_the_trigger():
    """It is allowed if what it says there is."""
    form = replace(BY_NAME["hermes"], tokenizer=tokenizer_of(BY_NAME["hermes"], control=False))
    constraint = form.constraint(TOOLS)
    for token in form.tokenizer.encode("<tool_call"):
        constraint.accept(token)
    good, bad = form.tokenizer.id_of(">Ċ"), form.tokenizer.id_of('">')
    assert bad is None
    assert constraint.n_allowed([good]) == 1
    constraint.accept(good)
    assert constraint.n_allowed(form.tokenizer.encode('{"name')) == len(form.tokenizer.encode('{"name'))
    assert constraint.n_allowed(form.tokenizer.encode("x")) == 0


def tool(parameters, **more):
    return [{"type": "function", "function": {"name": "f", "parameters": parameters, **more}}]


def test_schemas_that_cannot_be_enforced():
    form = replace(BY_NAME["hermes"], tokenizer=tokenizer_of(BY_NAME["hermes"]))
    odd = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}, "required": ["x"]}
    # as much as can be
    grammar = form.grammar(tool(odd), "required")
    assert '"required": ["x"]' in grammar
    assert "uniqueItems" not in grammar
    with pytest.raises(ikq.GrammarError, match="`f` is strict.*`uniqueItems` at /properties/x") as e:
        form.constraint(tool(odd, strict=True))
    assert e.value.keyword == "uniqueItems"
    assert e.value.place == "tools/0/function/parameters/properties/x/uniqueItems"
    with pytest.raises(ikq.GrammarError, match="names the function `g`"):
        form.constraint(TOOLS, "required", name="g")
    assert form.constraint(TOOLS, "none") is None
    assert form.constraint([]) is None
    assert form.grammar(TOOLS, "none") is None


STRICT = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[a-c]+$|^x", "maxLength": 5},
        "note": {"type": "string", "minLength": 2, "maxLength": 4},
        "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "kind": {"type": "string", "const": "k"},
    },
    "required": ["code", "note", "n", "kind"],
    "additionalProperties": False,
}
TAGGED = [name for name, form in BY_NAME.items() if isinstance(form.spelling, TaggedCalls)]


@pytest.mark.parametrize("control", [True, False], ids=["control", "text"])
@pytest.mark.parametrize("name", TAGGED)
def test_strict_texts_between_tags(name, control):
    """They are no JSON, and what their schema says holds all the same."""
    tokenizer = tokenizer_of(BY_NAME[name], control=control)
    form = replace(BY_NAME[name], tokenizer=tokenizer, reasoning=None)
    spelling = form.spelling
    closing = [spelling.value[1].replace("{key}", key) for key in STRICT["properties"]] + ["null", "aa"]
    tools = tool(STRICT, strict=True)
    for seed in range(4):
        constraint = form.constraint(tools, "required", parallel=False)
        text = text_of(form.tokenizer, walk(constraint, tokenizer, seed, n_most=900, closing=closing))
        assert constraint.is_complete, text
        ((_, arguments),) = values(parsed(form, text, tools=tools)[2])
        jsonschema.validate(arguments, STRICT)


@pytest.mark.parametrize(
    ("keywords", "keyword"),
    [
        ({"type": "string", "format": "date"}, "format"),
        ({"type": "string", "pattern": "(^a|b)c"}, "pattern"),
        ({"type": "string", "enum": ["a", "b"], "maxLength": 1}, "maxLength"),
        ({"type": "string", "anyOf": [{"minLength": 2}, {"maxLength": 1}]}, "anyOf"),
    ],
)
def test_strict_texts_that_cannot_be_enforced_between_tags(keywords, keyword):
    form = replace(BY_NAME["glm"], tokenizer=tokenizer_of(BY_NAME["glm"]))
    parameters = {"type": "object", "properties": {"x": keywords}, "required": ["x"]}
    with pytest.raises(ikq.GrammarError, match=f"`f` is strict.*`{keyword}` at /properties/x") as e:
        form.constraint(tool(parameters, strict=True))
    assert e.value.keyword == keyword
    form.constraint(tool(parameters))
    with pytest.raises(ikq.GrammarError, match="`minProperties`"):
        form.constraint(tool({"type": "object", "properties": {}, "minProperties": 1}, strict=True))


def test_deep_schemas():
    """Of a function that is not strict only JSON is left."""
    form = replace(BY_NAME["hermes"], tokenizer=tokenizer_of(BY_NAME["hermes"]))
    deep = {"type": "integer"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    constraint = form.constraint(tool({"type": "object", "properties": {"x": deep}}), "required")
    assert walk(constraint, form.tokenizer, 1, closing=closers(form))
    with pytest.raises(ikq.GrammarError, match="nests too deeply"):
        form.constraint(tool({"type": "object", "properties": {"x": deep}}, strict=True))


def test_many_tools():
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": WEATHER if i % 2 else NOW}}
        for i in range(200)
    ]
    form = replace(BY_NAME["hermes"], tokenizer=tokenizer_of(BY_NAME["hermes"]))
    constraint = form.constraint(tools, "required", name="f199")
    text = text_of(form.tokenizer, walk(constraint, form.tokenizer, 1, closing=closers(form)))
    assert parsed(form, text, tools=tools)[2][0][0] == "f199"
    constraint = form.constraint(tools, "required")
    assert '"f' in text_of(form.tokenizer, walk(constraint, form.tokenizer, 1, closing=closers(form)))


@pytest.mark.parametrize("name", ["hermes", "function_tags", "glm", "kimi", "harmony", "llama3"])
def test_tools_that_are_too_many_to_enforce_all_of(name):
    """Names hold, and arguments are free where nothing is strict."""
    form = replace(BY_NAME[name], tokenizer=tokenizer_of(BY_NAME[name]))
    properties = {f"p{i}": {"enum": [f"v{i}{j}" for j in range(12)]} for i in range(40)}
    big = {"type": "object", "properties": properties}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": big | {"title": str(i)}}}
        for i in range(150)
    ]
    precise = form.grammar(tools, "required")
    constraint = form.constraint(tools, "required", parallel=False)
    loose = form.grammar(tools, "required", loose=True)
    assert len(loose) < len(precise) / 10
    assert constraint.n_allowed(form.tokenizer.encode("x")) == 0


@pytest.mark.parametrize("name", ["hermes", "function_tags", "glm", "minimax_m2", "deepseek_v3.2"])
def test_free_arguments(name):
    from ikq.text.tools.grammars import constraint as compiled

    form = replace(BY_NAME[name], tokenizer=tokenizer_of(BY_NAME[name]))
    for seed in range(4):
        lark = form.grammar(TOOLS, "required", loose=True, parallel=False)
        constraint = compiled(form, lark, enforced=True, prompt="")
        text = text_of(form.tokenizer, walk(constraint, form.tokenizer, seed, closing=closers(form)))
        _, _, calls = parsed(form, text)
        assert calls[0][0] in SCHEMAS, text


def test_answers_behind_reasoning():
    """A schema is for the answer: a model may think before it."""
    from ikq.grammar import compile_constraint

    for name, opened in (("hermes", "Hm.</think>\n\n"), ("harmony", "<|channel|>final<|message|>")):
        form = replace(BY_NAME[name], tokenizer=tokenizer_of(BY_NAME[name]))
        inner = compile_constraint(form.tokenizer, regex="[0-9]+")
        prompt = "<think>\n" if name == "hermes" else ""
        constraint = form.answer(inner, prompt)
        tokens = form.tokenizer.encode(f"{opened}12", parse_special=True)
        assert constraint.n_allowed(tokens) == len(tokens)
        for token in tokens[:-1]:
            constraint.accept(token)
        assert constraint.n_allowed(form.tokenizer.encode("x")) == 0
    plain = replace(BY_NAME["llama3"], tokenizer=tokenizer_of(BY_NAME["llama3"]))
    inner = compile_constraint(plain.tokenizer, regex="[0-9]+")
    assert plain.answer(inner) is inner


@pytest.mark.parametrize("control", [True, False], ids=["control", "text"])
def test_answers_on_channels(control):
    """A text that is on no channel would be an answer as well: there is none."""
    from ikq.grammar import compile_constraint

    form = replace(BY_NAME["harmony"], tokenizer=tokenizer_of(BY_NAME["harmony"], control=control))
    inner = compile_constraint(form.tokenizer, regex="[0-9]+")
    start = "<|start|>assistant"
    for seed in range(4):
        for prompt in (
            start,
            f"{start}<|channel|>analysis<|message|>",
            f"{start}<|channel|>final<|message|>1",
        ):
            constraint = form.answer(inner.clone(), prompt)
            assert not constraint.is_complete
            tokens = walk(constraint, form.tokenizer, seed, closing=closers(form))
            assert constraint.is_complete
            content, _, calls = parsed(form, text_of(form.tokenizer, tokens), prompt=prompt)
            assert content.isdigit()
            assert not calls
    free = form.answer(inner, start)
    assert free.n_allowed(form.tokenizer.encode("Hello")) == 0
    allowed = form.tokenizer.encode("<|channel|>analysis<|message|>Hm.<|end|>", parse_special=True)
    assert free.n_allowed(allowed) == len(allowed)


@pytest.mark.parametrize("name", BY_NAME)
def test_an_answer_of_a_form_or_calls(name):
    form = replace(BY_NAME[name], tokenizer=tokenizer_of(BY_NAME[name]))
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [12, 34]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    is_harmony = isinstance(form.spelling, Harmony)
    calls = "<|channel|>commentary to=functions." if is_harmony else form.spelling.trigger
    answer = '<|channel|>final<|message|>{"n"' if is_harmony else '{"n"'
    for begin in (calls, answer):
        constraint = form.constraint(TOOLS, json_schema=schema)
        assert not constraint.is_complete
        tokens = form.tokenizer.encode(begin, parse_special=True)
        for token in tokens:
            assert constraint.n_allowed([token]) == 1
            constraint.accept(token)
        tokens += walk(constraint, form.tokenizer, 5, n_free=4, closing=closers(form))
        assert constraint.is_complete
        text = text_of(form.tokenizer, tokens)
        if begin == calls:
            assert not checked(form, text)[0]
        else:
            jsonschema.validate(json.loads(parsed(form, text)[0]), schema)
    constraint = form.constraint(TOOLS, json_schema=schema)
    assert constraint.n_allowed(form.tokenizer.encode("I look.")) == 0
    bare = form.tokenizer.encode('{"name": "now", "parameters": {}}')
    assert (constraint.n_allowed(bare) == len(bare)) == (name == "llama3")
    with pytest.raises(ikq.GrammarError, match="`not`"):
        form.constraint(TOOLS, json_schema={"not": {}})


def test_replies_that_are_json():
    """What a system message asks for: calls or an answer, nothing else."""
    form = replace(BY_NAME["hermes"].as_json(), tokenizer=tokenizer_of(BY_NAME["hermes"]))
    tokenizer = form.tokenizer

    def said(constraint, begin, seed):
        tokens = tokenizer.encode(begin)
        assert constraint.n_allowed(tokens) == len(tokens)
        for token in tokens:
            constraint.accept(token)
        tokens += walk(constraint, tokenizer, seed, n_free=8, closing=[*closers(form), '"}'])
        assert constraint.is_complete
        return text_of(tokenizer, tokens)

    for seed in range(4):
        assert not checked(form, said(form.constraint(TOOLS), '{"tool_calls": [', seed))[0]
        assert not checked(form, said(form.constraint(TOOLS, "required"), "", seed))[0]
        text = said(form.constraint(TOOLS), '{"response": "', seed)
        assert parsed(form, text)[0] == json.loads(text)["response"]
        assert not parsed(form, text)[2]
    answer = tokenizer.encode('{"response": "')
    assert form.constraint(TOOLS, "required").n_allowed(answer) < len(answer)
    assert form.constraint(TOOLS).n_allowed(tokenizer.encode("Hello")) == 0
    schema = {"type": "object", "properties": {"n": {"enum": [12, 34]}}, "required": ["n"]}
    text = said(form.constraint(TOOLS, json_schema=schema), '{"response": {"n": ', 1)
    jsonschema.validate(json.loads(parsed(form, text)[0]), schema)
    one = said(form.constraint(TOOLS, "required", name="now", parallel=False), "", 1)
    assert checked(form, one)[1] == ["now"]
    # thoughts are free
    constraint = form.constraint(TOOLS, prompt="<think>")
    thoughts = tokenizer.encode("Hm.</think>", parse_special=True)
    assert constraint.n_allowed(thoughts) == len(thoughts)


def test_form_of_a_template():
    form = form_of("{% for m in messages %}<tool_call>{{ m.content }}{% endfor %}<think>")
    assert (form.name, form.reasoning) == ("hermes", ("<think>", "</think>"))
    assert form_of("{{ messages[0].content }}").name == "generic"
    # the signs may be only in what the template makes
    marks = "{% set x = '<tool' + '_call>' %}{% for m in messages %}{{ x }}{{ m.content }}{% endfor %}"
    assert form_of(marks).name == "hermes"


def test_marks_of_forms_are_not_mixed_up():
    names = [form.name for form in FORMS]
    assert len(set(names)) == len(names)
    for form in FORMS:
        assert form.spelling.trigger or isinstance(form.spelling, Harmony)
        assert marks_of(form) or form.name == "firefunction"
