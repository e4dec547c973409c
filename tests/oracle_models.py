"""Small models of `transformers` that are kept as a recipe: configuration, seed and shapes, and what it computes.

`tests/data/oracles/NAME.json` holds no weights. They are drawn from the seed and the tensor's name, so that a test
writes the checkpoint folder in milliseconds, and logits that `transformers` gave for the same folder stand beside
(`tests/hf/make_oracle.py` makes such a file). A weight that is read wrongly, or not at all, changes them.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from checkpoint_folders import write_safetensors, write_tokenizer
from model_files import reader

ORACLES = Path(__file__).parent / "data" / "oracles"
NAMES = tuple(sorted(path.stem for path in ORACLES.glob("*.json")))


def recipe(name):
    return json.loads((ORACLES / f"{name}.json").read_text())


def weight(name, shape, seed, norms_around):
    """A tensor of a checkpoint: norms around what they multiply with, matrices that keep the size of their input."""
    x = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if "A_log" in name:
        x = 0.5 * x
    elif "layer_scalar" in name:
        x = 0.8 + 0.1 * x
    elif "norm" in name or name.endswith(("router.scale", "per_expert_scale")):
        # the norm inside a delta-net is no norm of the residual stream
        x = (1.0 if "linear_attn.norm" in name else norms_around) + 0.2 * x
    elif len(shape) < 2 or "bias" in name:
        x = 0.1 * x
    else:
        x = x * (1.2 / shape[-1] ** 0.5)
    return x.astype(np.float32)


def weights(recipe):
    """All tensors by name."""
    return {
        name: weight(name, shape, recipe["seed"], recipe["norms_around"])
        for name, shape in recipe["shapes"].items()
    }


def write_folder(folder, recipe, change=None):
    """The checkpoint of a recipe.

    Args:
        folder: new.
        recipe: as in the file.
        change: a function of the tensors by name.
    """
    folder.mkdir(parents=True)
    tensors = weights(recipe)
    if change:
        change(tensors)
    write_safetensors(
        folder / "model.safetensors", {n: ("F32", x) for n, x in tensors.items()}, {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(recipe["config"]))
    if recipe["tokenizer"] == "plain":
        write_plain_tokenizer(folder)
    else:
        write_tokenizer(folder, reader(recipe["tokenizer"]).metadata, recipe["tokenizer"])
    return folder


def write_plain_tokenizer(folder, n_vocab=512):
    """BPE on plain text that falls back to bytes, as Gemma 4 has it: spaces are U+2581, and words are not parted."""
    texts = ["<pad>", "<eos>", "<bos>", "<unk>", "<|channel>", "<turn|>"]
    texts += [f"<0x{b:02X}>" for b in range(256)] + ["\n", "\n\n", "\u2581"]
    merges = [["\n", "\n"]]
    letters = "etaoinshrdlucmfwypvbgkqjxz,."
    texts += letters
    # pairs of what there is, in an order that scores of SentencePiece do not give
    rng = np.random.default_rng(5)
    parts = ["\u2581", *letters[:10]]
    while len(texts) < n_vocab:
        a, b = (str(x) for x in rng.choice(parts[: 11 if len(merges) < 100 else None], 2))
        if a + b not in texts:
            texts.append(a + b)
            merges.append([a, b])
            parts.append(a + b)
    special = {0: True, 1: True, 2: True, 3: True, 4: True, 5: True}
    whole = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": texts[i], "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": s}
            for i, s in special.items()
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    options = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
