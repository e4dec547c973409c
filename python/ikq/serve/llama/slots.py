"""`/slots`: what they tell, and texts of slots in files."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ikq.errors import IkqError
from ikq.serve.errors import ServiceError
from ikq.serve.loaded import LoadedModel

__all__ = ["erase", "file_of", "restore", "save", "slots_object"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def file_of(folder: Path | None, name: str | None) -> Path:
    """A file of the folder for slots.

    Args:
        folder: See there; `None`: there is none.
        name: As the client gives it: a plain name, never a path.

    Raises:
        ServiceError: there is no folder, or it is no plain name.
    """
    if folder is None:
        raise ServiceError(
            "unsupported", "slots are kept in no files: start the server with --slot-save-path"
        )
    if name is None or not _NAME.fullmatch(name):
        sentence = "filename: expected a plain name of letters, digits, `.`, `_` and `-`"
        raise ServiceError("invalid_request", sentence, parameter="filename")
    return folder / name


def slots_object(model: LoadedModel) -> list[dict[str, Any]]:
    """What is known of each slot."""
    found = []
    for i in range(len(model.engine.slots)):
        slot = model.engine.slots[i]
        text = slot.text
        facts: dict[str, Any] = {
            "id": i,
            "n_ctx": model.model.n_ctx,
            "is_processing": text is not None,
            "n_tokens": len(slot.tokens if text is None else text.work.tokens),
        }
        if text is not None:
            facts["n_prompt_tokens"] = text.n_prompt
            facts["n_prompt_tokens_cache"] = text.work.n_reused
            facts["next_token"] = [{"n_decoded": text.n_chosen}]
        found.append(facts)
    return found


# in the engine's thread


def save(model: LoadedModel, slot: int, file: Path) -> Generator[None, None, tuple[int, int]]:
    """Writes what was computed of the last text of a slot; numbers of tokens and bytes.

    Raises:
        ServiceError: nothing of it is there, or the file cannot be written.
    """
    yield
    engine = model.engine
    tokens = engine.slots[slot].tokens
    found, n = engine.prefixes.find(tokens, lora=engine.slots[slot].lora)
    taken = None if found is None else engine.prefixes.copy(found, n)
    if taken is None:
        raise ServiceError("invalid_request", f"slot {slot} holds no text")
    with taken:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            taken.save(file)
        except OSError as error:
            raise ServiceError("internal", f"the file cannot be written: {error.strerror}") from None
        return taken.n_past, file.stat().st_size


def restore(model: LoadedModel, slot: int, file: Path) -> Generator[None, None, tuple[int, int]]:
    """Reads what `save` wrote; numbers of tokens and bytes.

    Raises:
        ServiceError: there is no such file, or it is damaged or another model's.
    """
    yield
    engine = model.engine
    try:
        size = file.stat().st_size
        sequence = model.model.load_sequence(file)
    except FileNotFoundError:
        raise ServiceError("not_found", f"there is no file {file.name}", parameter="filename") from None
    except OSError as error:
        sentence = f"{file.name} cannot be read: {error.strerror}"
        raise ServiceError("invalid_request", sentence, parameter="filename") from None
    except IkqError:
        sentence = f"{file.name} is damaged, or of another model, form of the cache or LoRA adapters"
        raise ServiceError("invalid_request", sentence, parameter="filename") from None
    tokens = sequence.tokens
    engine.slots[slot].tokens, engine.slots[slot].lora = tokens, sequence.lora
    engine.prefixes.add(sequence)
    return len(tokens), size


def erase(model: LoadedModel, slot: int) -> Generator[None, None, int]:
    """Forgets the last text of a slot; the number of its tokens."""
    yield
    engine = model.engine
    tokens, engine.slots[slot].tokens = engine.slots[slot].tokens, []
    engine.prefixes.forget(tokens, engine.slots[slot].lora)
    return len(tokens)
