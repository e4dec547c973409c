"""OpenAI's Responses API: `/v1/responses`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import JSONResponse
from starlette.responses import Response as HttpResponse

from ikq.serve.endpoint import Call, Endpoint
from ikq.serve.errors import ServiceError
from ikq.serve.openai_errors import OPENAI_ERRORS, error_object
from ikq.serve.request_log import note_error
from ikq.serve.requests import ChatRequest
from ikq.serve.responses.bodies import ItemReference, ResponsesBody
from ikq.serve.responses.messages import item_of, output_messages
from ikq.serve.responses.request import to_chat_request
from ikq.serve.responses.response import Response
from ikq.serve.responses.store import ResponseStore, Stored
from ikq.serve.responses.stream import ResponseStream
from ikq.serve.service import Reply
from ikq.serve.streams import Streamed, event

__all__ = ["ENDPOINTS"]


async def _create(call: Call) -> HttpResponse:
    body: ResponsesBody = call.body
    request = _chat_request(call)
    reply = await call.service.chat(request)
    response = Response(reply.id, model=reply.model, created=reply.created, body=body, request=request)
    stream = ResponseStream(response, reply.token_bytes)

    def keep() -> None:
        if body.store is not False:
            _store(call).put(response.id, _stored(response, request, body))

    if body.stream:
        events = _told(reply, stream, keep)
        return Streamed(events, _error_event, send_timeout=call.settings.send_timeout)
    async with aclosing(reply):
        async for piece in reply:
            for _ in stream.feed(piece):
                pass
    for _ in stream.finish(reply.usage):
        keep()
    return JSONResponse(response.as_object())


async def _told(
    reply: Reply, stream: ResponseStream, keep: Callable[[], None]
) -> AsyncGenerator[bytes, None]:
    """The events of a reply, as they are sent."""
    async with aclosing(reply):
        for said in stream.start():
            yield event(said, said["type"])
        try:
            async for piece in reply:
                for said in stream.feed(piece):
                    yield event(said, said["type"])
        except ServiceError as error:
            note_error(error.sentence)
            for said in stream.fail(error, reply.usage):
                yield event(said, said["type"])
            return
        for said in stream.finish(reply.usage):
            keep()
            yield event(said, said["type"])


def _error_event(error: ServiceError) -> bytes:
    """An error that is not the reply's: of that its response tells."""
    return event({"type": "error", "sequence_number": 0, **error_object(error)["error"]}, "error")


async def _count_tokens(call: Call) -> HttpResponse:
    n_tokens = await call.service.count_tokens(_chat_request(call))
    return JSONResponse({"object": "response.input_tokens", "input_tokens": n_tokens})


async def _retrieve(call: Call) -> HttpResponse:
    return JSONResponse(_store(call).get(call.request.path_params["id"]).response)


async def _delete(call: Call) -> HttpResponse:
    name = call.request.path_params["id"]
    _store(call).get(name)
    _store(call).drop(name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


def _chat_request(call: Call) -> ChatRequest:
    previous = call.body.previous_response_id
    earlier = () if previous is None else _store(call).get(previous, "previous_response_id").messages
    return to_chat_request(_resolved(call), call.settings, earlier)


def _resolved(call: Call) -> ResponsesBody:
    """The body, with the items of earlier responses that it names."""
    body: ResponsesBody = call.body
    if isinstance(body.input, str) or not any(isinstance(item, ItemReference) for item in body.input):
        return body
    store = _store(call)
    items = [
        item_of(store.item(item.id, f"input.{i}.id")) if isinstance(item, ItemReference) else item
        for i, item in enumerate(body.input)
    ]
    return body.model_copy(update={"input": items})


def _stored(response: Response, request: ChatRequest, body: ResponsesBody) -> Stored:
    """The response and its conversation; instructions hold for one response only."""
    said = request.messages if body.instructions is None else request.messages[1:]
    return Stored(response=response.as_object(), messages=[*said, *output_messages(response.output)])


def _store(call: Call) -> ResponseStore:
    """The responses that this server keeps."""
    state = call.request.app.state
    if not hasattr(state, "responses"):
        state.responses = ResponseStore()
    store: ResponseStore = state.responses
    return store


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/responses",
        handle=_create,
        errors=OPENAI_ERRORS,
        body=ResponsesBody,
        summary="Answers a conversation (OpenAI's Responses).",
    ),
    Endpoint(
        method="POST",
        path="/v1/responses/input_tokens",
        handle=_count_tokens,
        errors=OPENAI_ERRORS,
        body=ResponsesBody,
        summary="Counts the tokens of a conversation.",
    ),
    Endpoint(
        method="GET",
        path="/v1/responses/{id}",
        handle=_retrieve,
        errors=OPENAI_ERRORS,
        summary="A response that was stored.",
    ),
    Endpoint(
        method="DELETE",
        path="/v1/responses/{id}",
        handle=_delete,
        errors=OPENAI_ERRORS,
        summary="Forgets a response.",
    ),
]
