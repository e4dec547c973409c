"""OpenAI's own client against the routes of the Responses API."""

import openai
import pytest
from scripted import ScriptedService, eventually, piece, running, scripted_app

from ikq.serve.errors import ServiceError
from ikq.serve.events import Finished
from ikq.serve.requests import Form

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


@pytest.fixture(scope="module")
def server():
    service = ScriptedService()
    with running(scripted_app(service, ("secret",))) as url:
        yield service, f"{url}/v1"


@pytest.fixture
def service(server):
    return server[0]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server[1], api_key="secret", max_retries=0) as client:
        yield client


REPLY = (
    piece("reasoning", "I look."),
    piece("content", "One "),
    piece("content", "moment."),
    piece("tool_call", '{"city": ', call=0, call_id="c0", name="weather"),
    piece("tool_call", '"Köln"}', call=0),
    Finished(index=0, reason="tool_calls"),
)


def check_reply(response: openai.types.responses.Response) -> None:
    reasoning, message, call = response.output
    assert reasoning.content[0].text == "I look."
    assert message.content[0].text == response.output_text == "One moment."
    assert (call.call_id, call.name, call.arguments) == ("c0", "weather", '{"city": "Köln"}')
    assert response.status == "completed"
    assert (response.usage.input_tokens, response.usage.output_tokens) == (3, len(REPLY))


def test_a_response(service, client):
    service.says(*REPLY)
    check_reply(client.responses.create(model="m", input="Hello", tools=[WEATHER]))
    assert service.replies[-1].is_closed


def test_a_stream(service, client):
    service.says(*REPLY)
    with client.responses.stream(model="m", input="Hello", tools=[WEATHER]) as stream:
        events = list(stream)
        check_reply(stream.get_final_response())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "One moment."


def test_a_conversation_that_the_server_keeps(service, client):
    service.says(*REPLY)
    first = client.responses.create(model="m", input="Hello", tools=[WEATHER], instructions="Be brief.")
    service.says_text("Rain.")
    output = {"type": "function_call_output", "call_id": "c0", "output": "rain"}
    second = client.responses.create(
        model="m", input=[output], previous_response_id=first.id, instructions="Be kind.", stream=True
    )
    last = list(second)[-1].response
    asked = service.asked[-1].messages
    assert [m["role"] for m in asked] == ["system", "user", "assistant", "tool"]
    assert asked[0]["content"] == "Be kind."
    assert asked[2]["reasoning_content"] == "I look."
    assert last.previous_response_id == first.id
    assert client.responses.retrieve(last.id).output_text == "Rain."
    client.responses.delete(last.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(last.id)


def test_items_that_the_server_keeps(service, client):
    """As programs send them that let the server keep what it said."""
    service.says(*REPLY)
    first = client.responses.create(model="m", input="Hello", tools=[WEATHER])
    service.says_text("Rain.")
    said = [{"role": "user", "content": "Hello"}]
    kept = [{"type": "item_reference", "id": item.id} for item in first.output]
    output = {"type": "function_call_output", "call_id": "c0", "output": "rain"}
    client.responses.create(model="m", input=[*said, *kept, output])
    by_name = service.asked[-1].messages
    client.responses.create(model="m", input=[*said, *first.output, output])
    assert by_name == service.asked[-1].messages
    assert by_name[1]["tool_calls"]
    for name in ("msg_0_0", first.output[0].id + "0", "", "x", "_", "resp_"):
        with pytest.raises(openai.BadRequestError, match="Send the item itself") as e:
            client.responses.create(model="m", input=[{"type": "item_reference", "id": name}])
        assert e.value.param == "input.0.id"


def test_what_is_not_stored_cannot_go_on(service, client):
    service.says_text("Hi.")
    first = client.responses.create(model="m", input="Hello", store=False)
    with pytest.raises(openai.BadRequestError, match="Send the whole conversation") as e:
        client.responses.create(model="m", input="And?", previous_response_id=first.id)
    assert e.value.param == "previous_response_id"


def test_structured_output(service, client):
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    service.says_text('{"name": ', '"Köln"}')
    response = client.responses.parse(model="m", input="Where?", text_format=City)
    assert response.output_parsed == City(name="Köln")
    form = service.asked[-1].form
    assert form == Form(json_schema=form.json_schema)
    assert form.json_schema["required"] == ["name"]


def test_a_reply_that_is_cut_off(service, client):
    service.says(piece("content", "x"), Finished(index=0, reason="length"))
    response = client.responses.create(model="m", input="Hello", max_output_tokens=1)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_counting(service, client):
    assert client.responses.input_tokens.count(model="m", input="Hello").input_tokens == 42


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("invalid_request", openai.BadRequestError),
        ("context_length", openai.BadRequestError),
        ("not_found", openai.NotFoundError),
        ("overloaded", openai.RateLimitError),
        ("unavailable", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(service, client, kind, error, stream):
    service.script = ServiceError(kind, "Why.")
    with pytest.raises(error, match=r"Why\."):
        client.responses.create(model="m", input="Hello", stream=stream)


def test_an_error_in_the_middle_of_a_stream(service, client):
    service.says(piece("content", "x"), ServiceError("internal", "The device is gone."))
    last = list(client.responses.create(model="m", input="Hello", stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.error.message == "The device is gone."


def test_a_wrong_key(server):
    client = openai.OpenAI(base_url=server[1], api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.responses.create(model="m", input="Hello")


def test_what_is_not_there_is_refused(client):
    with pytest.raises(openai.BadRequestError, match=r"tools\.0\.type") as e:
        client.responses.create(model="m", input="Hello", tools=[{"type": "web_search"}])
    assert e.value.param == "tools.0.type"


def test_a_client_that_goes_away_ends_its_reply(service, client):
    service.says(piece("content", "x"), 60, Finished(index=0, reason="stop"))
    with client.responses.create(model="m", input="Hello", stream=True) as stream:
        assert next(iter(stream)).type == "response.created"
    assert eventually(lambda: service.replies[-1].is_closed)
