"""Anthropic's Messages API: `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import JSONResponse, Response

from ikq.serve.anthropic.bodies import CountBody, MessagesBody
from ikq.serve.anthropic.errors import error_object, error_status
from ikq.serve.anthropic.reply import collect
from ikq.serve.anthropic.request import shows_thinking, to_chat_request
from ikq.serve.anthropic.stream import MessageStream
from ikq.serve.endpoint import Call, Endpoint, ErrorForm
from ikq.serve.errors import ServiceError
from ikq.serve.service import Reply
from ikq.serve.streams import Streamed, event

__all__ = ["ENDPOINTS"]

_ERRORS = ErrorForm(status=error_status, body=error_object, id_header="request-id", has_id=True)


async def _messages(call: Call) -> Response:
    body: MessagesBody = call.body
    reply = await call.service.chat(to_chat_request(body, call.settings))
    stream = MessageStream(
        reply.id,
        reply.model,
        n_prompt=len(reply.prompt),
        max_tokens=body.max_tokens,
        shows_thinking=shows_thinking(body),
    )
    if body.stream:
        return Streamed(_told(reply, stream), send_timeout=call.settings.send_timeout)
    async with aclosing(reply):
        events = [*stream.start(reply.usage)]
        async for piece in reply:
            events += stream.feed(piece)
    return JSONResponse(collect([*events, *stream.finish(reply.usage)]))


async def _told(reply: Reply, stream: MessageStream) -> AsyncGenerator[bytes, None]:
    """The events of a reply, as they are sent."""
    async with aclosing(reply):
        for said in stream.start(reply.usage):
            yield event(said, said["type"])
        try:
            async for piece in reply:
                for said in stream.feed(piece):
                    yield event(said, said["type"])
        except ServiceError as error:
            yield event(error_object(error), "error")
            return
        for said in stream.finish(reply.usage):
            yield event(said, said["type"])


async def _count_tokens(call: Call) -> Response:
    return JSONResponse(
        {"input_tokens": await call.service.count_tokens(to_chat_request(call.body, call.settings))}
    )


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/messages",
        handle=_messages,
        errors=_ERRORS,
        body=MessagesBody,
        summary="Answers a conversation (Anthropic).",
    ),
    Endpoint(
        method="POST",
        path="/v1/messages/count_tokens",
        handle=_count_tokens,
        errors=_ERRORS,
        body=CountBody,
        summary="Counts the tokens of a conversation (Anthropic).",
    ),
]
