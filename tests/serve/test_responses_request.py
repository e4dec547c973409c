"""What bodies of the Responses API mean."""

import pytest

from ikq.sampling import SamplingOptions
from ikq.serve.errors import ServiceError
from ikq.serve.requests import ChatRequest, Form, ToolChoice
from ikq.serve.responses.bodies import ResponsesBody
from ikq.serve.responses.request import to_chat_request
from ikq.serve.settings import Settings
from ikq.serve.validation import check

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
TIME = {"type": "function", "name": "time", "description": "Now"}


def request(earlier=(), **fields) -> ChatRequest:
    return to_chat_request(check(ResponsesBody, {"input": "Hello"} | fields), None, earlier)


def messages(*items, **fields) -> list[dict]:
    return list(request(input=list(items), **fields).messages)


def call(number: int) -> dict:
    return {
        "type": "function_call",
        "call_id": f"c{number}",
        "name": "weather",
        "arguments": "{}",
        "id": "fc_1",
    }


def chat_call(number: int) -> dict:
    return {"id": f"c{number}", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def test_a_text_is_what_the_user_says():
    asked = request(instructions="Be kind.", max_output_tokens=5, temperature=0, top_p=0.5, seed=3, top_k=2)
    assert asked.messages == ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"})
    assert asked.max_tokens == 5
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.seed, asked.sampling.top_k) == (
        0,
        0.5,
        3,
        2,
    )


def test_what_is_not_said_is_the_servers_default():
    asked = to_chat_request(
        check(ResponsesBody, {"input": "x"}), Settings(sampling=SamplingOptions(temperature=0.25))
    )
    assert (asked.sampling.temperature, asked.max_tokens, asked.template_options) == (0.25, None, {})


def test_items_of_one_reply_are_one_message():
    assert messages(
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Look."}],
        },
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "One moment.", "annotations": []}],
        },
        call(1),
        call(2),
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Again."}]},
        call(3),
        {"type": "function_call_output", "call_id": "c3", "output": "fog"},
    ) == [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "One moment.",
            "reasoning_content": "Look.",
            "tool_calls": [chat_call(1), chat_call(2)],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "sun"},
        {"role": "assistant", "content": "", "reasoning_content": "Again.", "tool_calls": [chat_call(3)]},
        {"role": "tool", "tool_call_id": "c3", "content": "fog"},
    ]


def test_replies_that_follow_one_another_stay_apart():
    said = messages({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"})
    assert [m["content"] for m in said] == ["a", "b"]
    assert len(messages(call(1), {"role": "assistant", "content": "b"})) == 2


def test_what_was_kept_comes_first():
    asked = request(earlier=[{"role": "user", "content": "Hi"}], instructions="New.")
    assert [m["content"] for m in asked.messages] == ["New.", "Hi", "Hello"]


def test_tools_in_the_form_of_chat_completions():
    assert request(tools=[WEATHER, TIME]).tools == (
        {
            "type": "function",
            "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True},
        },
        {
            "type": "function",
            "function": {
                "name": "time",
                "description": "Now",
                "parameters": {"type": "object", "properties": {}},
            },
        },
    )


NAMED = {"type": "function", "name": "time"}


@pytest.mark.parametrize(
    ("choice", "expected", "n_tools"),
    [
        (None, ToolChoice(), 2),
        ("auto", ToolChoice(), 2),
        ("none", ToolChoice(mode="none"), 2),
        ("required", ToolChoice(mode="required"), 2),
        (NAMED, ToolChoice(mode="required", name="time"), 2),
        ({"type": "allowed_tools", "mode": "required", "tools": [NAMED]}, ToolChoice(mode="required"), 1),
    ],
)
def test_tool_choice(choice, expected, n_tools):
    asked = request(tools=[WEATHER, TIME], tool_choice=choice)
    assert (asked.tool_choice, len(asked.tools)) == (expected, n_tools)


def test_one_call_at_a_time():
    assert request(tools=[TIME], parallel_tool_calls=False).tool_choice == ToolChoice(parallel=False)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"type": "text"}, Form()),
        ({"type": "json_object"}, Form(json_object=True)),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "array"}},
            Form(json_schema={"type": "array"}),
        ),
    ],
)
def test_structured_output(form, expected):
    assert request(text={"format": form}).form == expected


@pytest.mark.parametrize(
    ("effort", "options"),
    [("none", {"enable_thinking": False}), ("low", {"enable_thinking": True, "reasoning_effort": "low"})],
)
def test_effort_goes_to_the_template(effort, options):
    assert request(reasoning={"effort": effort}).template_options == options


def test_probabilities():
    assert request().logprobs is None
    assert request(include=["message.output_text.logprobs"]).logprobs == 0
    assert request(include=["message.output_text.logprobs"], top_logprobs=3).logprobs == 3


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": ""}]}, "input.0.role"),
        ({"input": [{"type": "computer_call", "id": "x"}]}, "input.0"),
        ({"input": [{"type": 5}]}, "input.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0",
        ),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "n"}]}, "input.0.arguments"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"temperature": 2.5}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_refused_names_its_place(fields, place):
    with pytest.raises(ServiceError) as e:
        request(**fields)
    assert (e.value.kind, e.value.parameter) == ("invalid_request", place)
