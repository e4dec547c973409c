"""Anthropic's own client against a server of a small model."""

import json

import anthropic
import jsonschema
import pytest

SAY = [{"role": "user", "content": "import os\nimport"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer", "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
TOOL = {"name": "lookup", "description": "Looks up.", "input_schema": SCHEMA}
ASKED = {"model": "m", "messages": SAY, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


def total(usage) -> int:
    return usage.input_tokens + usage.cache_read_input_tokens


def test_a_message_is_what_a_chat_completion_is(server, client):
    message = client.messages.create(**ASKED, max_tokens=24)
    _, chat = server.ask("/v1/chat/completions", {"messages": SAY, "max_tokens": 24, "temperature": 0})
    assert "".join(block.text for block in message.content) == chat["choices"][0]["message"]["content"]
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 24
    assert total(message.usage) == chat["usage"]["prompt_tokens"]


def test_a_stream_is_the_same(client):
    whole = client.messages.create(**ASKED, max_tokens=24)
    with client.messages.stream(**ASKED, max_tokens=24) as stream:
        text = "".join(stream.text_stream)
    final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == 24
    assert total(final.usage) == total(whole.usage)


def test_counted_tokens_are_those_of_the_prompt(client):
    fields = {"model": "m", "messages": SAY, "tools": [TOOL], "system": "Be brief."}
    counted = client.messages.count_tokens(**fields).input_tokens
    assert counted == total(client.messages.create(**fields, max_tokens=1).usage)


def test_a_stop_sequence_ends_the_message(client):
    text = client.messages.create(**ASKED, max_tokens=24).content[0].text
    stop = text[8:10]
    message = client.messages.create(**ASKED, max_tokens=24, stop_sequences=[stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in message.content) == text[: text.index(stop)]


def test_the_last_turn_of_the_assistant_is_continued(client):
    text = client.messages.create(**ASKED, max_tokens=24).content[0].text
    turns = [*SAY, {"role": "assistant", "content": text[:12]}]
    message = client.messages.create(model="m", messages=turns, max_tokens=8, extra_body={"temperature": 0})
    assert message.usage.output_tokens == 8


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "lookup"}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_must_be_called(client, choice, stream):
    fields = ASKED | {
        "tools": [TOOL],
        "tool_choice": choice | {"disable_parallel_tool_use": True},
        "max_tokens": 200,
    }
    if stream:
        with client.messages.stream(**fields) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**fields)
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert (call.name, message.stop_reason) == ("lookup", "tool_use")
    jsonschema.validate(call.input, SCHEMA)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "found"}
    turns = [*SAY, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(model="m", messages=turns, tools=[TOOL], max_tokens=4)
    assert after.usage.output_tokens <= 4


def test_structured_output(client):
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = client.messages.create(**ASKED, max_tokens=200, output_config=form)
    jsonschema.validate(json.loads("".join(block.text for block in message.content)), SCHEMA)


def test_a_prompt_that_is_too_long(client):
    turns = [{"role": "user", "content": "word " * 5000}]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(model="m", messages=turns, max_tokens=4)


def test_a_schema_that_cannot_be_is_refused_before_anything_is_computed(client):
    tool = TOOL | {
        "strict": True,
        "input_schema": {"type": "object", "properties": {"a": {"$ref": "https://elsewhere.example/a"}}},
    }
    with pytest.raises(anthropic.BadRequestError, match=r"\$ref"):
        client.messages.create(**ASKED, max_tokens=4, tools=[tool], tool_choice={"type": "any"})


def test_models(client):
    (found,) = client.models.list()
    assert (found.id, found.type, found.display_name) == ("tiny-moe-bf16", "model", "tiny-moe-bf16")
    assert found.created_at.year >= 2020
    assert client.models.retrieve("tiny-moe-bf16").id == found.id
