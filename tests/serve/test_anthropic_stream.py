"""Events of the Messages API, and the message that they are together."""

import itertools

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from ikq.serve.anthropic.errors import error_object, error_status
from ikq.serve.anthropic.reply import collect
from ikq.serve.anthropic.stream import MessageStream
from ikq.serve.errors import _STATUS, ServiceError
from ikq.serve.events import Event, Finished, Piece, Usage

EVENT = TypeAdapter(RawMessageStreamEvent)
USAGE = Usage(n_prompt=10, n_cached=4, n_completion=7, n_reasoning=2)


def content(text: str) -> Piece:
    return Piece(index=0, kind="content", text=text)


def thought(text: str) -> Piece:
    return Piece(index=0, kind="reasoning", text=text)


def call(number: int, text: str = "", name: str | None = None) -> Piece:
    call_id = None if name is None else f"id{number}"
    return Piece(index=0, kind="tool_call", text=text, call=number, call_id=call_id, name=name)


def finished(reason: str = "stop", **fields) -> Finished:
    return Finished(index=0, reason=reason, **fields)


def events(*reply: Event, max_tokens: int | None = 9, shows_thinking: bool = True) -> list[dict]:
    stream = MessageStream("1", "m", n_prompt=10, max_tokens=max_tokens, shows_thinking=shows_thinking)
    told = [
        *stream.start(Usage(n_prompt=10)),
        *itertools.chain(*map(stream.feed, reply)),
        *stream.finish(USAGE),
    ]
    for event in told:
        if event["type"] != "ping":
            EVENT.validate_python(event)
    return told


def short(told: list[dict]) -> list[str]:
    return [
        e["type"].removeprefix("content_block_")
        + (f" {e['delta']['type']}" if e["type"] == "content_block_delta" else "")
        for e in told
    ]


BEGIN, END = ["message_start", "ping"], ["message_delta", "message_stop"]


def test_text_in_order():
    told = events(content("Hel"), content(""), content("lo"), finished())
    assert short(told) == [*BEGIN, "start", "delta text_delta", "delta text_delta", "stop", *END]
    message = collect(told)
    assert message["content"] == [{"type": "text", "text": "Hello"}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    assert message["usage"]["input_tokens"] == 6
    assert message["usage"]["cache_read_input_tokens"] == 4
    assert message["usage"]["output_tokens"] == 7
    Message.model_validate(message)


def test_thoughts_text_and_calls_are_blocks_of_their_own():
    told = events(
        thought("\n"),
        thought("So."),
        content("\n\n"),
        content("I look."),
        content("\n"),
        call(0, name="weather"),
        call(0, '{"city"'),
        call(0, ':"Bonn"}'),
        content("\n"),
        call(1, name="now"),
        finished("tool_calls"),
    )
    assert [e["index"] for e in told if e["type"] == "content_block_start"] == [0, 1, 2, 3]
    assert [e["index"] for e in told if e["type"] == "content_block_stop"] == [0, 1, 2, 3]
    message = collect(told)
    assert message["content"] == [
        {"type": "thinking", "thinking": "\nSo.", "signature": "unsigned"},
        {"type": "text", "text": "\n\nI look.\n"},
        {"type": "tool_use", "id": "id0", "name": "weather", "input": {"city": "Bonn"}},
        {"type": "tool_use", "id": "id1", "name": "now", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"
    Message.model_validate(message)


def test_hidden_thoughts_leave_an_empty_block():
    message = collect(events(thought("So."), content("Hi"), finished(), shows_thinking=False))
    assert message["content"][0] == {"type": "thinking", "thinking": "", "signature": "unsigned"}


@pytest.mark.parametrize(
    ("end", "reason", "text"),
    [
        (finished(), "end_turn", None),
        (finished(stop_text="END"), "stop_sequence", "END"),
        (finished("length", n_tokens=9), "max_tokens", None),
        (finished("length", n_tokens=5), "model_context_window_exceeded", None),
        (finished("tool_calls"), "tool_use", None),
    ],
)
def test_reasons(end, reason, text):
    message = collect(events(content("x"), end))
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, text)


def test_an_empty_reply_has_no_blocks():
    assert collect(events(content(" "), finished()))["content"] == []


def test_a_call_that_was_cut_off_has_no_arguments():
    message = collect(events(call(0, '{"ci', name="weather"), finished("length", n_tokens=9)))
    assert message["content"][0]["input"] == {}


@pytest.mark.parametrize("kind", _STATUS)
def test_every_error_has_a_form(kind):
    error = ServiceError(kind, "Why.")
    body = error_object(error)
    assert body["type"] == "error"
    assert body["error"]["message"].endswith("Why.")
    assert 400 <= error_status(error) < 600


def test_errors_that_clients_know():
    said = {kind: error_object(ServiceError(kind, ""))["error"]["type"] for kind in _STATUS}
    assert said["invalid_request"] == "invalid_request_error"
    assert said["authentication"] == "authentication_error"
    assert said["not_found"] == "not_found_error"
    assert said["overloaded"] == "rate_limit_error"
    assert said["unavailable"] == "overloaded_error"
    assert error_status(ServiceError("unavailable", "")) == 529
