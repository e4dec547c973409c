"""Chat templates of real models, and what a template may and may not do; reasoning apart from the answer."""

import datetime
import json

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from small_vocabs import bpe

import ikq
from ikq.text.chat import CHATML

CHAT = SHARED / "models" / "chat"
TEMPLATES = (
    "GLM-4.6",
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-V3.1",
    "meta-llama-Llama-3.1-8B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "openai-gpt-oss-120b",
)
USER = [{"role": "user", "content": "Hello"}]


def noon():
    return datetime.datetime(2026, 1, 15, 12, 0, 0)


@pytest.mark.parametrize("name", TEMPLATES)
def test_renderings(name):
    if not CHAT.is_dir():
        pytest.skip(
            "../shared/models/chat is not there: chat templates are not compared with stored renderings"
        )
    source = (CHAT / f"{name}.jinja").read_bytes().decode()
    cases = json.loads((CHAT / f"{name}.json").read_text())["cases"]
    assert cases
    for case in cases:
        tokens = {"bos_token": case["bos_token"], "eos_token": case["eos_token"]}
        template = ikq.ChatTemplate(source, **tokens, now=noon)
        arguments = (case["messages"], case["tools"], case["add_generation_prompt"])
        if "error" in case:
            with pytest.raises(ikq.FormatError) as e:
                template.render(*arguments)
            assert str(e.value) == case["error"]
        else:
            assert template.render(*arguments) == case["rendered"]


def test_errors_of_real_templates():
    if not CHAT.is_dir():
        pytest.skip("../shared/models/chat is not there: errors of chat templates are not tested")
    source = (CHAT / "mistralai-Mistral-Nemo-Instruct-2407.jinja").read_bytes().decode()
    with pytest.raises(ikq.FormatError, match="must alternate"):
        ikq.ChatTemplate(source).render([*USER, *USER])


class Reader:
    def __init__(self, **metadata):
        self.metadata = {f"tokenizer.{key}": value for key, value in metadata.items()}


def test_template_of_a_file():
    tokenizer = ikq.Tokenizer(bpe())
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    template = ikq.ChatTemplate.from_reader(Reader(chat_template=source), tokenizer)
    assert template.render(USER) == "<s>Hello</s>"
    assert not template.is_fallback
    # some files have another one for tools
    both = Reader(chat_template=source, **{"chat_template.tool_use": "{{ tools|length }} tools"})
    template = ikq.ChatTemplate.from_reader(both, tokenizer)
    assert template.render(USER, tools=[{}, {}]) == "2 tools"
    assert template.render(USER, tools=[]) == template.render(USER) == "<s>Hello</s>"
    with pytest.raises(ikq.FormatError, match="not a text"):
        ikq.ChatTemplate.from_reader(Reader(chat_template=3), tokenizer)


def test_fallback():
    template = ikq.ChatTemplate.from_reader(Reader(), ikq.Tokenizer(bpe()))
    assert template.is_fallback
    assert template.source == CHATML
    messages = [{"role": "system", "content": " Be\nterse. "}, *USER]
    expected = "<|im_start|>system\n Be\nterse. <|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    assert template.render(messages, add_generation_prompt=False) == expected
    assert template.render(messages) == f"{expected}<|im_start|>assistant\n"


def render(source, **variables):
    return ikq.ChatTemplate(source, now=noon).render(USER, **variables)


def test_language():
    assert render("{%- for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{{ x|tojson }}", x={"ü": '<&>"', "n": None}) == '{"ü": "<&>\\"", "n": null}'
    assert render("{{ x|tojson(indent=2) }}", x=[1]) == "[\n  1\n]"
    assert render("{{ strftime_now('%d %b %Y %H') }}") == "15 Jan 2026 12"
    assert render("{% generation %}{{ messages[0].role }}{% endgeneration %}!") == "user!"
    # blocks leave no empty lines and no indentation
    assert render("  {% if true %}\na\n  {% endif %}\nb") == "a\nb"
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"
    assert render("{{ tools }}{{ add_generation_prompt }}", add_generation_prompt=False) == "NoneFalse"


