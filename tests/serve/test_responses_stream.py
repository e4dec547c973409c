"""Events of the Responses API, and the response that they are together."""

import itertools

import pytest
from openai.types.responses import Response as OpenAiResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from ikq.serve.errors import ServiceError
from ikq.serve.events import Event, Finished, Piece, TokenLogprob, Usage
from ikq.serve.responses.bodies import ResponsesBody
from ikq.serve.responses.messages import output_messages
from ikq.serve.responses.request import to_chat_request
from ikq.serve.responses.response import Response
from ikq.serve.responses.store import ResponseStore, Stored
from ikq.serve.responses.stream import ResponseStream

EVENT = TypeAdapter(ResponseStreamEvent)
USAGE = Usage(n_prompt=10, n_cached=4, n_completion=7, n_reasoning=2)


def piece(kind: str, text: str, **fields) -> Piece:
    return Piece(index=0, kind=kind, text=text, **fields)


def begun(**fields) -> tuple[Response, ResponseStream]:
    body = ResponsesBody.model_validate({"input": "Hello"} | fields)
    response = Response("1", model="m", created=5, body=body, request=to_chat_request(body))
    return response, ResponseStream(response, lambda token: b"\xc3" if token == 7 else b"a")


def events(*reply: Event, **fields) -> list[dict]:
    _, stream = begun(**fields)
    told = [*stream.start(), *itertools.chain(*map(stream.feed, reply)), *stream.finish(USAGE)]
    assert [e["sequence_number"] for e in told] == list(range(len(told)))
    for event in told:
        EVENT.validate_python(event)
    return told


def names(told: list[dict]) -> list[str]:
    return [e["type"].removeprefix("response.") for e in told]


def test_text_in_order():
    told = events(piece("content", "Hel"), piece("content", "lo"), Finished(index=0, reason="stop"))
    assert names(told) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert told[0]["response"]["output"] == []
    assert told[0]["response"]["status"] == "in_progress"
    assert told[2]["item"]["content"] == []
    assert told[6]["text"] == "Hello"
    response = OpenAiResponse.model_validate(told[-1]["response"])
    assert (response.status, response.output_text) == ("completed", "Hello")
    assert response.usage.input_tokens_details.cached_tokens == 4
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (
        10,
        7,
        17,
    )


def test_thoughts_and_calls_are_items():
    told = events(
        piece("reasoning", "So."),
        piece("content", "\n\n"),
        piece("tool_call", "", call=0, call_id="c0", name="weather"),
        piece("tool_call", '{"a":', call=0),
        piece("tool_call", "1}", call=0),
        piece("tool_call", "{}", call=1, call_id="c1", name="time"),
        Finished(index=0, reason="tool_calls"),
    )
    assert names(told)[2:] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    output = told[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call", "function_call"]
    assert len({item["id"] for item in output}) == 3
    assert [e["item"] for e in told if e["type"] == "response.output_item.done"] == output
    assert (output[1]["call_id"], output[1]["name"], output[1]["arguments"]) == ("c0", "weather", '{"a":1}')
    assert output_messages(output) == [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "So.",
            "tool_calls": [
                {"id": "c0", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}},
                {"id": "c1", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ],
        }
    ]


def test_a_reply_that_is_cut_off_is_incomplete():
    told = events(piece("content", "Hel"), Finished(index=0, reason="length"))
    response = told[-1]["response"]
    assert told[-1]["type"] == "response.incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


def test_a_reply_that_breaks_off_fails():
    _, stream = begun()
    told = [*stream.start(), *stream.feed(piece("content", "Hel"))]
    told += stream.fail(ServiceError("internal", "The device is gone."), USAGE)
    assert told[-1]["type"] == "response.failed"
    assert told[-1]["response"]["status"] == "failed"
    assert told[-1]["response"]["error"] == {"code": "server_error", "message": "The device is gone."}
    OpenAiResponse.model_validate(told[-1]["response"])


def test_probabilities_of_tokens():
    token = TokenLogprob(token=7, logprob=-0.5, top=((7, -0.5), (8, -1.5)))
    told = events(piece("content", "é", tokens=(token,)), Finished(index=0, reason="stop"))
    delta = next(e for e in told if e["type"] == "response.output_text.delta")
    (logprob,) = delta["logprobs"]
    assert (logprob["token"], logprob["bytes"], logprob["logprob"]) == ("\ufffd", [0xC3], -0.5)
    assert [top["token"] for top in logprob["top_logprobs"]] == ["\ufffd", "a"]
    assert told[-1]["response"]["output"][0]["content"][0]["logprobs"] == [logprob]


def test_the_response_repeats_what_was_asked():
    tool = {"type": "function", "name": "time"}
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    response, _ = begun(
        tools=[tool],
        tool_choice=tool,
        text={"format": form},
        reasoning={"effort": "low"},
        metadata={"a": "b"},
        temperature=0.5,
        store=False,
    )
    said = response.as_object()
    assert said["tools"] == [tool]
    assert said["tool_choice"] == tool
    assert said["text"] == {"format": form}
    assert said["reasoning"] == {"effort": "low", "summary": None}
    assert (said["metadata"], said["temperature"], said["store"]) == ({"a": "b"}, 0.5, False)
    assert said["id"].startswith("resp_")


def stored(size: int = 1) -> Stored:
    return Stored(response={"text": "x" * size}, messages=[])


def test_the_store_forgets_what_was_not_used_for_longest():
    store = ResponseStore(max_responses=2)
    store.put("a", stored())
    store.put("b", stored())
    store.get("a")
    store.put("c", stored())
    with pytest.raises(ServiceError) as e:
        store.get("b", "previous_response_id")
    assert (e.value.kind, e.value.parameter) == ("invalid_request", "previous_response_id")
    assert store.get("a").response == {"text": "x"}
    assert store.drop("a")
    assert not store.drop("a")
    with pytest.raises(ServiceError) as e:
        store.get("a")
    assert e.value.kind == "not_found"


def test_the_store_is_bounded_in_bytes():
    store = ResponseStore(max_bytes=1000)
    for name in "abc":
        store.put(name, stored(400))
    with pytest.raises(ServiceError):
        store.get("a")
    store.put("large", stored(2000))
    for name in ("b", "c", "large"):
        with pytest.raises(ServiceError):
            store.get(name)
    store.put("d", stored(900))
    assert store.get("d")
