"""Architectures: one file each turns GGUF metadata into a `ModelSpec`.

`model_spec` finds the architecture and gives it a `Source`, the file's keys and tensor shapes. An
architecture is a function from `Source` to `ModelSpec`, put together from shared parts (`attention`, `ffn`,
`rope`, `layers`); a new one is a file here and a line in the table below. The same function gives the spec of
the head that predicts further tokens (`mtp_spec`), from the block behind the model's own.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Literal

from ikq.checkpoint.target import Target
from ikq.errors import FormatError, ShapeError, UnsupportedError
from ikq.files.gguf import GGUFReader
from ikq.models import (
    deepseek2,
    ernie4_5_moe,
    gemma3,
    glm4moe,
    gpt_oss,
    llama,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    qwen3next,
    qwen35moe,
)
from ikq.models.keys import Keys
from ikq.models.source import Source
from ikq.models.spec import ModelSpec
from ikq.models.tensors import Tensors

__all__ = ["CHECKPOINTS", "SUPPORTED", "ModelSpec", "model_spec", "mtp_spec"]

_ARCHITECTURES: dict[str, Callable[[Source], ModelSpec]] = {
    "deepseek2": deepseek2.build,
    "ernie4_5-moe": ernie4_5_moe.build,
    "gemma3": gemma3.build,
    "glm4moe": glm4moe.build,
    "gpt-oss": gpt_oss.build,
    "llama": llama.build,
    "qwen2": qwen2.build,
    "qwen2moe": qwen2moe.build,
    "qwen3": qwen3.build,
    "qwen3moe": qwen3moe.build,
    "qwen3next": qwen3next.build,
    "qwen35moe": qwen35moe.build,
}

CHECKPOINTS: dict[str, tuple[str, Callable[[Target], None]]] = {
    "DeepseekV2ForCausalLM": ("deepseek2", deepseek2.convert),
    "DeepseekV3ForCausalLM": ("deepseek2", deepseek2.convert),
    "Ernie4_5_MoEForCausalLM": ("ernie4_5-moe", ernie4_5_moe.convert),
    "Ernie4_5_MoeForCausalLM": ("ernie4_5-moe", ernie4_5_moe.convert),
    "Gemma3ForCausalLM": ("gemma3", gemma3.convert),
    "Gemma3ForConditionalGeneration": ("gemma3", gemma3.convert),
    "Glm4MoeForCausalLM": ("glm4moe", glm4moe.convert),
    "GptOssForCausalLM": ("gpt-oss", gpt_oss.convert),
    "LlamaForCausalLM": ("llama", llama.convert),
    "MistralForCausalLM": ("llama", llama.convert),
    "MixtralForCausalLM": ("llama", llama.convert),
    "Qwen2ForCausalLM": ("qwen2", qwen2.convert),
    "Qwen2MoeForCausalLM": ("qwen2moe", qwen2moe.convert),
    "Qwen3ForCausalLM": ("qwen3", qwen3.convert),
    "Qwen3MoeForCausalLM": ("qwen3moe", qwen3moe.convert),
    "Qwen3NextForCausalLM": ("qwen3next", qwen3next.convert),
    "Qwen3_5MoeForCausalLM": ("qwen35moe", qwen35moe.convert),
    "Qwen3_5MoeForConditionalGeneration": ("qwen35moe", qwen35moe.convert),
}
"""By the class that `config.json` names: the architecture of the GGUF file, and what writes it."""

SUPPORTED: tuple[str, ...] = tuple(_ARCHITECTURES)
"""Values of `general.architecture` that models may have."""


def model_spec(reader: GGUFReader, *, yarn_truncate: bool = True) -> ModelSpec:
    """The model that a file holds.

    Args:
        reader: the file.
        yarn_truncate: bounds of YaRN's ramp are integers, as in GGUF engines.

    Raises:
        FormatError: a key or tensor is missing, or they do not fit together.
        UnsupportedError: the architecture, or a variant of it, is not supported.
    """
    source, build = _source(reader, yarn_truncate=yarn_truncate)
    return build(source)


def mtp_spec(reader: GGUFReader, *, yarn_truncate: bool = True) -> ModelSpec | None:
    """The head of a file's model that predicts further tokens (MTP, `nextn`); `None` if the file has none.

    Args:
        reader: the file.
        yarn_truncate: as for `model_spec`.

    Raises:
        FormatError, UnsupportedError: as `model_spec`.
    """
    source, build = _source(reader, yarn_truncate=yarn_truncate, part="head")
    return build(source) if source.has_head else None


def _source(
    reader: GGUFReader, *, yarn_truncate: bool, part: Literal["model", "head"] = "model"
) -> tuple[Source, Callable[[Source], ModelSpec]]:
    """The file as its architecture sees it, and the architecture."""
    name = reader.metadata.get("general.architecture")
    if name is None:
        raise FormatError("key `general.architecture` is missing: the file holds no model")
    if not isinstance(name, str):
        raise FormatError(f"key `general.architecture` is {reprlib.repr(name)}, expected a string")
    build = _ARCHITECTURES.get(name)
    if build is None:
        raise UnsupportedError(
            f"architecture `{name:.64}` is not supported; there are {', '.join(SUPPORTED)}"
        )
    keys, tensors = Keys(reader.metadata, name), Tensors(_shapes(reader), name)
    return Source(keys, tensors, yarn_truncate=yarn_truncate, part=part), build


def _shapes(reader: GGUFReader) -> dict[str, tuple[int, ...]]:
    try:
        return reader.shapes()
    except ShapeError as e:
        raise FormatError(str(e)) from e
