"""Real templates with conversations of seven shapes: each says what it shall, or is refused in a sentence."""

import datetime
import re

import pytest
from sdists import sdist
from shapes import MOVED, PRINTED, REFUSED, SHAPES

import ikq
from ikq.text.templates import abilities_of, fit
from ikq.text.tools import form_of

TEMPLATES = sorted(sdist("llama-cpp-python-0.3.36").glob("*.jinja"))


def template_of(path):
    now = datetime.datetime(2026, 1, 15, 12)
    return ikq.ChatTemplate(path.read_bytes().decode(), bos_token="<s>", eos_token="</s>", now=lambda: now)


@pytest.fixture(scope="module")
def known():
    """Templates by name; what they can do is found out once."""
    return {path.stem: template_of(path) for path in TEMPLATES}


def test_all_are_there():
    assert len(TEMPLATES) == 70
    assert REFUSED.keys() | PRINTED.keys() <= {path.stem for path in TEMPLATES}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_shapes(path, known):
    template = known[path.stem]
    form = form_of(template)
    for shape, (messages, tools, words) in SHAPES.items():
        if shape in REFUSED.get(path.stem, ()):
            with pytest.raises(ikq.TemplateLimit, match="^the model's chat template has no place for "):
                fit(template, messages, tools, form=form).render()
        # where a template has no place for tools, a system message may tell them
        text = fit(template, messages, tools, form=form, tells_tools=True).render()
        if shape == "tools":
            assert "Weather in Oslo?" in text
        at = 0
        for word in words:
            if word == "Be terse." and path.stem in MOVED:
                assert word in text
                continue
            assert word in text[at:], (shape, word, text)
            at = text.index(word, at) + 1
        # nothing printed that was to be written, and no JSON within JSON
        for sign in ("None", "{'", "[{'", "undefined", '\\"city'):
            assert sign not in text or sign in PRINTED.get(path.stem, ()), (shape, sign, text)
        # calls and results once, behind the question
        if shape in ("call", "parallel"):
            conversation = text[text.index("Weather in Oslo?") :]
            assert len(re.findall("Bergen", conversation)) == 1
            assert len(re.findall("sunny-17", conversation)) == 1


def test_what_templates_can_do(known):
    """Some that are known to differ."""
    able = {name: abilities_of(template) for name, template in known.items()}
    assert not able["google-gemma-2-2b-it"].system
    assert able["google-gemma-2-2b-it"].alternates
    assert able["openai-gpt-oss-120b"].developer
    assert not able["Qwen-Qwen3-0.6B"].developer
    assert not able["meta-llama-Llama-3.1-8B-Instruct"].parallel
    assert able["Qwen-Qwen3-0.6B"].parallel
    assert able["meetkai-functionary-medium-v3.2"].calls == "text"
    assert able["Qwen-Qwen3-0.6B"].calls == "mapping"
    assert not able["mistralai-Mistral-Nemo-Instruct-2407"].ids
    assert able["NousResearch-Hermes-3-Llama-3.1-8B-tool_use"].needs_tools
    assert able["CohereForAI-c4ai-command-r-plus-tool_use"].described
    assert able["openai-gpt-oss-120b"].thoughts == "thinking"
    assert able["GLM-4.6"].thoughts == "reasoning_content"
    assert sum(a.parts for a in able.values()) >= 20


FORMS = {
    "GLM-4.6": "glm",
    "Kimi-K2-Instruct": "kimi",
    "MiniMax-M2": "minimax_m2",
    "MiniMax-M3": "minimax_m3",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "function_tags",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek_r1",
    "deepseek-ai-DeepSeek-V3.1": "deepseek",
    "deepseek-ai-DeepSeek-V3.2": "deepseek_v3.2",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral_args",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "openai-gpt-oss-120b": "harmony",
}


def test_forms(known):
    assert {name: form_of(known[name]).name for name in FORMS} == FORMS


def replies(template, form):
    """What a template makes of a reply with calls."""
    messages, tools, _ = SHAPES["parallel"]
    before = fit(template, messages[1:2], tools, form=form).render()
    fitted = fit(template, messages[1:3], tools, form=form)
    whole = template.render(fitted.messages, fitted.tools, add_generation_prompt=False)
    n = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    # marks are not cut
    start = max(whole.rfind(sign, 0, n) for sign in "<[")
    n = start if start >= 0 and not any(sign in whole[start:n] for sign in ">]") else n
    return whole[n:], tools


# no form is known for these, or what the template makes is no reply of the model
OTHERS = {
    "GigaChat3-10B-A1.8B",
    "LFM2.5-8B-A1B",
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "google-gemma-4-31B-it",
    "google-gemma-4-31B-it-interleaved",
    "meetkai-functionary-medium-v3.2",
    "muse-glimmer",
}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_calls_that_a_template_writes_are_read_again(path, known):
    if path.stem in REFUSED or path.stem in OTHERS:
        return
    template = known[path.stem]
    form = form_of(template)
    reply, tools = replies(template, form)
    parser = form.parser(tools=tools)
    deltas = [*parser.feed(reply), *parser.finish()]
    calls = [d.name for d in deltas if d.name]
    assert calls[0] == "get_weather"
    assert calls == ["get_weather", "now"] or not abilities_of(template).parallel
    first = "".join(d.text for d in deltas if d.kind == "tool_call" and d.index == 0)
    assert first.replace(" ", "").replace("\n", "") == '{"city":"Bergen","days":2}'
