"""Anthropic's own client against the routes of its API."""

import anthropic
import httpx
import pytest
from scripted import ScriptedService, eventually, piece, running, scripted_app

from ikq.serve.errors import ServiceError
from ikq.serve.events import Finished
from ikq.serve.requests import ToolChoice

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"name": "weather", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def server():
    service = ScriptedService()
    with running(scripted_app(service, ("secret",))) as url:
        yield service, url


@pytest.fixture
def service(server):
    return server[0]


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server[1], api_key="secret", max_retries=0) as client:
        yield client


REPLY = (
    piece("reasoning", "I look."),
    piece("content", "\n\nOne "),
    piece("content", "moment."),
    piece("tool_call", "", call=0, call_id="c0", name="weather"),
    piece("tool_call", '{"city": ', call=0),
    piece("tool_call", '"Köln"}', call=0),
    Finished(index=0, reason="tool_calls"),
)


def check_reply(message: anthropic.types.Message) -> None:
    thinking, text, tool_use = message.content
    assert thinking.thinking == "I look."
    assert text.text == "\n\nOne moment."
    assert (tool_use.id, tool_use.name, tool_use.input) == ("c0", "weather", {"city": "Köln"})
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (2, 1)
    assert message.usage.output_tokens == len(REPLY)
    assert message.model == "scripted"
    assert message.id.startswith("msg_")


def test_a_message(service, client):
    service.says(*REPLY)
    check_reply(client.messages.create(model="m", max_tokens=99, messages=HELLO, tools=[WEATHER]))
    assert service.replies[-1].is_closed


def test_a_stream(service, client):
    service.says(*REPLY)
    with client.messages.stream(model="m", max_tokens=99, messages=HELLO, tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
    check_reply(stream.get_final_message())
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    assert {"thinking", "text", "input_json"} <= set(kinds)


def test_the_conversation_goes_on_with_what_the_client_has(service, client):
    service.says(*REPLY)
    first = client.messages.create(model="m", max_tokens=99, messages=HELLO, tools=[WEATHER])
    service.says_text("Rain.")
    result = {"type": "tool_result", "tool_use_id": first.content[2].id, "content": "rain"}
    turns = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(
        model="m",
        max_tokens=9,
        messages=turns,
        tools=[WEATHER],
        tool_choice={"type": "any"},
        system="Be kind.",
    )
    assert second.content[0].text == "Rain."
    asked = service.asked[-1]
    assert [m["role"] for m in asked.messages] == ["system", "user", "assistant", "tool"]
    assert asked.messages[2]["reasoning_content"] == "I look."
    assert asked.tool_choice == ToolChoice(mode="required")


def test_stop_sequences(service, client):
    service.says(piece("content", "x"), Finished(index=0, reason="stop", stop_text="END"))
    message = client.messages.create(model="m", max_tokens=9, messages=HELLO, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    assert service.asked[-1].stop == ("END",)


def test_counting(service, client):
    assert client.messages.count_tokens(model="m", messages=HELLO, tools=[WEATHER]).input_tokens == 42


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("invalid_request", anthropic.BadRequestError, "invalid_request_error"),
        ("context_length", anthropic.BadRequestError, "prompt is too long"),
        ("permission", anthropic.PermissionDeniedError, "permission_error"),
        ("not_found", anthropic.NotFoundError, "not_found_error"),
        ("overloaded", anthropic.RateLimitError, "rate_limit_error"),
        ("unavailable", anthropic.InternalServerError, "overloaded_error"),
        ("internal", anthropic.InternalServerError, "api_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(service, client, kind, error, said, stream):
    service.script = ServiceError(kind, "Why.", retry_after=3)
    with pytest.raises(error) as e:
        client.messages.create(model="m", max_tokens=9, messages=HELLO, stream=stream)
    assert e.value.body["type"] == "error"
    assert said in str(e.value.body["error"])
    assert e.value.response.headers["retry-after"] == "3"


def test_an_error_in_the_middle_of_a_stream(service, client):
    service.says(piece("content", "x"), ServiceError("internal", "The device is gone."))
    with pytest.raises(anthropic.APIStatusError, match=r"The device is gone\."):
        list(client.messages.create(model="m", max_tokens=9, messages=HELLO, stream=True))
    assert eventually(lambda: service.replies[-1].is_closed)


def test_a_wrong_key(server):
    client = anthropic.Anthropic(base_url=server[1], api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        client.messages.create(model="m", max_tokens=9, messages=HELLO)


def test_a_wrong_body(client):
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.role: Input should be"):
        client.messages.create(model="m", max_tokens=9, messages=[{"role": "robot", "content": "x"}])


def test_half_of_a_character_is_refused(server):
    body = b'{"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "\\ud800"}]}'
    response = httpx.post(f"{server[1]}/v1/messages", content=body, headers={"x-api-key": "secret"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_client_that_goes_away_ends_its_reply(service, client):
    service.says(piece("content", "x"), 60, Finished(index=0, reason="stop"))
    with client.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
        assert next(stream.text_stream) == "x"
    assert eventually(lambda: service.replies[-1].is_closed)
