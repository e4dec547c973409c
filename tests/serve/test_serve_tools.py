"""Tools in chats: calls that a limit cuts, tools beside a form of the answer, templates without a place for tools."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from serving import pieces, serving

SAY = [{"role": "user", "content": "import os\nimport"}]
ARGUMENTS = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer", "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": ARGUMENTS, "strict": True}}
ANSWER = {
    "type": "object",
    "properties": {"x": {"enum": [1, 2, 3]}},
    "required": ["x"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": ANSWER}}
MARKS = ("<tool", "tool_call>", "</tool", "tool_calls", "response")


@pytest.fixture(scope="module")
def plain():
    """A server of a model whose template has no place for tools."""
    with serving() as running:
        yield running


def chat(server, **body):
    status, reply = server.ask("/v1/chat/completions", {"messages": SAY, "seed": 2, **body})
    assert status == 200, reply
    return reply["choices"][0]


def streamed(server, **body):
    """Content, calls and the reason of a streamed reply."""
    status, text = server.ask("/v1/chat/completions", {"messages": SAY, "seed": 2, **body, "stream": True})
    assert status == 200, text
    content, calls, reason = "", {}, None
    for chunk in pieces(text)[:-1]:
        for choice in chunk["choices"]:
            content += choice["delta"].get("content") or ""
            reason = choice["finish_reason"] or reason
            for call in choice["delta"].get("tool_calls", ()):
                calls.setdefault(call["index"], []).append(call["function"])
    found = [(c[0]["name"], "".join(part["arguments"] for part in c)) for c in calls.values()]
    return content, found, reason


@pytest.mark.parametrize("place", ["server", "plain"])
def test_a_call_that_a_limit_cuts(place, request):
    server = request.getfixturevalue(place)
    body = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    whole = chat(server, **body, max_tokens=300)
    assert whole["finish_reason"] == "tool_calls"
    (call,) = whole["message"]["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), ARGUMENTS)
    n_called = 0
    for n in range(1, 40, 4):
        cut = chat(server, **body, max_tokens=n)
        if cut["finish_reason"] == "tool_calls":
            break
        message = cut["message"]
        assert cut["finish_reason"] == "length"
        assert not message["content"], message
        for found in message.get("tool_calls", ()):
            n_called += 1
            assert found["function"]["name"] == "lookup"
            assert call["function"]["arguments"].startswith(found["function"]["arguments"])
        told = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())]
        assert streamed(server, **body, max_tokens=n) == ("", told, "length")
    assert n_called


def test_the_other_apis_show_no_tags_of_a_call_that_is_cut(server):
    tool = {"name": "lookup", "input_schema": ARGUMENTS}
    function = {"type": "function", "name": "lookup", "parameters": ARGUMENTS}
    for n in (16, 18, 21, 24):
        status, reply = server.ask(
            "/v1/messages",
            {"model": "m", "messages": SAY, "tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": n},
        )
        assert (status, reply["stop_reason"]) == (200, "max_tokens")
        assert {block["type"] for block in reply["content"]} <= {"tool_use"}
        status, reply = server.ask(
            "/v1/responses",
            {"input": "import", "tools": [function], "tool_choice": "required", "max_output_tokens": n},
        )
        assert (status, reply["status"]) == (200, "incomplete")
        assert all(item["type"] == "function_call" for item in reply["output"])
        assert all(item["status"] == "incomplete" for item in reply["output"])


@pytest.mark.parametrize("place", ["server", "plain"])
def test_tools_beside_a_form_of_the_answer(place, request):
    server = request.getfixturevalue(place)
    one = {"tools": [TOOL], "parallel_tool_calls": False, "max_tokens": 400, "temperature": 2}
    kinds = set()
    for seed in range(6):
        found = chat(server, **one, response_format=FORM, seed=seed)
        message = found["message"]
        if message.get("tool_calls"):
            kinds.add("calls")
            assert found["finish_reason"] == "tool_calls"
            assert not message["content"]
            for call in message["tool_calls"]:
                jsonschema.validate(json.loads(call["function"]["arguments"]), ARGUMENTS)
        else:
            kinds.add("answer")
            assert found["finish_reason"] == "stop"
            jsonschema.validate(json.loads(message["content"]), ANSWER)
    assert "answer" in kinds
    # a call it must be, and no call at all
    found = chat(server, tools=[TOOL], tool_choice="required", response_format=FORM, max_tokens=400)
    assert found["message"]["tool_calls"]
    found = chat(server, tools=[TOOL], tool_choice="none", response_format=FORM, max_tokens=400)
    jsonschema.validate(json.loads(found["message"]["content"]), ANSWER)
    # any object
    found = chat(
        server,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        response_format={"type": "json_object"},
        logit_bias={},
        max_tokens=60,
    )
    assert (found["message"]["content"] or "{").startswith("{")


def test_the_same_seed_says_the_same_under_load(server):
    """Whatever constrains a reply, and whatever is computed beside it."""
    kinds = (
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL]},
        {"tools": [TOOL], "response_format": FORM},
        {"response_format": FORM},
        {"regex": "[a-z]{5,40}"},
        {"reasoning_budget_tokens": 7},
        {"messages": [*SAY, {"role": "assistant", "content": "sys"}]},
    )

    def ask(i):
        found = chat(server, **{"messages": SAY, "max_tokens": 40, **kinds[i % len(kinds)], "seed": i})
        message = dict(found["message"])
        for call in message.get("tool_calls", ()):
            del call["id"]
        return message, found["finish_reason"]

    n = 2 * len(kinds)
    alone = [ask(i) for i in range(n)]
    with ThreadPoolExecutor(n) as threads:
        assert list(threads.map(ask, range(n))) == alone


@pytest.mark.parametrize(
    ("change", "parameter", "word"),
    [
        ({"response_format": {"type": "json_object", "schema": {"not": {}}}}, "response_format", "not"),
        ({"grammar": 'root ::= "x"'}, "grammar", "tools"),
        ({"regex": "x"}, "regex", "tools"),
        ({"regex": "(", "tools": []}, "regex", ""),
        ({"json_schema": {"not": {}}, "tools": []}, "json_schema", "not"),
        ({"grammar": "root ::= nothing", "tools": []}, "grammar", ""),
    ],
)
def test_forms_that_cannot_be_had(server, change, parameter, word):
    body = {"messages": SAY, "tools": [TOOL], "max_tokens": 2, **change}
    status, reply = server.ask("/v1/chat/completions", body)
    assert (status, reply["error"]["param"]) == (400, parameter)
    assert word in reply["error"]["message"]


def test_a_template_without_a_place_for_tools(plain):
    _, told = plain.ask("/apply-template", {"messages": SAY, "tools": [TOOL]})
    assert "You can call functions" in told["prompt"]
    kinds = set()
    for seed in range(4):
        found = chat(plain, tools=[TOOL], max_tokens=100, seed=seed, temperature=2)
        message = found["message"]
        content = message["content"] or ""
        assert not content.startswith("{")
        kinds.add("calls" if message.get("tool_calls") else "answer")
        assert streamed(plain, tools=[TOOL], max_tokens=100, seed=seed, temperature=2)[0] == content
    assert "answer" in kinds
    call = chat(plain, tools=[TOOL], tool_choice="required", max_tokens=300)["message"]["tool_calls"][0]
    second = [
        *SAY,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "3"},
    ]
    assert chat(plain, messages=second, tools=[TOOL], max_tokens=4)["finish_reason"]
    # without tools it says what it likes
    _, told = plain.ask("/apply-template", {"messages": second})
    assert "You can call functions" not in told["prompt"]
    assert "Result of lookup:\n3" in told["prompt"]
    assert chat(plain, messages=second, max_tokens=4)["message"]["content"]
