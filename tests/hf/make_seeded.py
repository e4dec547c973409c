"""Fills a case of `tests/data/seeded` with what `transformers` says.

    python tests/hf/make_seeded.py tests/data/seeded/NAME.json ...

A new case is a file with a `config` of a small model (vocabulary of at least 259) and a `seed`. Names and shapes of
tensors are those that `transformers` saves; it then loads the folder that `seeded_models` writes, and its logits are
stored, with `head` also those of a block that predicts a further token. Every tensor must count: a case is stored only
if another draw of any one of them, but for those that are `silent`, moves logits by `SHOWN`.
"""

import itertools
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))

from seeded_heads import expect_head, head_logits, with_head
from seeded_models import names_and_shapes, pack, weights, write_folder

N_IDS, COLUMNS = 24, 32
# a hundred times what implementations may differ by
SHOWN = 0.01
transformers.utils.logging.disable_progress_bar()


def say(text):
    """A line about what was found."""
    sys.stdout.write(f"{text}\n")


def outer(case):
    """`config.json` of the model that `transformers` has."""
    around = case.get("loaded_as")
    return case["config"] if around is None else {**around, "text_config": case["config"]}


def loaded(folder, case):
    """The folder as a model of `transformers`, all of whose tensors are there but for what sees."""
    config = outer(case)
    kind = getattr(transformers, config["architectures"][0])
    if "head" in case:
        expect_head(kind, case["config"])
    own = folder.parent / "outer"
    shutil.copytree(folder, own)
    (own / "config.json").write_text(json.dumps(config))
    model, info = kind.from_pretrained(
        own, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    missing = [name for name in info.pop("missing_keys") if not sees(name)]
    assert not any(info.values()), info
    assert not missing, missing
    return model.eval()


def sees(name):
    """Whether a tensor belongs to the part of a model that looks at images."""
    return "vision" in name or "multi_modal" in name or "vit_" in name


def logits(model, ids):
    """Of every position: [len(ids), n_vocab]."""
    with torch.no_grad():
        return model(torch.tensor(ids)[None], use_cache=False).logits[0].float().numpy()


def saved_names(case):
    """Names and shapes as `transformers` saves a model of this configuration, without the part that sees."""
    config = outer(case)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        own = transformers.AutoConfig.from_pretrained(folder)
        model = getattr(transformers, config["architectures"][0])(own)
        model.save_pretrained(Path(folder) / "saved")
        with safe_open(Path(folder) / "saved" / "model.safetensors", "np") as f:
            names = [name for name in f.keys() if not sees(name)]  # noqa: SIM118
            shapes = {name: tuple(f.get_slice(name).get_shape()) for name in names}
    return with_head(case["head"], shapes, case["config"]) if "head" in case else shapes


def grouped(shapes):
    """Entries of a case: names that differ in numbers only stand in one, where all combinations are there."""
    groups = {}
    for name, shape in shapes.items():
        template = re.sub(r"(?<=\.)\d+(?=\.)", "{}", name)
        indices = tuple(int(n) for n in re.findall(r"(?<=\.)(\d+)(?=\.)", name))
        groups.setdefault((template, shape), []).append(indices)
    entries = []
    for (template, shape), members in groups.items():
        axes = [sorted(set(axis)) for axis in zip(*members, strict=True)]
        whole = set(itertools.product(*axes)) == set(members)
        for own in [axes] if whole else [[[i] for i in member] for member in sorted(members)]:
            entries.append({"name": template, "shape": list(shape), "indices": own})
    return sorted(entries, key=lambda e: (e["name"], e["indices"]))


def computed(case, change=None):
    """What `transformers` gives for a case: its logits, and those of a head by the key `head_logits`."""
    with tempfile.TemporaryDirectory() as folder:
        model = loaded(write_folder(Path(folder) / "hf", case, change), case)
        found = {"logits": logits(model, case["ids"])}
        if "head" in case:
            found["head_logits"] = head_logits(model, case["ids"])
    return found


def check_that_all_count(case, expected):
    """Other numbers for any one tensor must show."""
    other = case | {"seed": case["seed"] + 1}
    hidden = []
    for name, shape in names_and_shapes(case):
        if any(part in name for part in case.get("silent", ())):
            continue
        drawn = weights(other, name, shape)
        found = computed(case, lambda tensors, config, n=name, x=drawn: tensors.update({n: x}))
        moved = max(np.abs(found[key] - expected[key]).max() for key in expected)
        if moved < SHOWN:
            hidden.append(f"{name}: {moved:.1e}")
    assert not hidden, hidden


def fill(path):
    """Writes names, a prompt where there is none, and logits into a case."""
    case = json.loads(path.read_text())
    case["tensors"] = grouped(saved_names(case))
    n_vocab = case["config"].get("text_config", case["config"])["vocab_size"]
    case.setdefault("ids", np.random.RandomState(case["seed"]).randint(0, 256, N_IDS).tolist())
    case["stride"] = -(-n_vocab // COLUMNS)
    found = computed(case)
    case |= {key: pack(x[:, :: case["stride"]]) for key, x in found.items()}
    check_that_all_count(case, found)
    path.write_text(written(case))
    say(f"{path.stem}: spread of logits {found['logits'].std():.2f}, {path.stat().st_size} bytes")


def written(case):
    """The case as text, a line for each tensor and each key."""
    lines = []
    for key, value in case.items():
        if key == "tensors":
            inner = ",\n    ".join(json.dumps(entry) for entry in value)
            lines.append(f'  "tensors": [\n    {inner}\n  ]')
        elif key == "config":
            lines.append('  "config": ' + json.dumps(value, indent=2).replace("\n", "\n  "))
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    for given in sys.argv[1:]:
        fill(Path(given))
