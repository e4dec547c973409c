"""What bodies of the Messages API mean."""

import json

import pytest

from ikq.sampling import SamplingOptions
from ikq.serve.anthropic.bodies import CountBody, MessagesBody
from ikq.serve.anthropic.request import shows_thinking, to_chat_request
from ikq.serve.errors import ServiceError
from ikq.serve.requests import ChatRequest, Form, ToolChoice
from ikq.serve.settings import Settings
from ikq.serve.validation import check

WEATHER = {
    "name": "weather",
    "description": "Now",
    "input_schema": {"type": "object", "properties": {"city": {}}},
}
HELLO = [{"role": "user", "content": "Hello"}]


def request(**fields) -> ChatRequest:
    return to_chat_request(
        check(MessagesBody, {"model": "m", "max_tokens": 2000, "messages": HELLO} | fields)
    )


def messages(*turns, **fields) -> list[dict]:
    return list(request(messages=list(turns), **fields).messages)


def refusal(**fields) -> ServiceError:
    with pytest.raises(ServiceError) as e:
        request(**fields)
    return e.value


def test_a_text_is_a_message():
    asked = request(stop_sequences=["END"], temperature=0.5, top_p=0.9, top_k=3)
    assert asked.messages == ({"role": "user", "content": "Hello"},)
    assert (asked.model, asked.max_tokens, asked.stop) == ("m", 2000, ("END",))
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (0.5, 0.9, 3)
    assert not asked.continues


def test_what_is_not_said_is_the_servers_default():
    body = check(MessagesBody, {"model": "m", "max_tokens": 1, "messages": HELLO, "top_k": 7})
    sampling = to_chat_request(
        body, Settings(sampling=SamplingOptions(temperature=0.25, min_p=0.125))
    ).sampling
    assert (sampling.temperature, sampling.min_p, sampling.top_k) == (0.25, 0.125, 7)


@pytest.mark.parametrize(
    ("system", "content"),
    [
        ("Be kind.", "Be kind."),
        ([{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}], "Be kind."),
        (
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        ),
    ],
)
def test_the_system_prompt_comes_first(system, content):
    assert messages(*HELLO, system=system) == [{"role": "system", "content": content}, HELLO[0]]


def test_calls_and_results_become_messages_of_their_own():
    turns = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I look.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "One moment."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}},
                {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And?"},
                {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no"}],
                },
            ],
        },
    ]
    user, assistant, *results, question = messages(*turns, tools=[WEATHER])
    assert user == turns[0]
    assert (assistant["content"], assistant["reasoning_content"]) == ("One moment.", "I look.")
    assert [
        (c["id"], c["function"]["name"], json.loads(c["function"]["arguments"]))
        for c in assistant["tool_calls"]
    ] == [
        ("t1", "weather", {"city": "Köln"}),
        ("t2", "weather", {}),
    ]
    assert results == [
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
    ]
    assert question == {"role": "user", "content": "And?"}


def test_turns_of_one_role_are_one_turn():
    both = messages(
        {"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}
    )
    assert both == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ]


def test_documents_are_texts():
    document = {
        "type": "document",
        "title": "T",
        "source": {"type": "text", "media_type": "text/plain", "data": "D"},
    }
    result = {
        "type": "search_result",
        "title": "T",
        "source": "S",
        "content": [{"type": "text", "text": "C"}],
    }
    assert messages({"role": "user", "content": [document]})[0]["content"] == "T\nD"
    assert messages({"role": "user", "content": [result]})[0]["content"] == "T\nS\nC"


def test_a_last_turn_of_the_assistant_is_continued():
    asked = request(messages=[*HELLO, {"role": "assistant", "content": "The answer is"}])
    assert asked.continues
    assert asked.messages[-1] == {"role": "assistant", "content": "The answer is"}


def test_tools_in_the_form_of_chat_completions():
    function = {"name": "weather", "description": "Now", "parameters": WEATHER["input_schema"]}
    assert request(tools=[WEATHER]).tools == ({"type": "function", "function": function},)
    (tool,) = request(tools=[WEATHER | {"strict": True}]).tools
    assert tool["function"] == function | {"strict": True}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ({"type": "auto"}, ToolChoice()),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(parallel=False)),
        ({"type": "any"}, ToolChoice(mode="required")),
        ({"type": "none"}, ToolChoice(mode="none")),
        (
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            ToolChoice(mode="required", name="weather", parallel=False),
        ),
    ],
)
def test_tool_choice(choice, expected):
    assert request(tools=[WEATHER], tool_choice=choice).tool_choice == expected


@pytest.mark.parametrize(
    ("thinking", "enabled"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, True),
        ({"type": "enabled", "budget_tokens": 1024}, True),
    ],
)
def test_thinking_is_a_wish_for_the_template(thinking, enabled):
    assert request(thinking=thinking).template_options == {"enable_thinking": enabled}


def test_who_runs_the_server_says_what_holds_otherwise():
    settings = Settings(template_options={"enable_thinking": True, "x": 1})
    body = {"model": "m", "max_tokens": 2000, "messages": HELLO}
    assert to_chat_request(check(MessagesBody, body), settings).template_options == {
        "enable_thinking": True,
        "x": 1,
    }
    body["thinking"] = {"type": "disabled"}
    assert not to_chat_request(check(MessagesBody, body), settings).template_options["enable_thinking"]


def test_effort_goes_to_the_template():
    assert request(output_config={"effort": "low"}).template_options["reasoning_effort"] == "low"


def test_hidden_thoughts():
    fields = {"model": "m", "messages": HELLO}
    assert shows_thinking(check(CountBody, fields))
    assert not shows_thinking(
        check(CountBody, fields | {"thinking": {"type": "adaptive", "display": "omitted"}})
    )


@pytest.mark.parametrize("field", ["output_format", "output_config"])
def test_structured_output(field):
    form = {"type": "json_schema", "schema": {"type": "object"}}
    value = form if field == "output_format" else {"format": form}
    assert request(**{field: value}).form == Form(json_schema={"type": "object"})


def test_counting_takes_no_max_tokens():
    body = {"model": "m", "messages": HELLO, "tools": [WEATHER]}
    assert to_chat_request(check(CountBody, body)).messages == tuple(HELLO)
    with pytest.raises(ServiceError, match=r"^max_tokens: "):
        check(CountBody, body | {"max_tokens": 1})


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, "messages.0.content"),
        ({"messages": [*HELLO, {"role": "assistant", "content": [CALL]}]}, "messages"),
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_refused_names_its_place(fields, place):
    error = refusal(**fields)
    assert (error.kind, error.parameter) == ("invalid_request", place)
    assert error.sentence.startswith(f"{place}") or place == "messages"


def test_the_budget_of_thoughts():
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert request(thinking=thinking, max_tokens=2048).reasoning_budget == 1024
    assert request().reasoning_budget is None
