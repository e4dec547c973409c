"""Bodies that are wrong: in words of JSON, and found out about before all of a large one was looked at."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ikq.sampling import SamplingOptions
from ikq.serve.anthropic.bodies import MessagesBody
from ikq.serve.errors import ServiceError
from ikq.serve.llama.bodies import DetokenizeBody, LlamaBody
from ikq.serve.openai.bodies import ChatBody, CompletionBody, EmbeddingBody
from ikq.serve.openai.request import chat_request
from ikq.serve.openai.sampling import sampling_of
from ikq.serve.responses.bodies import ResponsesBody
from ikq.serve.settings import Settings
from ikq.serve.validation import check

SAY = [{"role": "user", "content": "x"}]
N = 20_000


def refused(model, body):
    with pytest.raises(ServiceError) as error:
        check(model, body)
    assert error.value.kind == "invalid_request"
    return error.value


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (CompletionBody, {"prompt": [1.5] * N}),
        (CompletionBody, {"prompt": [[1, "x"]] * N}),
        (LlamaBody, {"prompt": [None] * N}),
        (LlamaBody, {"prompt": [[None]] * N}),
        (EmbeddingBody, {"input": [{}] * N}),
        (DetokenizeBody, {"tokens": ["x"] * N}),
        (ChatBody, {"messages": [1] * N}),
        (ChatBody, {"messages": SAY, "tools": [1] * N}),
        (ResponsesBody, {"input": [1] * N}),
        (ResponsesBody, {"input": [{"role": "user", "content": [{"type": "x"}] * N}]}),
        (ResponsesBody, {"input": "x", "metadata": {str(i): 1 for i in range(N)}}),
        (MessagesBody, {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [1] * N}]}),
        (
            MessagesBody,
            {
                "model": "m",
                "max_tokens": 1,
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "x", "content": [1] * N}],
                    }
                ],
            },
        ),
    ],
)
def test_of_many_wrong_values_one_is_told(model, body):
    """The event loop waits for it: telling of each of them takes a second for some 30,000."""
    with pytest.raises(ValidationError) as error:
        model.model_validate(body)
    assert error.value.error_count() < 20
    assert len(str(refused(model, body))) < 300


@pytest.mark.parametrize("model", [ChatBody, ResponsesBody, MessagesBody])
def test_many_fields(model):
    error = refused(model, {f"x{i}": 1 for i in range(N)})
    assert error.sentence == f"the body has {N} fields, more than 1000"


def test_many_biases():
    body = check(ChatBody, {"messages": SAY, "logit_bias": {str(i): "x" for i in range(N)}})
    with pytest.raises(ServiceError) as error:
        sampling_of(body, SamplingOptions())
    assert error.value.parameter == "logit_bias"


def test_many_tools():
    """Names are compared in one pass: with all pairs it would take a minute."""
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(N)]
    allowed = {"mode": "auto", "tools": [tools[-1]]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    body = check(ChatBody, {"messages": SAY, "tools": tools, "tool_choice": choice})
    assert chat_request(body, Settings()).tools == (tools[-1],)


@pytest.mark.parametrize(
    ("model", "body", "sentence"),
    [
        (ChatBody, {"messages": SAY, "stream_options": 3}, "stream_options: Input should be an object"),
        (ChatBody, {"messages": SAY, "response_format": []}, "response_format: Input should be an object"),
        (ChatBody, {"messages": ["x"]}, "messages.0: Input should be an object"),
        (ChatBody, ["x"], "Input should be an object"),
        (ResponsesBody, {"input": "x", "text": {"format": 3}}, "text.format: Input should be an object"),
        (ResponsesBody, {"input": "x", "background": 0}, "background: expected false"),
        (
            ResponsesBody,
            {"input": "x", "metadata": {str(i): "" for i in range(17)}},
            "metadata: expected at most 16 keys",
        ),
        (
            MessagesBody,
            {"model": "m", "max_tokens": 1, "messages": SAY, "thinking": "on"},
            "thinking: Input should be an object",
        ),
    ],
)
def test_words(model, body, sentence):
    assert refused(model, body).sentence == sentence
