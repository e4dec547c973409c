"""Messages of chats that are refused, and last messages that go on."""

from __future__ import annotations

import pytest

USER = {"role": "user", "content": "import os\nimport"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "parameter", "word"),
    [
        ([USER, {"role": "asistant", "content": "x"}], "messages", "there is no role `asistant`"),
        ([{"role": "user"}], "messages.0.content", "required"),
        ([{"role": "system"}, USER], "messages.0.content", "required"),
        ([USER, {"role": "tool", "tool_call_id": "c"}], "messages.1.content", "required"),
        ([USER, {"role": "assistant"}, USER], "messages.1.content", "tool_calls"),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}], "messages.1.tool_calls", "results"),
        ([{"content": "x"}], "messages.0.role", "text"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/apply-template"])
def test_messages_that_are_refused(server, path, messages, parameter, word):
    status, reply = server.ask(path, {"messages": messages, "max_tokens": 1})
    assert (status, reply["error"]["param"]) == (400, parameter), reply
    assert word in reply["error"]["message"]


def test_messages_without_content_that_are_not(server):
    calls = [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "x"}]
    for messages in (
        calls,
        [{"role": "user", "content": None}],
        [USER, {"role": "assistant", "content": None}],
    ):
        assert server.ask("/v1/chat/completions", {"messages": messages, "max_tokens": 1})[0] == 200, messages


def test_a_last_message_of_the_assistant_goes_on(server):
    begun = [USER, {"role": "assistant", "content": "sys"}]

    def prompt(**body):
        status, reply = server.ask("/apply-template", {"messages": begun, **body})
        assert status == 200, reply
        return reply["prompt"]

    assert prompt().endswith("<|im_start|>assistant\nsys")
    assert prompt(continue_final_message=True) == prompt()
    assert prompt(continue_final_message=False).endswith("sys<|im_end|>\n<|im_start|>assistant\n")
    body = {"messages": begun, "max_tokens": 6, "seed": 1}
    _, chat = server.ask("/v1/chat/completions", body)
    _, text = server.ask("/v1/completions", {"prompt": prompt(), "max_tokens": 6, "seed": 1})
    # what was there is not said again
    assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]


def test_what_cannot_go_on(server):
    for messages in ([USER], [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]):
        body = {"messages": messages, "continue_final_message": True, "max_tokens": 1}
        status, reply = server.ask("/v1/chat/completions", body)
        assert (status, reply["error"]["param"]) == (400, "continue_final_message")
