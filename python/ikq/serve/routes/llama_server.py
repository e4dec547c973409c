"""llama-server's own paths."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from ikq.serve.asking import current_asker
from ikq.serve.endpoint import Call, Endpoint, Handler
from ikq.serve.errors import ServiceError
from ikq.serve.jobs import Chore
from ikq.serve.llama.bodies import (
    DetokenizeBody,
    LlamaBody,
    LlamaEmbeddingBody,
    LoraBody,
    NameBody,
    SlotBody,
    TokenizeBody,
)
from ikq.serve.llama.completion import completion_pieces
from ikq.serve.llama.completion import completions as found_completions
from ikq.serve.llama.errors import LLAMA_ERRORS, error_object
from ikq.serve.llama.metrics import CONTENT_TYPE, metrics_text
from ikq.serve.llama.props import props_object, sampling_object
from ikq.serve.llama.slots import erase, file_of, restore, save, slots_object
from ikq.serve.loaded import LoadedModel
from ikq.serve.local import LocalService
from ikq.serve.openai.bodies import ChatBody
from ikq.serve.openai.request import (
    MOST_PROMPTS,
    all_replies,
    chat_request,
    check_inputs,
    common_fields,
    split_inputs,
)
from ikq.serve.requests import CompletionRequest, EmbeddingRequest
from ikq.serve.streams import Streamed, event

__all__ = ["ENDPOINTS"]


def _local(call: Call) -> LocalService:
    assert isinstance(call.service, LocalService)
    return call.service


async def health(call: Call) -> Response:
    """Whether the server is there."""
    return JSONResponse({"status": "ok"})


async def metrics(call: Call) -> Response:
    """Numbers for Prometheus."""
    return Response(metrics_text(_local(call).models.loaded), media_type=CONTENT_TYPE)


async def props(call: Call) -> Response:
    """What there is to know of a model."""
    async with _local(call).models.use(call.request.query_params.get("model")) as model:
        return JSONResponse(props_object(model, call.settings))


async def complete(call: Call) -> Response:
    """Continues a text."""
    body: LlamaBody = call.body
    if body.n not in (None, 1):
        raise ServiceError("invalid_request", "n is not offered here", parameter="n")
    if body.post_sampling_probs:
        sentence = "post_sampling_probs is not offered: probabilities are those before any sampler"
        raise ServiceError("unsupported", sentence, parameter="post_sampling_probs")
    given = split_prompts(body.prompt)
    if not 1 <= len(given) <= MOST_PROMPTS:
        sentence = f"prompt: {len(given)} prompts, expected 1 to {MOST_PROMPTS}"
        raise ServiceError("invalid_request", sentence, parameter="prompt")
    async with _local(call).models.use(body.model, body.timeout) as model:
        prompts = await asyncio.to_thread(lambda: [_prompt(model, prompt) for prompt in given])
    common = common_fields(body, call.settings, body.max_tokens)
    replies = await all_replies(
        call.service,
        [CompletionRequest(**common, logprobs=body.n_probs or None, prompt=prompt) for prompt in prompts],
    )
    chosen = sampling_object(common["sampling"], common["max_tokens"])
    if body.stream:
        events = completion_pieces(replies, body, chosen)
        return Streamed(events, _told, send_timeout=call.settings.send_timeout)
    found = await found_completions(replies, body, chosen)
    return JSONResponse(found[0] if len(found) == 1 else found)


def _told(error: ServiceError) -> bytes:
    """An error in the middle of a stream."""
    return event(error_object(error))


def split_prompts(given: str | list[Any]) -> list[str | list[int | str]]:
    """One or several prompts, each a text, or tokens and texts in turn.

    Examples:
        >>> split_prompts([5, "a"]), split_prompts(["a", "b"]), split_prompts([[5, "a"], "b"])
        ([[5, 'a']], ['a', 'b'], [[5, 'a'], 'b'])
    """
    if isinstance(given, str):
        return [given]
    return [given] if any(isinstance(part, int) for part in given) else given


def _prompt(model: LoadedModel, given: str | list[int | str]) -> str | tuple[int, ...]:
    """A prompt: a text, or tokens and texts in turn."""
    if isinstance(given, str):
        return given
    tokens: list[int] = []
    for part in given:
        tokens += [part] if isinstance(part, int) else model.model.tokenize(part, parse_special=True)
    return tuple(tokens)


async def embedding(call: Call) -> Response:
    """Embeddings of texts, in llama-server's form."""
    body: LlamaEmbeddingBody = call.body
    inputs = split_inputs(body.content)
    check_inputs(inputs, "content")
    found = await call.service.embed(EmbeddingRequest(model=body.model, inputs=tuple(inputs)))
    # of a text there is one embedding; without pooling there would be several
    return JSONResponse([{"index": i, "embedding": [v.tolist()]} for i, v in enumerate(found.vectors)])


