"""The small models of `../shared/models/fixtures`, and readers whose metadata and tensors a test can change."""

import json
from functools import cache

import numpy as np
import pytest
from conftest import SHARED
from numpy_model import NumpyModel

import ikq
from ikq.models import model_spec

FIXTURES = SHARED / "models" / "fixtures"
NAMES = (
    "deepseek2-lite/deepseek2-lite-bf16",
    "deepseek2-lite/deepseek2-lite-legacy-mla-bf16",
    "deepseek3/deepseek3-bf16",
    "ernie45moe/ernie45moe-bf16",
    "gemma3/gemma3-bf16",
    "glm4moe/glm4moe-bf16",
    "gpt-oss/gpt-oss-bf16",
    "gpt-oss/gpt-oss-mxfp4",
    "llama/llama-bf16",
    "mixtral/mixtral-bf16",
    "qwen2/qwen2-f32",
    "qwen2moe/qwen2moe-bf16",
    "qwen3/qwen3-bf16",
    "qwen35moe/qwen35moe-bf16",
    "qwen3moe/qwen3moe-bf16",
    "qwen3next/qwen3next-bf16",
)
RECURRENT = tuple(name for name in NAMES if name.startswith(("qwen3next", "qwen35moe")))


def path(name):
    """File of a fixture; skips where the fixtures are missing."""
    if not FIXTURES.is_dir():
        pytest.skip("../shared/models/fixtures is not there: models are not run")
    return FIXTURES / f"{name}.gguf"


@cache
def reader(name):
    return ikq.GGUFReader(path(name))


@cache
def oracle(name):
    with np.load(path(name).parent / "oracle.npz") as f:
        return dict(f)


@cache
def info(name):
    return json.loads((path(name).parent / "info.json").read_text())


def prompt(name, index):
    return oracle(name)[f"prompt{index}_ids"]


def expected_logits(name, index, yarn_truncate=True):
    """What the oracle says, for gpt-oss with YaRN's bounds rounded as GGUF engines do, or as published."""
    truncated = f"prompt{index}_logits_yarn_truncated"
    return oracle(name)[truncated if yarn_truncate and truncated in oracle(name) else f"prompt{index}_logits"]


@cache
def reference(name, index):
    """Logits of a prompt in float64, from the spec of the file as it is."""
    return NumpyModel(reader(name), model_spec(reader(name))).logits(prompt(name, index))


class Weights:
    """A tensor in memory that looks like a `QTensor`."""

    def __init__(self, array):
        self.array = np.asarray(array, np.float32)

    @property
    def shape(self):
        return self.array.shape

    def dequantize(self):
        return self.array


class Shaped:
    """A tensor that has nothing but a shape."""

    def __init__(self, shape):
        self.shape = shape


class Changed:
    """A reader's metadata and tensors as dictionaries of its own."""

    def __init__(self, original):
        self.metadata = dict(original.metadata)
        self.tensors = dict(original.tensors)

    @property
    def architecture(self):
        return self.metadata["general.architecture"]

    def set(self, key, value):
        self.metadata[f"{self.architecture}.{key}"] = value

    def drop(self, key):
        del self.metadata[f"{self.architecture}.{key}"]

    def shapes(self):
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def array(self, name):
        return self.tensors[name].dequantize()

    def add(self, name, array):
        self.tensors[name] = Weights(array)

    def replace(self, names, name, array):
        """Puts one tensor in the place of others."""
        for old in names:
            del self.tensors[old]
        self.add(name, array)

    def write(self, file):
        """As a GGUF file; tensors in memory become F32."""
        with ikq.GGUFWriter(file, self.metadata) as writer:
            for name, tensor in self.tensors.items():
                writer.add_tensor(name, tensor.array if isinstance(tensor, Weights) else tensor)
