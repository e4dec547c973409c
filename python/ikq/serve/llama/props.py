"""`/props`: what programs ask a server before they use it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ikq.sampling import SamplingOptions
from ikq.serve.loaded import LoadedModel
from ikq.serve.openai.usage import FINGERPRINT
from ikq.serve.settings import Settings
from ikq.text.templates import Abilities, abilities_of

__all__ = ["props_object", "sampling_object"]


def props_object(model: LoadedModel, settings: Settings) -> dict[str, Any]:
    """What there is to know of a model and its defaults."""
    tokenizer = model.model.tokenizer
    sampling = sampling_object(settings.sampling, settings.max_tokens)
    return {
        "default_generation_settings": {"n_ctx": model.model.n_ctx, "params": sampling},
        "total_slots": len(model.engine.slots),
        "model_alias": model.name,
        "model_path": str(model.path),
        "modalities": {"vision": False, "audio": False},
        "chat_template_caps": _caps(abilities_of(model.model.chat_template)),
        "chat_template": model.model.chat_template.source,
        "bos_token": tokenizer.text_of(tokenizer.bos),
        "eos_token": tokenizer.text_of(tokenizer.eos),
        "build_info": FINGERPRINT,
        "is_sleeping": False,
    }


def sampling_object(options: SamplingOptions, max_tokens: int | None) -> dict[str, Any]:
    """How tokens are chosen, and how many, by llama-server's names."""
    sampling = asdict(options)
    sampling["seed"] = -1 if sampling["seed"] is None else sampling["seed"]
    # JSON has no infinity
    sampling["logit_bias"] = [[token, max(bias, -1e9)] for token, bias in sampling["logit_bias"].items()]
    limit = -1 if max_tokens is None else max_tokens
    return sampling | {"n_predict": limit, "max_tokens": limit}


def _caps(can: Abilities) -> dict[str, bool]:
    """What the chat template can express, by llama-server's names."""
    return {
        "supports_string_content": can.text,
        "supports_typed_content": can.parts,
        "supports_system_role": can.system,
        "supports_tools": can.tools,
        "supports_tool_calls": can.calls is not None,
        "supports_parallel_tool_calls": can.parallel,
    }
