"""Messages made to fit templates that are made up: one limit each."""

import pytest

import ikq
from ikq.text.chat import CHATML
from ikq.text.templates import abilities_of, fit
from ikq.text.tools import form_of

USER = {"role": "user", "content": "Hello"}
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": "y"}'}}
TOOL = {"type": "function", "function": {"name": "f"}}

ROLES = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
LISTS = "{% for m in messages %}[{{ m.role }}:{% for p in m.content %}{{ p.text }}|{% endfor %}]{% endfor %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('must alternate') }}{% endif %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
)
CALLS = (
    "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}{% for m in messages %}[{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.id }} {{ c.function.name }} {{ c.function.arguments|tojson }}){% endfor %}]"
    "{% endfor %}"
)
TEXT_CALLS = CALLS.replace("c.function.arguments|tojson", "'' + c.function.arguments")
SINGLE = CALLS.replace(
    "{% for m in", "{% for m in messages if m.tool_calls and m.tool_calls|length > 1 %}{{ raise_exception('one') }}{% endfor %}{% for m in"
)  # fmt: skip
NULL = CALLS.replace("{{ m.content }}", "{% if m.content is not none %}{{ m.content }}{% endif %}")
ONLY_TOOLS = CALLS.replace("m.tool_calls or []", "[]")


def rendered(source, messages, tools=None, **options):
    template = ikq.ChatTemplate(source)
    return fit(template, messages, tools, form=form_of(template)).render(**options)


def test_contents():
    assert rendered(ROLES, [{"role": "user", "content": PARTS}]) == "[user:one\ntwo]"
    assert rendered(ROLES, [{"role": "user", "content": None}]) == "[user:]"
    assert rendered(LISTS, [USER]) == "[user:Hello|]"
    assert rendered(ROLES, [{"role": "user", "content": ["a", PARTS[1]]}]) == "[user:a\ntwo]"
    assert (
        rendered(ROLES, [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}])
        == "[assistant:No.]"
    )


def test_what_is_no_text():
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(ikq.TemplateLimit, match=r"messages\[1\] has a part of the type `image_url`"):
        rendered(ROLES, [USER, {"role": "user", "content": image}])
    for wrong in (3, {"text": "x"}):
        with pytest.raises(ikq.FormatError, match=r"messages\[0\]"):
            rendered(ROLES, [{"role": "user", "content": wrong}])
    with pytest.raises(ikq.FormatError, match="no role"):
        rendered(ROLES, [{"content": "x"}])


def test_what_is_malformed():
    for messages in (
        [3],
        [{"role": "assistant", "tool_calls": 3}],
        [{"role": "assistant", "tool_calls": ["x"]}],
    ):
        with pytest.raises(ikq.FormatError, match=r"messages\[0\]"):
            rendered(CALLS, messages)
    for tool in (
        3,
        {},
        {"function": 3},
        {"name": 3},
        {"name": "f", "parameters": 3},
        {"name": "f", "parameters": {"properties": []}},
    ):
        with pytest.raises(ikq.FormatError, match=r"tools\[0\]"):
            rendered(CALLS, [USER], [tool])


def test_deep_values():
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(ikq.FormatError, match="arguments are not JSON"):
        rendered(
            CALLS, [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}]
        )
    schema = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(ikq.FormatError):
        rendered(CALLS, [USER], [{"name": "f", "parameters": schema}])


def test_system_messages():
    two = [{"role": "system", "content": "A"}, {"role": "developer", "content": "B"}, USER]
    assert rendered(ROLES, two) == "[system:A\n\nB][user:Hello]"
    # no place for one: the user says it
    assert rendered(ALTERNATING, two) == "[user:A\n\nB\n\nHello]"
    with pytest.raises(ikq.TemplateLimit, match="no place for a system message"):
        rendered(ALTERNATING, two[:1])


def test_turns_that_alternate():
    messages = [USER, {"role": "user", "content": "again"}, {"role": "assistant", "content": "Yes"}]
    assert rendered(ALTERNATING, messages) == "[user:Hello\n\nagain][assistant:Yes]"
    assert rendered(ROLES, messages) == "[user:Hello][user:again][assistant:Yes]"


