"""Replies in the forms that models are taught: content, reasoning and calls apart, however they are cut."""

import json

import pytest
from form_vocabs import marks_of
from hypothesis import given
from hypothesis import strategies as st
from replies import TOOLS, parsed, values

from ikq.text.tools.forms import FORMS, GENERIC

BY_NAME = {form.name: form for form in [*FORMS, GENERIC, GENERIC.as_json()]}
OSLO, NOW = ("get_weather", {"city": "Oslo", "days": 2}), ("now", {})
DS = "｜tool▁"

# name of the form, prompt, reply; content, reasoning, calls
REPLIES = (
    ("hermes", "", "Hello.", "Hello.", "", []),
    ("hermes", "", " \nHello \n", " \nHello \n", "", []),
    (
        "hermes",
        "",
        '<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", '
        '"days": 2}}\n</tool_call>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "I look.",
        "Hm.",
        [OSLO, NOW],
    ),
    ("hermes", "<think>\n", 'Hm.</think><tool_call>{"name":"now"}</tool_call>', "", "Hm.", [NOW]),
    # arguments first, as a text, with more keys than known; without an end
    (
        "hermes",
        "",
        '<tool_call>{"arguments": {"city": "Oslo", "days": 2}, "x": [1, {"y": "}"}], "name": "get_weather"}',
        "",
        "",
        [OSLO],
    ),
    (
        "hermes",
        "",
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 2}"}</tool_call>',
        "",
        "",
        [OSLO],
    ),
    # no calls, only the words
    ("hermes", "", "Write <tool_call> and a name.", "Write <tool_call> and a name.", "", []),
    ("hermes", "", "<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", "", []),
    ("hermes", "", "a <tool", "a <tool", "", []),
    (
        "function_tags",
        "",
        "I look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n2\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "I look.",
        "",
        [OSLO, NOW],
    ),
    # texts keep their lines; JSON that is none is a text
    (
        "function_tags",
        "",
        '<tool_call>\n<function=get_weather>\n<parameter=city>\n\n a\n <b>"\n\n</parameter>\n<parameter=days>\ntwo\n'
        '</parameter>\n<parameter=where>\n{"x": NaN}\n</parameter></function></tool_call>',
        "",
        "",
        [("get_weather", {"city": '\n a\n <b>"\n', "days": "two", "where": '{"x": NaN}'})],
    ),
    (
        "glm",
        "",
        "<think>Hm.</think>\nI look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        "I look.",
        "Hm.",
        [OSLO, NOW],
    ),
    (
        "gemma4",
        "",
        '<|channel>thought\nHm.\n<channel|>I look.<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>,days:2}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>",
        "I look.",
        "Hm.",
        [OSLO, NOW],
    ),
    # texts have all but their mark; keys have marks or none; values that are none are texts
    (
        "gemma4",
        "",
        '<|tool_call>call:get_weather{ city : <|"|>a "b", {c}:\n<|"|> ,where:{<|"|>x<|"|>:1.5,y:[<|"|>a<|"|>,true,[]]},'
        'unit:C,"more":"d"}',
        "",
        "",
        [
            (
                "get_weather",
                {
                    "city": 'a "b", {c}:\n',
                    "where": {"x": 1.5, "y": ["a", True, []]},
                    "unit": "C",
                    "more": "d",
                },
            )
        ],
    ),
    ("gemma4", "", "<|tool_call>what<tool_call|>", "<|tool_call>what<tool_call|>", "", []),
    (
        "minimax_m2",
        "<think>\n",
        'Hm.\n</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
        "",
        "Hm.",
        [OSLO, NOW],
    ),
    (
        "minimax_m3",
        "<mm:think>",
        'Hm.</mm:think>]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="get_weather">]<]minimax[>[<city>Oslo'
        "]<]minimax[>[</city>]<]minimax[>[<where>]<]minimax[>[<x>1]<]minimax[>[</x>]<]minimax[>[<y>]<]minimax[>[<item>a"
        "]<]minimax[>[</item>]<]minimax[>[<item>2]<]minimax[>[</item>]<]minimax[>[</y>]<]minimax[>[</where>"
        "]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
        "",
        "Hm.",
        [("get_weather", {"city": "Oslo", "where": {"x": 1, "y": ["a", 2]}})],
    ),
    (
        "deepseek",
        "",
        f'I look.<{DS}calls▁begin｜><{DS}call▁begin｜>get_weather<{DS}sep｜>{{"city": "Oslo", "days": 2}}'
        f"<{DS}call▁end｜><{DS}call▁begin｜>now<{DS}sep｜>{{}}<{DS}call▁end｜><{DS}calls▁end｜>",
        "I look.",
        "",
        [OSLO, NOW],
    ),
    (
        "deepseek_r1",
        "<think>\n",
        f"Hm.</think><{DS}calls▁begin｜><{DS}call▁begin｜>function<{DS}sep｜>get_weather\n```json\n"
        f'{{"city": "Oslo",\n"days": 2}}\n```<{DS}call▁end｜>\n<{DS}call▁begin｜>function<{DS}sep｜>now\n```json\n{{}}\n'
        f"```<{DS}call▁end｜><{DS}calls▁end｜>",
        "",
        "Hm.",
        [OSLO, NOW],
    ),
    (
        "deepseek_v3.2",
        "",
        'I look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
        'string="true">Oslo</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        "I look.",
        "",
        [OSLO, NOW],
    ),
    (
        "kimi",
        "",
        '<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": '
        '"Oslo", "days": 2}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        "",
        "",
        [OSLO, NOW],
    ),
    (
        "mistral",
        "",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}, "id": "abcdefghi"}, '
        '{"name": "now", "arguments": {}}]',
        "",
        "",
        [OSLO, NOW],
    ),
    (
        "mistral_args",
        "",
        '[THINK]Hm.[/THINK]I look.[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Oslo", "days": 2}'
        "[TOOL_CALLS]now[ARGS]{}",
        "I look.",
        "Hm.",
        [OSLO, NOW],
    ),
    ("llama3", "", '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 2}}', "", "", [OSLO]),
    ("llama3", "", '<|python_tag|>{"name": "now", "parameters": {}}', "", "", [NOW]),
    # only functions that there are; other JSON is an answer
    ("llama3", "", '{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', "", []),
    ("llama3", "", ' {"names": [1]} ', ' {"names": [1]} ', "", []),
    (
        "harmony",
        "",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo", '
        '"days": 2}',
        "I look.",
        "Hm.",
        [OSLO],
    ),
    (
        "harmony",
        "",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.now<|channel|>commentary json"
        "<|message|>{}<|call|>",
        "",
        "Hm.",
        [NOW],
    ),
    ("harmony", "", "<|channel|>final<|message|>Hello.<|return|>", "Hello.", "", []),
    ("harmony", "", "Hello.", "Hello.", "", []),
    ("harmony", "<|start|>assistant<|channel|>final<|message|>", "Hello.", "Hello.", "", []),
    (
        "command",
        "<|START_THINKING|>",
        'Hm.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
        '{"city": "Oslo", "days": 2}},\n    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        "",
        "Hm.",
        [OSLO, NOW],
    ),
    ("command", "", "<|START_RESPONSE|>Hello.<|END_RESPONSE|>", "Hello.", "", []),
    ("apertus", "", '<|tools_prefix|>[{"now": {}}]<|tools_suffix|>', "", "", [NOW]),
    ("functionary", "", "I look.<function=now>{}</function>", "I look.", "", [NOW]),
    ("minimax_m1", "", '<tool_calls>\n{"name": "now", "arguments": {}}\n</tool_calls>', "", "", [NOW]),
    (
        "json",
        "<think>",
        'Hm.</think>{"tool_calls": [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}, '
        '{"name": "now", "arguments": {}}]}\n',
        "",
        "Hm.",
        [OSLO, NOW],
    ),
    (
        "json",
        "",
        ' {"response": "a\\n\\"b\\" \\u00e9 \\ud83d\\ude00 \\ud83d \\u2028<tool_call>"}',
        'a\n"b" \u00e9 \U0001f600 \ufffd \u2028<tool_call>',
        "",
        [],
    ),
    ("json", "", '{"response": {"n": [1, "x"]}}', '{"n": [1, "x"]}', "", []),
    ("json", "", '{"other": 1}', '{"other": 1}', "", []),
    ("json", "", "Hello.", "Hello.", "", []),
    ("generic", "", '<tool_call>{"name": "now", "arguments": {}}</tool_call>', "", "", [NOW]),
)


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
def test_replies(size):
    for name, prompt, text, content, reasoning, calls in REPLIES:
        sizes = [] if size is None else [size] * (len(text) // size)
        found = parsed(BY_NAME[name], text, prompt=prompt, sizes=sizes)
        assert (found[0], found[1], values(found[2])) == (content, reasoning, calls), (name, text)


def is_beginning(part, whole):
    """Whether calls are those of a longer text, the last one as far as it came."""
    return len(part) <= len(whole) and all(
        a[0] == b[0] and (a[2] == b[2] if i < len(part) - 1 else b[2].startswith(a[2]))
        for i, (a, b) in enumerate(zip(part, whole, strict=False))
    )


@pytest.mark.parametrize("name", sorted({reply[0] for reply in REPLIES if reply[5]}))
def test_a_reply_that_is_cut_has_no_tags(name):
    """Wherever a limit cuts a reply with calls: content, thoughts and calls are beginnings of what they were to be."""
    form = BY_NAME[name]
    for _, prompt, text, content, reasoning, calls in [r for r in REPLIES if r[0] == name and r[5]]:
        whole = parsed(form, text, prompt=prompt)
        for n in range(len(text)):
            found = parsed(form, text[:n], prompt=prompt, is_cut=True, sizes=[1] * (n // 2))
            assert content.startswith(found[0].rstrip()), text[:n]
            assert is_beginning(found[2], whole[2]), (text[:n], found[2])
            assert reasoning.startswith(found[1]), text[:n]
        assert len(calls) == len(whole[2])


def test_what_a_cut_leaves():
    hermes = BY_NAME["hermes"]
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os'
    assert parsed(hermes, f"I look.\n{text}", is_cut=True)[::2] == (
        "I look.",
        [("get_weather", "new", '{"city": "Os')],
    )
    assert parsed(hermes, 'I look.\n<tool_call>\n{"name": "get_w', is_cut=True) == ("I look.", "", [])
    assert parsed(hermes, "I look. <tool_c", is_cut=True)[0] == "I look. "
    assert parsed(hermes, "I look. <b", is_cut=True)[0] == "I look. <b"
    # the model itself ended there: it is what it said
    assert parsed(hermes, "I look. <tool_c")[0] == "I look. <tool_c"
    llama3 = BY_NAME["llama3"]
    assert parsed(llama3, '{"name": "get_weather", "par', is_cut=True) == (
        "",
        "",
        [("get_weather", "new", "")],
    )
    assert parsed(llama3, '{"name": "get_we', is_cut=True) == ("", "", [])
    assert parsed(llama3, '{"city": "Os', is_cut=True)[0] == '{"city": "Os'
    json_ = BY_NAME["json"]
    assert parsed(json_, '{"tool_calls": [{"name": "get_we', is_cut=True) == ("", "", [])
    assert parsed(json_, '{"tool_cal', is_cut=True) == ("", "", [])
    assert parsed(json_, '{"response": "one \\\\ two\\', is_cut=True)[0] == "one \\ two"
    tagged = BY_NAME["function_tags"]
    head = "<tool_call>\n<function=get_weather>\n<parameter=city>\n"
    assert parsed(tagged, f"{head}Oslo\n</para", is_cut=True)[2] == [("get_weather", "new", '{"city": "Oslo')]
    assert parsed(tagged, f"{head}Oslo\n</parameter>\n<parameter=days>\n1", is_cut=True)[2] == [
        ("get_weather", "new", '{"city": "Oslo", "days": ')
    ]


def test_ids_of_the_model():
    _, _, calls = parsed(BY_NAME["kimi"], REPLIES[[r[0] for r in REPLIES].index("kimi")][2])
    assert [call[1] for call in calls] == ["functions.get_weather:0", "functions.now:1"]
    _, _, calls = parsed(
        BY_NAME["mistral_args"], "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]now[ARGS]{}"
    )
    assert [call[1] for call in calls] == ["abcdefghi", "new"]


def test_calls_are_content_without_tools():
    text = '<think>a</think><tool_call>\n{"name": "now", "arguments": {}}\n</tool_call> '
    assert parsed(BY_NAME["hermes"], text, tools=[]) == (text[len("<think>a</think>") :], "a", [])


def test_reasoning_as_content():
    text = "<think>\na\n</think>\n\nb"
    assert parsed(BY_NAME["hermes"], text, separates_reasoning=False) == (text, "", [])
    harmony = "<|channel|>analysis<|message|>a<|end|>"
    assert parsed(BY_NAME["harmony"], harmony, separates_reasoning=False) == (harmony, "", [])


def test_arguments_come_as_they_are_written():
    parser = BY_NAME["hermes"].parser("", TOOLS)
    assert not parser.feed("<tool_call>")
    deltas = parser.feed('{"name": "get_weather", "arguments": {"city": "Os')
    assert deltas[0].name == "get_weather"
    assert "".join(d.text for d in deltas) == '{"city": "Os'
    assert "".join(d.text for d in parser.feed('lo", ')) == 'lo", '
    parser = BY_NAME["function_tags"].parser("", TOOLS)
    deltas = parser.feed("<tool_call>\n<function=get_weather>\n<parameter=city>\nOs")
    assert "".join(d.text for d in deltas) == '{"city": "Os'
    assert "".join(d.text for d in parser.feed("lo <")) == "lo "


def pieces_of(form):
    """Texts that replies in a form are made of."""
    json_ = [
        '{"name": "now", "arguments": {}}',
        '{"now": {}}',
        '{"city": "a"}',
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
        ":",
    ]
    other = [
        "get_weather",
        "now",
        "city",
        " ",
        "\n",
        "a",
        "<",
        "<think>",
        "</think>",
        "\\",
        "to=functions.now",
    ]
    spelling = form.spelling
    written = [*spelling.section, *spelling.call, *(form.reasoning or ()), *form.dropped, spelling.trigger]
    for name in ("name", "key", "value"):
        found = getattr(spelling, name, ())
        written += [found] if isinstance(found, str) else list(found)
    return [*json_, *other, *marks_of(form), *(text for text in written if text)]


@pytest.mark.parametrize("name", BY_NAME)
@given(data=st.data())
def test_cuts_make_no_difference(name, data):
    form = BY_NAME[name]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces_of(form)), max_size=14)))
    sizes = data.draw(st.lists(st.integers(1, 9), max_size=40))
    whole = parsed(form, text)
    assert parsed(form, text, sizes=sizes) == whole
    assert parsed(form, text, sizes=[1] * len(text)) == whole


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8), sizes=st.lists(st.integers(1, 5), max_size=60))  # fmt: skip
def test_any_arguments(value, sizes):
    arguments = {"x": value}
    call = json.dumps({"name": "now", "arguments": arguments})
    text = f"<tool_call>\n{call}\n</tool_call>"
    _, _, calls = parsed(BY_NAME["hermes"], text, sizes=sizes)
    assert values(calls) == [("now", arguments)]


@given(text=st.text(), sizes=st.lists(st.integers(1, 5), max_size=60))
def test_any_text_between_tags(text, sizes):
    reply = f"<tool_call>\n<function=get_weather>\n<parameter=city>\n{text}\n</parameter>\n</function>\n</tool_call>"
    _, _, calls = parsed(BY_NAME["function_tags"], reply, sizes=sizes)
    assert values(calls) == [("get_weather", {"city": text})]