async def load(call: Call) -> Response:
    """Loads a model."""
    async with _local(call).models.use(call.body.model):
        return JSONResponse({"success": True})


async def unload(call: Call) -> Response:
    """Lets a model go."""
    if not await _local(call).models.unload(call.body.model):
        sentence = f"{call.body.model} is not loaded, or in use"
        raise ServiceError("invalid_request", sentence, parameter="model")
    return JSONResponse({"success": True})


async def tokenize(call: Call) -> Response:
    """Tokens of a text."""
    body: TokenizeBody = call.body
    async with _local(call).models.use(body.model) as model:
        tokenizer = model.model.tokenizer

        def encode() -> list[int]:
            return tokenizer.encode(
                body.content,
                add_special=bool(body.add_special),
                parse_special=body.parse_special is not False,
            )

        tokens = await asyncio.to_thread(encode)
    if not body.with_pieces:
        return JSONResponse({"tokens": tokens})
    pieces: list[dict[str, Any]] = []
    for token in tokens:
        data = tokenizer.token_bytes(token)
        try:
            pieces.append({"id": token, "piece": data.decode()})
        except UnicodeDecodeError:
            pieces.append({"id": token, "piece": list(data)})
    return JSONResponse({"tokens": pieces})


async def detokenize(call: Call) -> Response:
    """Text of tokens."""
    body: DetokenizeBody = call.body
    async with _local(call).models.use(body.model) as model:
        n_vocab = model.model.tokenizer.n_vocab
        for token in body.tokens:
            if not 0 <= token < n_vocab:
                sentence = f"token {token} is not in the vocabulary of {n_vocab} tokens"
                raise ServiceError("invalid_request", sentence, parameter="tokens")
        text = await asyncio.to_thread(model.model.tokenizer.decode, body.tokens, False)
    return JSONResponse({"content": text})


async def apply_template(call: Call) -> Response:
    """The prompt of a conversation."""
    body: ChatBody = call.body
    request = chat_request(body, call.settings)
    async with _local(call).models.use(body.model) as model:
        return JSONResponse({"prompt": await asyncio.to_thread(model.render, request)})


async def slots(call: Call) -> Response:
    """What is known of slots."""
    if not call.settings.slots:
        raise ServiceError("unsupported", "slots are not told about: the server was started with --no-slots")
    async with _local(call).models.use(call.request.query_params.get("model")) as model:
        found = slots_object(model)
    if "fail_on_no_slot" in call.request.query_params and all(s["is_processing"] for s in found):
        raise ServiceError("unavailable", "no slot is free", retry_after=1)
    return JSONResponse(found)