BROKEN = {
    "{{ raise_exception('no system role') }}": "^no system role$",
    "{% if %}": "cannot be read",
    "{% for x in y %}": "cannot be read",
    "{{ messages[0].content.missing.more }}": "failed",
    "{{ 1 / 0 }}": "failed: division by zero",
    "{{ 'a' + 1 }}": "failed",
    "{{ messages|tojson(indent='x', nonsense=1) }}": "failed",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "failed",
    "{{ range(10**9)|list }}": "failed",
    "{{ strftime_now(3) }}": "failed",
    # out of the sandbox
    "{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}": "failed",
    "{{ messages.append(1) }}": "failed",
    "{{ ''.format.__globals__ }}{{ raise_exception.__globals__.__builtins__ }}": "failed",
    "{% include '/etc/passwd' %}": "failed",
    "{% import 'os' as os %}": "failed",
}


@pytest.mark.parametrize("source", BROKEN)
def test_templates_that_fail(source):
    with pytest.raises(ikq.FormatError, match=BROKEN[source]):
        render(source)


def split(text, prompt="", size=None):
    """Reasoning and answer, the text given in pieces of `size` characters."""
    splitter = ikq.ReasoningSplitter(prompt)
    size = size or max(len(text), 1)
    pieces = [p for i in range(0, len(text), size) for p in splitter.push(text[i : i + size])]
    pieces += splitter.flush()
    assert "".join(p.text for p in pieces) == text
    assert all(p.text for p in pieces)
    kinds = (True, False)
    return tuple("".join(p.text for p in pieces if p.reasoning is kind) for kind in kinds)


HARMONY = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4"
SPLITS = (
    ("", "4", "", "4"),
    ("", "<think>2+2</think>\n\n4", "<think>2+2</think>", "\n\n4"),
    ("", "\n<think>\n\n</think>4", "<think>\n\n</think>", "\n4"),
    # the prompt opens it
    ("user: 2+2\n<think>\n", "easy</think>4", "easy</think>", "4"),
    ("user: 2+2\n<think>", "never closed", "never closed", ""),
    # and the prompt closes it
    ("<think>\n\n</think>\n\n", "4 </think>", "", "4 </think>"),
    # in the answer the word is only a word
    ("", "4, not <think>", "", "4, not <think>"),
    ("", "<think>a</think>b<think>c</think>", "<think>a</think>", "b<think>c</think>"),
    ("", "<thinking>a</thinking>b", "<thinking>a</thinking>", "b"),
    ("", "[THINK]a[/THINK]b", "[THINK]a[/THINK]", "b"),
    ("", "<thi", "", "<thi"),
    ("", HARMONY, HARMONY[:-1], "4"),
    ("", "<|channel|>final<|message|>4", "<|channel|>final<|message|>", "4"),
)


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
def test_reasoning(size):
    for prompt, text, reasoning, answer in SPLITS:
        assert split(text, prompt, size) == (reasoning, answer), text


def test_reasoning_is_shown_as_it_comes():
    """Only what may still become a mark waits."""
    splitter = ikq.ReasoningSplitter()
    assert [p.text for p in splitter.push("Hello <")] == ["Hello "]
    assert [p.text for p in splitter.push("b>")] == ["<b>"]
    splitter = ikq.ReasoningSplitter("<think>")
    assert splitter.push("I see </thin") == [("I see ", True, False)]
    assert splitter.push("g</think>4") == [
        ("</thing", True, False),
        ("</think>", True, True),
        ("4", False, False),
    ]


MARKS = (
    "<think>",
    "</think>",
    "<|channel|>analysis",
    "<|channel|>final<|message|>",
    "<",
    "think",
    "|>",
    "a",
    " ",
    "\n",
)


@given(st.lists(st.sampled_from(MARKS), max_size=8).map("".join), st.integers(1, 9))
def test_reasoning_does_not_depend_on_the_pieces(text, size):
    assert split(text, size=size) == split(text)
