"""Errors in the form of each API, and the names of requests by which the log knows them."""

from __future__ import annotations

import json
import logging

import anthropic
import httpx
import openai
import pytest
from scripted import ScriptedService, eventually, piece, running, scripted_app
from serving import pieces, serving

from ikq.serve.errors import _STATUS, ServiceError
from ikq.serve.llama.errors import LLAMA_ERRORS
from ikq.serve.openai_errors import OPENAI_ERRORS

SAY = [{"role": "user", "content": "import"}]
LONG = [{"role": "user", "content": "x y " * 2000}]


def test_openais_form():
    forms = {}
    for kind in _STATUS:
        error = ServiceError(kind, "Why.", parameter="x")
        body = OPENAI_ERRORS.body(error)["error"]
        assert (body["message"], body["param"]) == ("Why.", "x")
        forms[kind] = (OPENAI_ERRORS.status(error), body["type"], body["code"])
    assert forms["invalid_request"] == (400, "invalid_request_error", None)
    assert forms["context_length"] == (400, "invalid_request_error", "context_length_exceeded")
    assert forms["authentication"] == (401, "invalid_request_error", "invalid_api_key")
    assert forms["unsupported"] == (400, "invalid_request_error", "unsupported_parameter")
    assert forms["overloaded"] == (429, "rate_limit_error", "rate_limit_exceeded")
    assert forms["internal"] == (500, "server_error", None)
    assert forms["unavailable"] == (503, "server_error", None)
    body = OPENAI_ERRORS.body(ServiceError("not_found", "", parameter="model"))["error"]
    assert (body["type"], body["code"]) == ("invalid_request_error", "model_not_found")


def test_llama_servers_form():
    forms = {}
    for kind in _STATUS:
        error = ServiceError(kind, "Why.", facts={"n_ctx": 3})
        body = LLAMA_ERRORS.body(error)["error"]
        assert (body["message"], body["n_ctx"]) == ("Why.", 3)
        assert body["code"] == LLAMA_ERRORS.status(error) == error.status
        forms[body["type"]] = error.status
    assert (
        forms.items()
        >= {
            "invalid_request_error": 422,
            "exceed_context_size_error": 400,
            "authentication_error": 401,
            "permission_error": 403,
            "not_found_error": 404,
            "not_supported_error": 501,
            "unavailable_error": 503,
            "server_error": 500,
        }.items()
    )


def test_the_context_is_told_in_numbers(server):
    for path, body in (
        ("/completion", {"prompt": LONG[0]["content"]}),
        ("/v1/chat/completions", {"messages": LONG}),
    ):
        status, reply = server.ask(path, body)
        assert (status, reply["error"]["n_ctx"]) == (400, 1024)
        assert reply["error"]["n_prompt_tokens"] > 1024


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_client_sees(server, stream):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model="m", messages=LONG, stream=stream)
        assert error.value.param == "messages"
        assert (error.value.type, error.value.code) == ("invalid_request_error", "context_length_exceeded")
        assert error.value.request_id.startswith("req_")
        with pytest.raises(openai.BadRequestError) as error:
            client.responses.create(model="m", input="x", previous_response_id="resp_0", stream=stream)
        assert (error.value.param, error.value.code) == (
            "previous_response_id",
            "previous_response_not_found",
        )
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("another")
        assert missing.value.code == "model_not_found"
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        with pytest.raises(anthropic.BadRequestError) as refused:
            client.messages.create(model="m", messages=LONG, max_tokens=1, stream=stream)
        assert refused.value.request_id == refused.value.body["request_id"]
        assert refused.value.request_id.startswith("req_")


def test_anthropics_client_on_paths_of_both(server):
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        with pytest.raises(anthropic.NotFoundError) as error:
            client.models.retrieve("another")
        assert error.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.NotFoundError) as error:
            client.get("/nothing", cast_to=object)
        assert error.value.body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("begins", [False, True])
def test_errors_that_come_when_the_status_has_been_sent(monkeypatch, caplog, begins):
    """Before the first piece, and behind it: the client is told in an event, and the log has it."""
    monkeypatch.setattr("ikq.serve.streams._PATIENCE", 0.05)
    bodies = {
        "/v1/chat/completions": {"messages": SAY},
        "/v1/messages": {"model": "m", "max_tokens": 9, "messages": SAY},
        "/v1/responses": {"input": "x"},
    }
    service = ScriptedService()
    with running(scripted_app(service)) as url:
        for error in (ServiceError("timeout", "Too late."), ValueError("a slip")):
            for path, body in bodies.items():
                service.says(*([piece("content", "x")] if begins else []), 0.2, error)
                found = httpx.post(url + path, json={**body, "stream": True})
                assert found.status_code == 200
                last = pieces(found.text)[-1]
                told = last["response"]["error"] if "response" in last else last.get("error", last)
                sentence = "Too late." if isinstance(error, ServiceError) else "its log says why"
                assert sentence in told["message"], found.text
                assert eventually(lambda: service.replies[-1].is_closed)
    assert caplog.text.count("a slip") == 3


@pytest.mark.parametrize(
    ("error", "status"), [(ServiceError("timeout", "Late."), 408), (ValueError("x"), 500)]
)
def test_errors_before_the_first_piece_of_a_stream_have_a_status(error, status):
    service = ScriptedService()
    service.says(error)
    with running(scripted_app(service)) as url:
        found = httpx.post(f"{url}/v1/chat/completions", json={"messages": SAY, "stream": True})
        assert found.status_code == status
        assert found.json()["error"]["message"]
        body = {"model": "m", "max_tokens": 9, "messages": SAY, "stream": True}
        service.says(error)
        found = httpx.post(f"{url}/v1/messages", json=body)
        assert found.json()["type"] == "error"
        assert found.status_code == (504 if status == 408 else 500)


def test_names_of_requests(caplog):
    caplog.set_level(logging.INFO, "ikq.serve")
    with serving(access_log=True, log_json=True) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            names = [client.chat.completions.create(model="m", messages=SAY, max_tokens=1)._request_id]
            with pytest.raises(openai.NotFoundError) as error:
                client.get("/nothing", cast_to=object)
            names.append(error.value.request_id)
        with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
            names.append(client.messages.create(model="m", messages=SAY, max_tokens=1)._request_id)
            with pytest.raises(anthropic.NotFoundError) as lost:
                client.get("/v1/messages/nothing", cast_to=object)
            names.append(lost.value.request_id)
            assert lost.value.body["request_id"] == lost.value.request_id
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.getMessage().startswith("{")]
    assert [line["id"] for line in lines] == names
    assert len(set(names)) == 4
