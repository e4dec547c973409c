"""`LocalService`: requests answered by models of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ikq.serve.asking import current_asker, within
from ikq.serve.errors import ServiceError
from ikq.serve.loaded import LoadedModel
from ikq.serve.models import Models
from ikq.serve.replying import LocalReply
from ikq.serve.request_log import CURRENT
from ikq.serve.requests import ChatRequest, CompletionRequest, EmbeddingRequest, TextRequest
from ikq.serve.service import Embeddings
from ikq.serve.settings import Settings
from ikq.serve.text import TextPlan

__all__ = ["LocalService"]


class LocalService:
    """See `ikq.serve.service.Service`.

    Attributes:
        models: The models.

    Args:
        models: See there.
        settings: Limits.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models = models
        self._settings = settings

    async def chat(self, request: ChatRequest) -> LocalReply:
        """See `Service.chat`."""
        return await self._reply(request, lambda model: model.plan_chat(request))

    async def complete(self, request: CompletionRequest) -> LocalReply:
        """See `Service.complete`."""
        return await self._reply(request, lambda model: model.plan_completion(request))

    async def count_tokens(self, request: ChatRequest) -> int:
        """See `Service.count_tokens`."""
        async with self.models.use(request.model) as model:
            return await asyncio.to_thread(model.count_tokens, request)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `Service.embed`."""
        if not request.inputs:
            raise ServiceError("invalid_request", "there is no input", parameter="input")
        asker = current_asker(self._settings.timeout)
        async with self.models.use(request.model) as model:
            texts = await within(asker, asyncio.to_thread(self._texts, model, request))
            pooling = request.pooling or self._settings.pooling or model.pooling
            future = model.engine.do(model.embeddings(texts, pooling), asker)
            vectors: list[NDArray[np.float32]] = await asyncio.wrap_future(future)
            if request.normalizes:
                vectors = [v / max(float(np.linalg.norm(v)), 1e-12) for v in vectors]
            _note(model, None)
            return Embeddings(model=model.name, vectors=vectors, n_tokens=sum(map(len, texts)))

    def _texts(self, model: LoadedModel, request: EmbeddingRequest) -> list[list[int]]:
        """Tokens of the texts to be embedded."""
        texts = []
        for text in request.inputs:
            if isinstance(text, str):
                tokens = model.tokens_of(text, parameter="input")
            else:
                tokens = model.checked_tokens(text, "input")
            if not tokens:
                raise ServiceError("invalid_request", "a text is empty", parameter="input")
            if len(tokens) > model.model.n_ctx:
                sentence = f"a text has {len(tokens)} tokens, the context holds {model.model.n_ctx}"
                raise ServiceError("context_length", sentence, parameter="input")
            texts.append(tokens)
        return texts

    async def _reply(self, request: TextRequest, plan: Callable[[LoadedModel], TextPlan]) -> LocalReply:
        most = self._settings.parallel + self._settings.queue
        if not 1 <= request.n <= most:
            sentence = f"n={request.n}: expected 1 to {most}, the texts that may wait (--parallel, --queue)"
            raise ServiceError("invalid_request", sentence, parameter="n")
        asker = current_asker(self._settings.timeout, request.timeout)
        model = await self.models.hold(request.model, asker, request.n)
        try:
            ready = await within(asker, asyncio.to_thread(plan, model))
            reply = LocalReply(
                model.engine,
                ready,
                request.n,
                model=model.name,
                asker=asker,
                done=lambda: self.models.release(model),
            )
        except BaseException:
            self.models.release(model)
            raise
        _note(model, reply)
        return reply


def _note(model: LoadedModel, reply: LocalReply | None) -> None:
    """Notes for the request's line in the log who answers."""
    record = CURRENT.get()
    if record is not None:
        record.models.append(model.name)
        if reply is not None:
            record.usages.append(reply.usage)