async def change_slot(call: Call) -> Response:
    """Saves, restores or erases the text of a slot."""
    body: SlotBody = call.body
    action = call.request.query_params.get("action")
    wanted = body.model or call.request.query_params.get("model")
    async with _local(call).models.use(wanted) as model:
        slot = _slot_id(call.request.path_params["id"], model)
        start = time.perf_counter()

        async def do(chore: Chore) -> Any:  # noqa: ANN401  # what the chore returns
            return await asyncio.wrap_future(model.engine.do(chore, current_asker(call.settings.timeout)))

        def timings(name: str) -> dict[str, Any]:
            return {"timings": {name: (time.perf_counter() - start) * 1000}}

        if action == "erase":
            return JSONResponse({"id_slot": slot, "n_erased": await do(erase(model, slot))})
        if action not in ("save", "restore"):
            sentence = "action: expected save, restore or erase"
            raise ServiceError("invalid_request", sentence, parameter="action")
        file = file_of(call.settings.slot_dir, body.filename)
        names = {"id_slot": slot, "filename": file.name}
        if action == "save":
            n, size = await do(save(model, slot, file))
            return JSONResponse({**names, "n_saved": n, "n_written": size, **timings("save_ms")})
        n, size = await do(restore(model, slot, file))
        return JSONResponse({**names, "n_restored": n, "n_read": size, **timings("restore_ms")})


async def lora_adapters(call: Call) -> Response:
    """The LoRA adapters of a model, and their scales for requests that say nothing else."""
    async with _local(call).models.use(call.request.query_params.get("model")) as model:
        found = model.model.lora_adapters
    entries = [{"id": i, "path": str(a.path), "scale": a.scale} for i, a in enumerate(found)]
    return JSONResponse(entries)


async def set_lora_adapters(call: Call) -> Response:
    """Sets these scales, and 0 for adapters that are not named. Texts that have begun keep theirs."""
    body: LoraBody = call.body
    async with _local(call).models.use(call.request.query_params.get("model")) as model:
        scales = model.lora_scales({entry.id: entry.scale for entry in body.root})
        await asyncio.to_thread(model.model.set_lora, scales)
    return JSONResponse({"success": True})


def _slot_id(text: str, model: LoadedModel) -> int:
    n = len(model.engine.slots)
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) >= n:
        raise ServiceError("not_found", f"there is no slot {text[:20]!r}, but 0 to {n - 1}")
    return int(text)


def _get(path: str, handle: Handler, *query: str, needs_key: bool = True) -> Endpoint:
    return Endpoint(
        method="GET",
        path=path,
        handle=handle,
        errors=LLAMA_ERRORS,
        query={name: {"type": "string"} for name in query},
        summary=(handle.__doc__ or "").strip(),
        needs_key=needs_key,
    )


def _post(path: str, handle: Handler, body: type[BaseModel]) -> Endpoint:
    return Endpoint(
        method="POST",
        path=path,
        handle=handle,
        errors=LLAMA_ERRORS,
        body=body,
        summary=(handle.__doc__ or "").strip(),
    )


ENDPOINTS = [
    _get("/health", health, needs_key=False),
    _get("/v1/health", health, needs_key=False),
    _get("/metrics", metrics),
    _get("/props", props, "model"),
    _get("/slots", slots, "model", "fail_on_no_slot"),
    replace(
        _post("/slots/{id}", change_slot, SlotBody),
        needs_body=False,
        query={"action": {"enum": ["save", "restore", "erase"]}},
        needs_query=True,
    ),
    _get("/lora-adapters", lora_adapters, "model"),
    replace(_post("/lora-adapters", set_lora_adapters, LoraBody), query={"model": {"type": "string"}}),
    _post("/completion", complete, LlamaBody),
    _post("/completions", complete, LlamaBody),
    _post("/embedding", embedding, LlamaEmbeddingBody),
    _post("/models/load", load, NameBody),
    _post("/models/unload", unload, NameBody),
    _post("/tokenize", tokenize, TokenizeBody),
    _post("/detokenize", detokenize, DetokenizeBody),
    _post("/apply-template", apply_template, ChatBody),
]
"""See `Endpoint`."""
