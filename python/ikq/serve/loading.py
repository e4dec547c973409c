"""Models loaded, and files looked at before: `load_model`, `check_model`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ikq.errors import RefusedError
from ikq.files.gguf import GGUFReader
from ikq.inference.memory import available_memory
from ikq.inference.model import PLANNED, Model
from ikq.models import model_spec, mtp_spec
from ikq.serve.engine import Engine
from ikq.serve.loaded import LoadedModel
from ikq.serve.request_log import LOG
from ikq.serve.saved import folder_of, load_prefixes
from ikq.serve.settings import Settings
from ikq.speculation import check_same_vocabulary
from ikq.speculation.options import Speculation
from ikq.text.chat import ChatTemplate
from ikq.tokenizer import Tokenizer

__all__ = ["check_model", "load_model"]


def load_model(
    name: str,
    path: Path,
    options: dict[str, Any],
    settings: Settings,
    speculation: Speculation,
) -> LoadedModel:
    """Loads a model and starts its engine.

    Args:
        name: What clients call it.
        path: Its file.
        options: Keywords of `Model.load`.
        settings: Limits and folders.
        speculation: What drafts its texts.

    Raises:
        OSError, IkqError: as `Model.load`.
    """
    options = {**_drafting(speculation), **options}
    if options.get("fit"):
        found = Model.plan(path, **{name: options[name] for name in PLANNED if name in options}).fitted
        assert found is not None
        LOG.info("fit of %s: %s", name, found.sentence)
        options = options | found.keywords
    model = Model.load(path, **options)
    try:
        if settings.chat_template is not None:
            model.chat_template = chat_template_of(settings.chat_template, model.tokenizer)
        _ = model.tokenizer, model.reply_form  # damaged ones show now
        speculation.text(model)
        engine = Engine(
            model, n_slots=settings.parallel, n_queue=settings.queue, budget=_budget(model, settings)
        )
    except BaseException:
        model.close()
        raise
    loaded = LoadedModel(name, path, model, engine, int(time.time()), speculation)
    if settings.prefix_dir is not None:
        loaded.prefix_dir = folder_of(settings.prefix_dir, path)
        try:
            n = engine.do(load_prefixes(model, engine.prefixes, loaded.prefix_dir)).result()
        except BaseException:
            engine.close()
            engine.prefixes.clear()
            model.close()
            raise
        LOG.info("found %d texts of %s in %s", n, name, loaded.prefix_dir)
    return loaded


def check_model(path: Path, options: dict[str, Any], settings: Settings, speculation: Speculation) -> int:
    """Finds out whether a file can be loaded, before anything makes room for it.

    Args:
        path: The model's file.
        options: As for `load_model`.
        settings: As there.
        speculation: As there.

    Returns:
        Bytes that it needs at least.

    Raises:
        OSError, IkqError: as `Model.load`.
    """
    options = {**_drafting(speculation), **options}
    plan = Model.plan(path, **{name: options[name] for name in PLANNED if name in options})
    with GGUFReader(path) as reader:
        reader.metadata.update(options.get("override_kv") or {})
        tokenizer = Tokenizer.from_reader(reader)
        if settings.chat_template is None:
            ChatTemplate.from_reader(reader, tokenizer)
        _check_drafts(path, reader, speculation)
    # weights that are mapped need none; a context that nobody asked for is made as small as need be
    weights = sum(plan.weights.values()) if options.get("mmap") == "off" else 0
    return weights + (plan.cache if options.get("n_ctx") is not None else 0)


def _drafting(speculation: Speculation) -> dict[str, Any]:
    """What is to draft, as keywords of `Model.load`."""
    draft = speculation.draft_model
    if isinstance(draft, (str, os.PathLike)):
        return {"draft_model": draft}
    return {"mtp": speculation.mtp}


def _check_drafts(path: Path, reader: GGUFReader, speculation: Speculation) -> None:
    """Finds out whether a model can be drafted for.

    Raises:
        RefusedError: it cannot.
        OSError, IkqError: the draft model is none.
    """
    if speculation.mtp and mtp_spec(reader) is None:
        raise RefusedError(f"{path} has no head for further tokens (`nextn` tensors), which --mtp needs")
    if isinstance(speculation.draft_model, (str, os.PathLike)):
        with GGUFReader(speculation.draft_model) as draft:
            n_vocab = model_spec(reader).n_vocab, model_spec(draft).n_vocab
            check_same_vocabulary(reader.metadata, draft.metadata, n_vocab, str(speculation.draft_model))


def chat_template_of(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    """A template that is used instead of the file's.

    Raises:
        FormatError: it is no template.
    """
    bos, eos = tokenizer.text_of(tokenizer.bos), tokenizer.text_of(tokenizer.eos)
    return ChatTemplate(source, bos_token=bos, eos_token=eos)


def _budget(model: Model, settings: Settings) -> int:
    """Bytes that caches of a model may take."""
    if settings.cache_bytes is not None:
        return settings.cache_bytes
    full = model.sequence_bytes(model.n_ctx)
    return max(full, min(settings.parallel * full, available_memory() // 2))
