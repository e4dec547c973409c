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
    bailingmoe2,
    cohere2moe,
    deepseek2,
    deepseek32,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    gemma3,
    gemma4,
    glm4moe,
    glm_dsa,
    gpt_oss,
    granite,
    hunyuan_moe,
    laguna,
    llama,
    llama4,
    mimo2,
    minimax_m2,
    mistral4,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    qwen3next,
    qwen35,
    qwen35moe,
    seed_oss,
    step35,
)
from ikq.models.keys import Keys
from ikq.models.source import Source
from ikq.models.spec import ModelSpec
from ikq.models.tensors import Tensors

__all__ = ["CHECKPOINTS", "SUPPORTED", "ModelSpec", "model_spec", "mtp_spec"]

_ARCHITECTURES: dict[str, Callable[[Source], ModelSpec]] = {
    "bailingmoe2": bailingmoe2.build,
    "cohere2moe": cohere2moe.build,
    "deepseek2": deepseek2.build,
    "deepseek32": deepseek32.build,
    "dots1": dots1.build,
    "ernie4_5": ernie4_5.build,
    "ernie4_5-moe": ernie4_5_moe.build,
    "gemma3": gemma3.build,
    "gemma4": gemma4.build,
    "glm-dsa": glm_dsa.build,
    "glm4moe": glm4moe.build,
    "gpt-oss": gpt_oss.build,
    "granite": granite.build,
    "granitemoe": granite.build,
    "hunyuan-moe": hunyuan_moe.build,
    "laguna": laguna.build,
    "llama": llama.build,
    "llama4": llama4.build,
    "mimo2": mimo2.build,
    "minimax-m2": minimax_m2.build,
    "mistral4": mistral4.build,
    "qwen2": qwen2.build,
    "qwen2moe": qwen2moe.build,
    "qwen3": qwen3.build,
    "qwen3moe": qwen3moe.build,
    "qwen3next": qwen3next.build,
    "qwen35": qwen35.build,
    "qwen35moe": qwen35moe.build,
    "seed_oss": seed_oss.build,
    "step35": step35.build,
}

CHECKPOINTS: dict[str, tuple[str, Callable[[Target], None]]] = {
    "BailingMoeV2ForCausalLM": ("bailingmoe2", bailingmoe2.convert),
    "Cohere2MoeForCausalLM": ("cohere2moe", cohere2moe.convert),
    "DeepseekV2ForCausalLM": ("deepseek2", deepseek2.convert),
    "DeepseekV32ForCausalLM": ("deepseek32", deepseek32.convert),
    "DeepseekV3ForCausalLM": ("deepseek2", deepseek2.convert_v3),
    "Dots1ForCausalLM": ("dots1", dots1.convert),
    "Ernie4_5ForCausalLM": ("ernie4_5", ernie4_5.convert),
    "Ernie4_5_ForCausalLM": ("ernie4_5", ernie4_5.convert),
    "Ernie4_5_MoEForCausalLM": ("ernie4_5-moe", ernie4_5_moe.convert),
    "Ernie4_5_MoeForCausalLM": ("ernie4_5-moe", ernie4_5_moe.convert),
    "Gemma3ForCausalLM": ("gemma3", gemma3.convert),
    "Gemma3ForConditionalGeneration": ("gemma3", gemma3.convert),
    "Gemma4ForCausalLM": ("gemma4", gemma4.convert),
    "Gemma4ForConditionalGeneration": ("gemma4", gemma4.convert),
    "Glm4MoeForCausalLM": ("glm4moe", glm4moe.convert),
    "Glm4MoeLiteForCausalLM": ("deepseek2", deepseek2.convert_v3),
    "GlmMoeDsaForCausalLM": ("glm-dsa", glm_dsa.convert),
    "GptOssForCausalLM": ("gpt-oss", gpt_oss.convert),
    "GraniteForCausalLM": ("granite", granite.convert),
    "GraniteMoeForCausalLM": ("granitemoe", granite.convert),
    "GraniteMoeSharedForCausalLM": ("granitemoe", granite.convert),
    "HunYuanMoEV1ForCausalLM": ("hunyuan-moe", hunyuan_moe.convert),
    "KimiK25ForConditionalGeneration": ("deepseek2", deepseek2.convert_v3),
    "LagunaForCausalLM": ("laguna", laguna.convert),
    "Llama4ForCausalLM": ("llama4", llama4.convert),
    "Llama4ForConditionalGeneration": ("llama4", llama4.convert),
    "LlamaForCausalLM": ("llama", llama.convert),
    "MiMoV2FlashForCausalLM": ("mimo2", mimo2.convert),
    "MiMoV2ForCausalLM": ("mimo2", mimo2.convert),
    "MiniMaxM2ForCausalLM": ("minimax-m2", minimax_m2.convert),
    "Mistral3ForConditionalGeneration": ("mistral4", mistral4.convert),
    "Mistral4ForCausalLM": ("mistral4", mistral4.convert),
    "MistralForCausalLM": ("llama", llama.convert),
    "MixtralForCausalLM": ("llama", llama.convert),
    "Qwen2ForCausalLM": ("qwen2", qwen2.convert),
    "Qwen2MoeForCausalLM": ("qwen2moe", qwen2moe.convert),
    "Qwen3ForCausalLM": ("qwen3", qwen3.convert),
    "Qwen3MoeForCausalLM": ("qwen3moe", qwen3moe.convert),
    "Qwen3NextForCausalLM": ("qwen3next", qwen3next.convert),
    "Qwen3_5ForCausalLM": ("qwen35", qwen35.convert),
    "Qwen3_5ForConditionalGeneration": ("qwen35", qwen35.convert),
    "Qwen3_5MoeForCausalLM": ("qwen35moe", qwen35moe.convert),
    "Qwen3_5MoeForConditionalGeneration": ("qwen35moe", qwen35moe.convert),
    "SeedOssForCausalLM": ("seed_oss", seed_oss.convert),
    "Step3p5ForCausalLM": ("step35", step35.convert),
    "Step3p7ForConditionalGeneration": ("step35", step35.convert),
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
    if reader.metadata.get("general.type") == "adapter":
        raise FormatError("the file is an adapter, not a model: name it with --lora beside its model")
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
