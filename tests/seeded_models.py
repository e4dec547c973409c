"""Small models of `transformers` whose weights come from a seed: what is stored of one is a few KB.

`tests/data/seeded/NAME.json` has a checkpoint's `config.json`, the names and shapes of its tensors as `transformers`
saves them, a prompt, and logits of `transformers` for it (`tests/hf/make_seeded.py` made them, in float32). The
folder is written anew wherever it is needed: every tensor is drawn from its own name and the seed.

Keys of a case:
    config: `config.json`, with the class under `architectures`.
    seed: of all weights.
    tokenizer: a fixture's, by its name, or `plain` (`seeded_tokenizers`); without it one of bytes.
    norm_offset: mean of the weights of norms and of a router's scales (default 1); 0 where the model adds the 1 itself.
    inputs_first: parts of names of stacked matrices whose inputs are the axis before the last.
    tensors: `{"name", "shape", "indices"}`: `{}` in the name stands for each of the indices, in all combinations.
    silent: parts of names of tensors that have no part in the logits.
    head: names of the tensors of a block that predicts a further token (`HEADS` of `make_seeded`).
    ids: the prompt.
    stride: every so many columns of the logits are stored.
    logits: base64 of little-endian float32, [len(ids), ceil(n_vocab / stride)].
    head_logits: of the head, for all tokens of the prompt but the first: [len(ids) - 1, ceil(n_vocab / stride)].
    tolerance: of comparisons (`limit`), where it is not `TOLERANCE`; `note` says why.
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
from checkpoint_folders import write_safetensors
from seeded_tokenizers import write_for

import ikq

FOLDER = Path(__file__).parent / "data" / "seeded"
CASES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
# float32 on both sides; another draw of any one tensor moves logits by 0.01 and more
TOLERANCE = 1e-4


@cache
def case(name):
    """A stored case."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def names_and_shapes(case):
    """All tensors of a case, one by one."""
    for entry in case["tensors"]:
        for indices in itertools.product(*entry["indices"]):
            yield entry["name"].format(*indices), tuple(entry["shape"])


def is_scale(name, shape):
    """Whether a tensor multiplies what it meets element by element, and so lies around a constant."""
    if name.endswith(("router.scale", "per_expert_scale")):
        return True
    return "norm" in name and "bias" not in name and len(shape) < 2


def weights(case, name, shape):
    """The tensor `name`: large enough that mistakes show, and the same wherever it is made (float32)."""
    # this generator's stream is the same in all versions of numpy
    random = np.random.RandomState([case["seed"], zlib.crc32(name.encode())])
    drawn = random.standard_normal(shape)
    if "A_log" in name:
        drawn = np.log(1.5 + np.abs(drawn))
    elif "layer_scalar" in name:
        drawn = 0.8 + 0.1 * drawn
    elif is_scale(name, shape):
        # the norm inside a delta-net is no norm of the residual stream: no model adds 1 to it
        offset = 1.0 if "linear_attn.norm" in name else case.get("norm_offset", 1.0)
        drawn = offset + 0.2 * drawn
    elif len(shape) < 2 or "bias" in name:
        drawn = 0.1 * drawn
    else:
        first = any(part in name for part in case.get("inputs_first", ()))
        drawn = drawn * (1.2 / shape[-2 if first else -1] ** 0.5)
    return drawn.astype(np.float32)


def write_folder(folder, case, change=None):
    """Writes a case as a checkpoint, with its tokenizer.

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
    write_for(folder, case)
    return folder


def converted(folder, case, change=None):
    """A case as a GGUF file in float32, in `folder` beside the checkpoint `hf` (`change` as in `write_folder`)."""
    out = folder / "x.gguf"
    ikq.convert_checkpoint(write_folder(folder / "hf", case, change), out, "f32")
    return out


def pack(logits):
    """Logits as text."""
    return base64.b64encode(np.ascontiguousarray(logits, "<f4").tobytes()).decode()


def stored_logits(case, key="logits"):
    """What `transformers` gives, [rows, columns]; compare with `logits[:, :: case["stride"]]`.

    Args:
        case: as stored.
        key: `logits`, or `head_logits`.
    """
    flat = np.frombuffer(base64.b64decode(case[key]), "<f4")
    return flat.reshape(len(case["ids"]) - (key == "head_logits"), -1)


def limit(case, logits):
    """How far logits of a case may be from `logits`: its tolerance for a spread of 1, more for a larger one."""
    return case.get("tolerance", TOLERANCE) * max(1.0, logits.std())
