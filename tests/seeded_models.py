"""Small models of `transformers` whose weights come from a seed: what is stored of one is a few KB.

`tests/data/seeded/NAME.json` has a checkpoint's `config.json`, the names and shapes of its tensors as `transformers`
saves them, a prompt, and logits of `transformers` for it (`tests/hf/make_seeded.py` made them, in float32). The
folder is written anew wherever it is needed: every tensor is drawn from its own name and the seed.

Keys of a case:
    config: `config.json`, with the class under `architectures`.
    seed: of all weights.
    norm_offset: mean of norms' weights (default 1); 0 where the model adds the 1 itself.
    inputs_first: parts of names of stacked matrices whose inputs are the axis before the last.
    tensors: `{"name", "shape", "indices"}`: `{}` in the name stands for each of the indices, in all combinations.
    ids: the prompt.
    stride: every so many columns of the logits are stored.
    logits: base64 of little-endian float32, [len(ids), ceil(n_vocab / stride)].
    tolerance: of the comparison, for logits whose spread is about 1.
    loaded_as: `transformers` has the model only as a part of one that sees: the configuration around it.
    oracle: where logits come from that `transformers` has no model for; `make_seeded` cannot make those.
    note: what else is worth saying.
"""

import base64
import itertools
import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from checkpoint_folders import QWEN2, write_safetensors
from small_vocabs import BYTE_CHARS

FOLDER = Path(__file__).parent / "data" / "seeded"
CASES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
TOLERANCE = 2e-4


@cache
def case(name):
    """A stored case."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def names_and_shapes(case):
    """All tensors of a case, one by one."""
    for entry in case["tensors"]:
        for indices in itertools.product(*entry["indices"]):
            yield entry["name"].format(*indices), tuple(entry["shape"])


def weights(case, name, shape):
    """The tensor `name`: large enough that mistakes show, and the same wherever it is made (float32)."""
    # this generator's stream is the same in all versions of numpy
    random = np.random.RandomState([case["seed"], zlib.crc32(name.encode())])
    drawn = random.standard_normal(shape)
    if "A_log" in name:
        drawn = np.log(1.5 + np.abs(drawn))
    elif "norm" in name and "bias" not in name and len(shape) < 2:
        drawn = case.get("norm_offset", 1.0) + 0.2 * drawn
    elif len(shape) < 2 or "bias" in name:
        drawn = 0.1 * drawn
    else:
        first = any(part in name for part in case.get("inputs_first", ()))
        drawn = drawn * (1.2 / shape[-2 if first else -1] ** 0.5)
    return drawn.astype(np.float32)


def write_folder(folder, case, change=None):
    """Writes a case as a checkpoint, with a tokenizer of bytes.

    Args:
        folder: new.
        case: as stored.
        change: a function of the tensors (array by name) and the config.
    """
    folder.mkdir(parents=True)
    tensors = {name: weights(case, name, shape) for name, shape in names_and_shapes(case)}
    config = json.loads(json.dumps(case["config"]))
    if change:
        change(tensors, config)
    stored = {name: ("F32", array) for name, array in tensors.items()}
    write_safetensors(folder / "model.safetensors", stored, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder):
    """Byte-level BPE of one merge: ids 0 to 255 are bytes, then the merge, BOS and EOS."""
    special, merge = ["<s>", "</s>"], ["h", "e"]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 257 + i, "content": text, **added} for i, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate([*BYTE_CHARS, "".join(merge)])},
            "merges": [merge],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    options = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))


def pack(logits):
    """Logits as text."""
    return base64.b64encode(np.ascontiguousarray(logits, "<f4").tobytes()).decode()


def stored_logits(case):
    """The oracle: [len(ids), columns]; compare with `logits[:, :: case["stride"]]`."""
    flat = np.frombuffer(base64.b64decode(case["logits"]), "<f4")
    return flat.reshape(len(case["ids"]), -1)