def test_calls():
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert rendered(CALLS, messages, [TOOL]).startswith('<f>[user:Hello][assistant:(call_1 f {"x": "y"})]')
    assert rendered(TEXT_CALLS, messages) == '[user:Hello][assistant:(call_1 f {"x": "y"})]'
    as_mapping = [
        USER,
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
    ]
    assert rendered(CALLS, as_mapping) == '[user:Hello][assistant:(call1_0 f {"x": 1})]'
    assert rendered(TEXT_CALLS, as_mapping) == '[user:Hello][assistant:(call1_0 f {"x": 1})]'
    assert rendered(CALLS, [{"role": "assistant", "content": "A", "tool_calls": []}]) == "[assistant:A]"
    for arguments in ("", None):
        none = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
        assert "(call0_0 f {})" in rendered(CALLS, none)
    broken = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]
    with pytest.raises(ikq.FormatError, match=r"messages\[0\].tool_calls\[0\]: the arguments are not JSON"):
        rendered(CALLS, broken)
    with pytest.raises(ikq.FormatError, match="calls no function"):
        rendered(CALLS, [{"role": "assistant", "tool_calls": [{}]}])


def test_one_call_at_a_time():
    other = {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL, other]},
        {"role": "tool", "tool_call_id": "call_2", "content": "second"},
        {"role": "tool", "tool_call_id": "call_1", "content": "first"},
    ]
    assert not abilities_of(ikq.ChatTemplate(SINGLE)).parallel
    assert rendered(SINGLE, messages) == (
        "[user:Hello][assistant:(call_2 g {})][tool:second]"
        '[assistant:I look.(call_1 f {"x": "y"})][tool:first]'
    )


def test_templates_that_show_tools_but_no_calls():
    messages = [USER, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}]
    source = "{# <tool_call> #}" + ONLY_TOOLS
    text = rendered(source, messages, [TOOL])
    assert '[assistant:I look.\n<tool_call>\n{"name": "f", "arguments": {"x": "y"}}\n</tool_call>]' in text
    with pytest.raises(ikq.TemplateLimit, match="no place for calls"):
        fit(ikq.ChatTemplate(ONLY_TOOLS), messages)


def test_no_place_for_tools():
    for messages, tools, what in (
        ([USER], [TOOL], "tools"),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}], None, "calls of tools"),
    ):
        with pytest.raises(ikq.TemplateLimit, match=f"no place for {what}"):
            rendered(CHATML, messages, tools)
    assert rendered(CHATML, [USER], []) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def told(source, messages, tools=None, **options):
    template = ikq.ChatTemplate(source)
    return fit(template, messages, tools, form=form_of(template), tells_tools=True)


def test_tools_that_a_system_message_tells():
    messages = [
        {"role": "system", "content": "Be terse."},
        USER,
        {"role": "assistant", "content": "Hi."},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]
    fitted = told(ROLES, messages, [TOOL])
    assert fitted.form.name == "json"
    text = fitted.render()
    assert text.startswith("[system:Be terse.\n\nYou can call functions.")
    assert '\n{"name": "f", "parameters": {"type": "object"}}\n' in text
    assert '[assistant:{"response": "Hi."}]' in text
    assert (
        '[assistant:{"tool_calls": [{"name": "f", "arguments": {"x": "y"}}]}][user:Result of f:\n3]' in text
    )
    # where there is no place for a system message either
    assert told(ALTERNATING, [USER], [TOOL]).render().startswith("[user:You can call functions.")
    # calls and results of earlier, without tools: the reply is a text like any other
    fitted = told(ROLES, messages[1:])
    assert (fitted.form.name, fitted.tools) == ("generic", None)
    assert "[assistant:Hi.]" in fitted.render()
    assert "[user:Result of f:\n3]" in fitted.render()
    # a template that has a place for tools is left alone
    assert told(CALLS, [USER], [TOOL]).render() == "<f>[user:Hello]"
    assert told(CALLS, [USER], [TOOL]).form.name == "generic"
    with pytest.raises(ikq.TemplateLimit, match="cannot be continued"):
        told(ROLES, [USER, {"role": "assistant", "content": "Hi"}], [TOOL]).render(continues=True)


