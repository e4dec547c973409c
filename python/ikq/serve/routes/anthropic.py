"""Anthropic's Messages API: `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import JSONResponse, Response

from ikq.serve.anthropic.bodies import CountBody, MessagesBody
from ikq.serve.anthropic.errors import ANTHROPIC_ERRORS, error_object
from ikq.serve.anthropic.reply import collect
from ikq.serve.anthropic.request import shows_thinking, to_chat_request
from ikq.serve.anthropic.stream import MessageStream
from ikq.serve.endpoint import Call, Endpoint
from ikq.serve.errors import ServiceError
from ikq.serve.service import Reply
from ikq.serve.streams import Streamed, event

__all__ = ["ENDPOINTS"]


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
        return Streamed(_events(reply, stream), _told, send_timeout=call.settings.send_timeout)
    async with aclosing(reply):
        events = [*stream.start(reply.usage)]
        async for piece in reply:
            events += stream.feed(piece)
    return JSONResponse(collect([*events, *stream.finish(reply.usage)]))


async def _events(reply: Reply, stream: MessageStream) -> AsyncGenerator[bytes, None]:
    """The events of a reply, as they are sent.

    Raises:
        ServiceError: the rest cannot be given.
    """
    has_begun = False
    async with aclosing(reply):
        async for piece in reply:
            # not before: how much of the prompt was there already is known now
            begun = [] if has_begun else [*stream.start(reply.usage)]
            has_begun = True
            for said in [*begun, *stream.feed(piece)]:
                yield event(said, said["type"])
        for said in stream.finish(reply.usage):
            yield event(said, said["type"])


def _told(error: ServiceError) -> bytes:
    """An error in the middle of a stream."""
    return event(error_object(error), "error")


async def _count_tokens(call: Call) -> Response:
    return JSONResponse(
        {"input_tokens": await call.service.count_tokens(to_chat_request(call.body, call.settings))}
    )


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/messages",
        handle=_messages,
        errors=ANTHROPIC_ERRORS,
        body=MessagesBody,
        summary="Answers a conversation (Anthropic).",
    ),
    Endpoint(
        method="POST",
        path="/v1/messages/count_tokens",
        handle=_count_tokens,
        errors=ANTHROPIC_ERRORS,
        body=CountBody,
        summary="Counts the tokens of a conversation (Anthropic).",
    ),
]
