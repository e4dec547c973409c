"""OpenAI's paths: chat completions, completions, embeddings, models."""

from __future__ import annotations

import base64
import datetime
from typing import Any

import numpy as np
from starlette.responses import JSONResponse, Response

from ikq.serve.endpoint import Call, Endpoint
from ikq.serve.errors import ServiceError
from ikq.serve.local import LocalService
from ikq.serve.openai.bodies import ChatBody, CompletionBody, EmbeddingBody
from ikq.serve.openai.chat import chat_chunks, chat_completion
from ikq.serve.openai.completions import completion, completion_chunks
from ikq.serve.openai.request import (
    MOST_PROMPTS,
    all_replies,
    chat_request,
    check_inputs,
    completion_request,
    split_inputs,
)
from ikq.serve.openai_errors import OPENAI_ERRORS, error_object
from ikq.serve.requests import EmbeddingRequest
from ikq.serve.service import Reply
from ikq.serve.streams import Streamed, event

__all__ = ["ENDPOINTS"]


async def chat_completions(call: Call) -> Response:
    """Answers a conversation."""
    body: ChatBody = call.body
    request = chat_request(body, call.settings)
    reply = await call.service.chat(request)
    with_logprobs = request.logprobs is not None
    if body.stream:
        chunks = chat_chunks(
            reply,
            request.n,
            with_logprobs=with_logprobs,
            with_usage=_wants_usage(body),
            with_timings=bool(body.timings_per_token),
        )
        return Streamed(chunks, _told, send_timeout=call.settings.send_timeout)
    try:
        return JSONResponse(await chat_completion(reply, request.n, with_logprobs=with_logprobs))
    finally:
        await reply.aclose()


async def count_tokens(call: Call) -> Response:
    """Counts the tokens of a conversation's prompt."""
    n = await call.service.count_tokens(chat_request(call.body, call.settings))
    return JSONResponse({"object": "response.input_tokens", "input_tokens": n})


async def completions(call: Call) -> Response:
    """Continues texts."""
    body: CompletionBody = call.body
    prompts = split_inputs(body.prompt)
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        sentence = f"prompt: {len(prompts)} prompts, expected 1 to {MOST_PROMPTS}"
        raise ServiceError("invalid_request", sentence, parameter="prompt")
    requests = [completion_request(body, prompt, call.settings) for prompt in prompts]
    replies = await all_replies(call.service, requests)
    echoes = [_text_of(r) if body.echo else "" for r in replies]
    with_logprobs = body.logprobs is not None
    n = requests[0].n
    if body.stream:
        chunks = completion_chunks(
            replies, n, echoes=echoes, with_logprobs=with_logprobs, with_usage=_wants_usage(body)
        )
        return Streamed(chunks, _told, send_timeout=call.settings.send_timeout)
    return JSONResponse(await completion(replies, n, echoes=echoes, with_logprobs=with_logprobs))


def _told(error: ServiceError) -> bytes:
    """An error in the middle of a stream."""
    return event(error_object(error))


def _text_of(reply: Reply) -> str:
    return b"".join(map(reply.token_bytes, reply.prompt)).decode(errors="replace")


def _wants_usage(body: ChatBody | CompletionBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


async def embeddings(call: Call) -> Response:
    """Embeddings of texts."""
    body: EmbeddingBody = call.body
    inputs = split_inputs(body.input)
    check_inputs(inputs, "input")
    found = await call.service.embed(EmbeddingRequest(model=body.model, inputs=tuple(inputs)))
    vectors = found.vectors
    if body.dimensions is not None:
        if body.dimensions > len(vectors[0]):
            sentence = f"dimensions={body.dimensions}: the model's embeddings have {len(vectors[0])}"
            raise ServiceError("invalid_request", sentence, parameter="dimensions")
        vectors = [v[: body.dimensions] for v in vectors]
        vectors = [v / max(float(np.linalg.norm(v)), 1e-12) for v in vectors]
    data: list[dict[str, Any]] = []
    for i, vector in enumerate(vectors):
        plain = vector.astype("<f4")
        is_base64 = body.encoding_format == "base64"
        shown = base64.b64encode(plain.tobytes()).decode() if is_base64 else plain.tolist()
        data.append({"object": "embedding", "index": i, "embedding": shown})
    usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
    return JSONResponse({"object": "list", "data": data, "model": found.model, "usage": usage})


async def list_models(call: Call) -> Response:
    """The models that there are."""
    models = _local(call).models
    await models.refresh()
    names = list(models.paths)
    # what Anthropic's client looks for is there as well
    pages = {"has_more": False, "first_id": next(iter(names), None), "last_id": next(reversed(names), None)}
    return JSONResponse({"object": "list", "data": [_model(call, name) for name in names], **pages})


async def get_model(call: Call) -> Response:
    """One of them."""
    name = call.request.path_params["name"]
    await _local(call).models.refresh()
    if name not in _local(call).models.paths:
        raise ServiceError("not_found", f"there is no model {name!r}", parameter="model")
    return JSONResponse(_model(call, name))


def _local(call: Call) -> LocalService:
    assert isinstance(call.service, LocalService)
    return call.service


def _model(call: Call, name: str) -> dict[str, Any]:
    models = _local(call).models
    loaded = next((m for m in models.loaded if m.name == name), None)
    try:
        created = int(models.paths[name].stat().st_mtime)
    except OSError:  # the file has gone; it may be loaded all the same
        created = 0
    when = datetime.datetime.fromtimestamp(created, datetime.timezone.utc)
    found: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "ikq",
        "type": "model",
        "display_name": name,
        "created_at": when.isoformat().replace("+00:00", "Z"),
    }
    if loaded is not None:
        spec = loaded.model.spec
        found["meta"] = {
            "architecture": spec.architecture,
            "n_vocab": spec.n_vocab,
            "n_ctx": loaded.model.n_ctx,
            "n_ctx_train": spec.n_ctx_train,
            "size": loaded.size,
        }
    found["status"] = {"value": "unloaded" if loaded is None else "loaded"}
    return found


ENDPOINTS = [
    *(
        Endpoint(
            method="POST",
            path=path,
            handle=chat_completions,
            errors=OPENAI_ERRORS,
            body=ChatBody,
            summary="Answers a conversation.",
        )
        for path in ("/v1/chat/completions", "/chat/completions")
    ),
    Endpoint(
        method="POST",
        path="/v1/chat/completions/input_tokens",
        handle=count_tokens,
        errors=OPENAI_ERRORS,
        body=ChatBody,
        summary="Counts the tokens of a conversation.",
    ),
    Endpoint(
        method="POST",
        path="/v1/completions",
        handle=completions,
        errors=OPENAI_ERRORS,
        body=CompletionBody,
        summary="Continues texts.",
    ),
    *(
        Endpoint(
            method="POST",
            path=path,
            handle=embeddings,
            errors=OPENAI_ERRORS,
            body=EmbeddingBody,
            summary="Embeddings of texts.",
        )
        for path in ("/v1/embeddings", "/embeddings")
    ),
    *(
        Endpoint(
            method="GET",
            path=path,
            handle=list_models,
            errors=OPENAI_ERRORS,
            summary="The models that there are.",
        )
        for path in ("/v1/models", "/models")
    ),
    Endpoint(
        method="GET",
        path="/v1/models/{name:path}",
        handle=get_model,
        errors=OPENAI_ERRORS,
        summary="One of the models.",
    ),
]
"""See `Endpoint`."""
