"""The official client of OpenAI against a server of a small model."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import openai
import pytest
from serving import GREEDY, TINY, TOOLS

import ikq

SAY = [{"role": "user", "content": "import os\nimport"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer", "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model():
    with ikq.Model.load(TINY, n_ctx=1024, **TOOLS) as model:
        yield model


def test_a_chat_is_what_the_model_says(client, model):
    reply = client.chat.completions.create(model="m", messages=SAY, max_tokens=24, seed=7)
    expected = model.chat(SAY, max_tokens=24, seed=7)
    assert reply.choices[0].message.content == expected.text()
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 24
    assert reply.usage.prompt_tokens == expected.stats.n_prompt + expected.stats.n_reused


def test_a_stream_is_the_same(client):
    whole = client.chat.completions.create(model="m", messages=SAY, max_tokens=24, seed=7)
    stream = client.chat.completions.create(
        model="m", messages=SAY, max_tokens=24, seed=7, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
        whole.choices[0].message.content
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_several_texts_have_seeds_of_their_own(client, model):
    reply = client.chat.completions.create(model="m", messages=SAY, max_tokens=16, seed=3, n=3)
    expected = [model.chat(SAY, max_tokens=16, seed=3 + i).text() for i in range(3)]
    assert [c.message.content for c in reply.choices] == expected
    assert reply.usage.completion_tokens == 48


def test_probabilities(client, model):
    reply = client.chat.completions.create(
        model="m", messages=SAY, max_tokens=8, seed=1, logprobs=True, top_logprobs=3
    )
    found = reply.choices[0].logprobs.content
    expected = [p for p in model.chat(SAY, max_tokens=8, seed=1, logprobs=3) if p.token is not None]
    assert [t.logprob for t in found] == [p.logprob for p in expected]
    assert [[x.logprob for x in t.top_logprobs] for t in found] == [
        [logprob for _, logprob in p.top_logprobs] for p in expected
    ]
    assert b"".join(bytes(t.bytes) for t in found).decode() == reply.choices[0].message.content


def test_stop_bias_and_limits(client, model):
    whole = model.generate("import os", max_tokens=40, **GREEDY).text()
    at = whole.index("\n", 5)
    reply = client.completions.create(
        model="m", prompt="import os", max_tokens=40, temperature=0, stop=whole[at - 3 : at]
    )
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (
        whole[: whole.index(whole[at - 3 : at])],
        "stop",
    )
    token = model.tokenize(" os")[0]
    biased = client.completions.create(
        model="m", prompt="import", max_tokens=3, temperature=0, logit_bias={str(token): 100}
    )
    assert biased.choices[0].text == " os" * 3
    none = client.chat.completions.create(model="m", messages=SAY, max_completion_tokens=0)
    assert (none.choices[0].message.content, none.usage.completion_tokens) == ("", 0)


def test_completions(client, model):
    prompts = ["import os", "def f(x):"]
    reply = client.completions.create(model="m", prompt=prompts, max_tokens=12, seed=5, n=2, logprobs=1)
    expected = [model.generate(p, max_tokens=12, seed=5 + i).text() for p in prompts for i in range(2)]
    assert [c.text for c in reply.choices] == expected
    for choice in reply.choices:
        found = choice.logprobs
        assert len(found.tokens) == 12
        # the chosen one is told in any case
        for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
            assert top[token] == logprob <= max(top.values())
            assert len(top) in (1, 2)
    stream = client.completions.create(
        model="m", prompt=model.tokenize("import os"), max_tokens=12, seed=5, stream=True, echo=True
    )
    assert "".join(c.choices[0].text for c in stream) == "import os" + expected[0]


@pytest.mark.parametrize("stream", [False, True])
def test_structured_output(client, stream):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    reply = client.chat.completions.create(
        model="m", messages=SAY, max_tokens=200, seed=1, response_format=form, stream=stream
    )
    if stream:
        text = "".join(c.choices[0].delta.content or "" for c in reply if c.choices)
    else:
        text = reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(text), SCHEMA)


def test_a_schema_that_cannot_be_had_is_refused_by_name(client):
    schema = {"type": "object", "properties": {"a": {"type": "string", "unevaluatedProperties": False}}}
    schema = {"not": {"type": "string"}, **schema}
    with pytest.raises(openai.BadRequestError, match="not"):
        client.chat.completions.create(
            model="m",
            messages=SAY,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "lookup"}}])
def test_a_tool_that_must_be_called(client, choice):
    reply = client.chat.completions.create(
        model="m",
        messages=SAY,
        tools=[TOOL],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_tokens=300,
        seed=2,
    )
    (call,) = reply.choices[0].message.tool_calls
    assert (call.function.name, reply.choices[0].finish_reason) == ("lookup", "tool_calls")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_some_of_the_tools(client):
    other = {"type": "function", "function": {"name": "other", "parameters": SCHEMA}}
    allowed = [{"type": "function", "function": {"name": "lookup"}}]
    reply = client.chat.completions.create(
        model="m",
        messages=SAY,
        tools=[other, TOOL],
        tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}},
        parallel_tool_calls=False,
        max_tokens=300,
        seed=2,
    )
    assert [c.function.name for c in reply.choices[0].message.tool_calls] == ["lookup"]


def test_a_streamed_call(client):
    stream = client.chat.completions.create(
        model="m", messages=SAY, tools=[TOOL], tool_choice="required", max_tokens=300, seed=2, stream=True
    )
    chunks = list(stream)
    deltas = [t for c in chunks for choice in c.choices for t in choice.delta.tool_calls or ()]
    assert chunks[0].choices[0].delta.content is None
    assert deltas[0].function.name == "lookup"
    assert deltas[0].id
    assert [d for d in deltas if d.function.name] == [d for d in deltas if d.id]
    first = [d for d in deltas if d.index == 0]
    jsonschema.validate(json.loads("".join(d.function.arguments or "" for d in first)), SCHEMA)


def test_embeddings(client, model):
    texts = ["import os", "def f(x):\n    return x"]
    reply = client.embeddings.create(model="m", input=texts)
    for text, item in zip(texts, reply.data, strict=True):
        tokens = model._prompt_tokens(text, True)
        with model.new_sequence() as sequence:
            (hidden,) = model.step([(sequence, tokens, "hidden")])
        expected = hidden.mean(axis=0)
        np.testing.assert_allclose(item.embedding, expected / np.linalg.norm(expected), rtol=1e-5, atol=1e-6)
    plain = client.embeddings.create(model="m", input=texts, encoding_format="float")
    assert plain.data[1].embedding == pytest.approx(reply.data[1].embedding)
    assert reply.usage.prompt_tokens == sum(len(model._prompt_tokens(t, True)) for t in texts)


def test_models(client):
    (found,) = client.models.list().data
    assert found.id == "tiny-moe-bf16"
    assert client.models.retrieve("tiny-moe-bf16").id == found.id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": "x"}, "messages"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"extra_body": {"id_slot": 8}}, "id_slot"),
        ({"extra_body": {"id_slot": -2}}, "id_slot"),
        ({"extra_body": {"regex": "("}}, "regex"),
        ({"extra_body": {"reasoning_format": "odd"}}, "reasoning_format"),
        ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice",
        ),
        ({"extra_body": {"chat_template_kwargs": {"continues": True}}}, "chat_template_kwargs"),
        ({"extra_body": {"chat_template_kwargs": {"self": 1}}}, "chat_template_kwargs"),
        ({"extra_body": {"chat_template_kwargs": {"tools": []}}}, "chat_template_kwargs"),
        ({"extra_body": {"stop": {"a": "b"}}}, "stop"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions"),
        ({"extra_body": {"dry_sequence_breakers": ["x"] * 65}}, "dry_sequence_breakers"),
        ({"extra_body": {"grammar": "root ::= " + '"x" ' * 60_000}}, "grammar"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"extra_body": {"grammar": "root ::= nothing"}}, "grammar"),
    ],
)
def test_what_is_wrong_is_said(client, change, parameter):
    request = {"model": "m", "messages": SAY, "max_tokens": 2, **change}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**request)
    assert error.value.body["param"] == parameter
    assert error.value.body["message"]


def test_bounds_are_told(client):
    with pytest.raises(openai.BadRequestError, match="expected 1 to 40"):
        client.chat.completions.create(model="m", messages=SAY, n=128)
    with pytest.raises(openai.BadRequestError, match="slots 0 to 7"):
        client.chat.completions.create(model="m", messages=SAY, extra_body={"id_slot": 99})


def test_a_prompt_that_is_too_long(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x y " * 2000}])
    assert error.value.code == "context_length_exceeded"


def test_the_asynchronous_client(server):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            stream = await client.chat.completions.create(
                model="m", messages=SAY, max_tokens=5, seed=1, stream=True
            )
            return [c async for c in stream]

    import asyncio

    assert len(asyncio.run(main())) >= 2
