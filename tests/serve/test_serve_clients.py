"""The clients of Anthropic's Messages and OpenAI's Responses against a model that computes."""

from __future__ import annotations

import anthropic
import openai
import pytest
from serving import GREEDY, TINY, TOOLS

import ikq

SAY = [{"role": "user", "content": "import os\nimport"}]


@pytest.fixture(scope="module")
def expected():
    with ikq.Model.load(TINY, n_ctx=1024, **TOOLS) as model:
        return model.chat(SAY, max_tokens=24, **GREEDY).text()


def test_messages(server, expected):
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        request = {"model": "m", "messages": SAY, "max_tokens": 24, "extra_body": GREEDY}
        reply = client.messages.create(**request)
        assert [block.text for block in reply.content] == [expected]
        assert (reply.stop_reason, reply.usage.output_tokens) == ("max_tokens", 24)
        with client.messages.stream(**request) as stream:
            assert "".join(stream.text_stream) == expected
        count = client.messages.count_tokens(model="m", messages=SAY)
        assert count.input_tokens == reply.usage.input_tokens + (reply.usage.cache_read_input_tokens or 0)
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        tool = {"name": "lookup", "input_schema": schema}
        choice = {"type": "any", "disable_parallel_tool_use": True}
        called = client.messages.create(**{**request, "max_tokens": 200}, tools=[tool], tool_choice=choice)
        assert called.stop_reason == "tool_use"
        assert next(b.name for b in called.content if b.type == "tool_use") == "lookup"
        with pytest.raises(anthropic.BadRequestError, match="context"):
            client.messages.create(
                model="m", max_tokens=1, messages=[{"role": "user", "content": "x y " * 2000}]
            )


def test_responses(server, expected):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        request = {"model": "m", "input": SAY[0]["content"], "max_output_tokens": 24, **GREEDY}
        reply = client.responses.create(**request)
        assert reply.output_text == expected
        assert (reply.status, reply.usage.output_tokens) == ("incomplete", 24)
        with client.responses.stream(**request) as stream:
            text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert text == expected
