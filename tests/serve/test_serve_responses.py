"""OpenAI's own client with the Responses API against a server of a small model."""

import json

import jsonschema
import openai
import pytest

SAY = "import os\nimport"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer", "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "lookup", "parameters": SCHEMA, "strict": True}
ASKED = {"model": "m", "temperature": 0}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_a_response_is_what_a_chat_completion_is(client):
    response = client.responses.create(**ASKED, input=SAY, max_output_tokens=24)
    said = [{"role": "user", "content": SAY}]
    chat = client.chat.completions.create(**ASKED, messages=said, max_tokens=24)
    assert response.output_text == chat.choices[0].message.content
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.output_tokens == 24
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_a_stream_is_the_same(client):
    whole = client.responses.create(**ASKED, input=SAY, max_output_tokens=24)
    events = list(client.responses.create(**ASKED, input=SAY, max_output_tokens=24, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == 24


def test_the_same_seed_says_the_same(client):
    fields = {"model": "m", "input": SAY, "max_output_tokens": 16, "extra_body": {"seed": 7}}
    assert client.responses.create(**fields).output_text == client.responses.create(**fields).output_text


def test_a_kept_conversation_is_the_one_that_is_sent(client):
    first = client.responses.create(**ASKED, input=SAY, max_output_tokens=8)
    fields = ASKED | {"max_output_tokens": 8}
    kept = client.responses.create(**fields, input="More", previous_response_id=first.id)
    said = [{"role": "user", "content": SAY}, *first.output, {"role": "user", "content": "More"}]
    sent = client.responses.create(**fields, input=said)
    assert kept.output_text == sent.output_text
    assert kept.usage.input_tokens == sent.usage.input_tokens
    # all but the new turn was computed before
    assert kept.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "lookup"}])
def test_a_tool_that_must_be_called(client, choice):
    fields = ASKED | {
        "tools": [TOOL],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_output_tokens": 200,
    }
    with client.responses.stream(**fields, input=SAY) as stream:
        streamed = stream.get_final_response()
    response = client.responses.create(**fields, input=SAY)
    (call,) = [item for item in response.output if item.type == "function_call"]
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    assert [item.arguments for item in streamed.output if item.type == "function_call"] == [call.arguments]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "found"}
    after = client.responses.create(
        **ASKED, input=[output], previous_response_id=response.id, tools=[TOOL], max_output_tokens=4
    )
    assert after.usage.output_tokens <= 4


def test_structured_output(client):
    form = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}
    response = client.responses.create(**ASKED, input=SAY, text=form, max_output_tokens=200)
    assert response.status == "completed"
    jsonschema.validate(json.loads(response.output_text), SCHEMA)


def test_probabilities(client):
    fields = ASKED | {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 8}
    response = client.responses.create(**fields, input=SAY)
    (part,) = response.output[0].content
    assert b"".join(bytes(token.bytes) for token in part.logprobs).decode() == part.text
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)
    assert all(token.logprob <= token.top_logprobs[0].logprob for token in part.logprobs)


def test_counted_tokens_are_those_of_the_prompt(client):
    counted = client.responses.input_tokens.count(model="m", input=SAY, tools=[TOOL]).input_tokens
    assert (
        counted
        == client.responses.create(model="m", input=SAY, tools=[TOOL], max_output_tokens=1).usage.input_tokens
    )


def test_a_prompt_that_is_too_long(client):
    with pytest.raises(openai.BadRequestError) as e:
        client.responses.create(model="m", input="word " * 5000)
    assert e.value.code == "context_length_exceeded"


def test_zero_is_not_false(server):
    for value, expected in ((0, 400), (True, 400), (False, 200), (None, 200)):
        status, reply = server.ask(
            "/v1/responses", {"input": "x", "max_output_tokens": 16, "background": value}
        )
        assert status == expected, reply