def test_roles_that_are_none():
    for role in ("asistant", "User", "", "narrator", "x" * 100):
        with pytest.raises(
            ikq.FormatError, match=r"messages\[1\]: there is no role `.*roles are system, developer, user"
        ):
            rendered(CHATML, [USER, {"role": role, "content": "x"}])
    own = "{% for m in messages %}{% if m['role'] == 'control' %}!{% endif %}{{ m.content }}{% endfor %}"
    assert rendered(own, [USER, {"role": "control", "content": "x"}]) == "Hello!x"
    with pytest.raises(ikq.FormatError, match="no role `contro`"):
        rendered(own, [USER, {"role": "contro", "content": "x"}])


def test_what_a_template_refuses_itself():
    source = "{% if messages|length > 6 %}{{ raise_exception('too long for me') }}{% endif %}" + ROLES
    with pytest.raises(ikq.TemplateLimit, match="does not take this conversation: too long for me"):
        rendered(source, [USER] * 7)


def test_a_message_that_goes_on():
    messages = [USER, {"role": "assistant", "content": PARTS}]
    assert rendered(CHATML, messages, continues=True).endswith("<|im_start|>assistant\none\ntwo")
    assert rendered(CHATML, [USER], continues=True) == rendered(CHATML, [USER])


def test_a_message_that_goes_on_behind_thoughts():
    opens = CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    template = ikq.ChatTemplate(opens)
    assert template.render([USER]).endswith("<think>\n")

    def begun(source, message):
        template = ikq.ChatTemplate(source)
        fitted = fit(template, [USER, {"role": "assistant", **message}], form=form_of(template))
        return fitted.render(continues=True).partition("assistant\n")[2]

    assert begun(opens, {"content": "one"}) == "<think>\n\n</think>\n\none"
    thoughts = {"content": "one", "reasoning_content": "Hm."}
    assert begun(opens, thoughts) == "<think>\nHm.\n</think>\n\none"
    assert begun("{# <think> #}" + CHATML, thoughts) == "<think>\nHm.\n</think>\n\none"
    assert begun(CHATML, thoughts) == "one"
    closes = CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n\\n</think>\\n\\n' }}")
    assert begun(closes, thoughts) == "<think>\n\n</think>\n\none"
    harmony = "{# <|message|>analysis #}{% for m in messages %}<|start|>{{ m.role }}<|channel|>{{ m.content }}{% endfor %}{{ '<|start|>assistant\n' }}"
    assert begun(harmony, {"content": "one"}) == "<|channel|>final<|message|>one"


def test_nothing_is_changed():
    messages = [
        {"role": "developer", "content": PARTS},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ]
    before = repr(messages)
    rendered(CALLS, messages, [TOOL])
    assert repr(messages) == before
    assert repr(TOOL) == "{'type': 'function', 'function': {'name': 'f'}}"


def test_what_the_sandbox_has():
    assert ikq.ChatTemplate("{{ '{\"a\": [1]}' | from_json }}").render([]) == "{'a': [1]}"
    assert ikq.ChatTemplate("{{ messages | map(attribute='role') | tojson }}").render([USER]) == '["user"]'
    assert ikq.ChatTemplate("{{ functions }}").render([], [TOOL]) == '[\n    {\n        "name": "f"\n    }\n]'
    own = "{% set x = [] %}{% set _ = x.append(1) %}{% set _ = x.append(2) %}{{ x.pop(0) }}{{ x }}"
    assert ikq.ChatTemplate(own).render([]) == "1[2]"
    for given in ("messages.append(1)", "messages[0].tool_calls.pop(0)", "messages[0].update(a=1)"):
        with pytest.raises(ikq.FormatError, match="failed"):
            ikq.ChatTemplate("{{ " + given + " }}").render([{**USER, "tool_calls": [CALL]}])
