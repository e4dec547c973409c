"""Writes `tests/data/oracles/NAME.json` from a configuration: `make_oracle.py NAME CLASS CONFIG.json [options]`.

The model is built by `transformers` from the configuration, saved by it for the names and shapes of its checkpoints,
filled from a seed, loaded again, and run in float32 with attention as it is written. Every tensor must count: the
file is written only if another draw of any one of them changes the logits.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from oracle_models import ORACLES, weight, weights, write_folder

N_COLUMNS = 16


def shapes(folder):
    """Shapes by name, as in the headers of a folder's files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        found |= {n: t["shape"] for n, t in header.items() if n != "__metadata__"}
    return dict(sorted(found.items()))


def load(folder, name):
    """The model of a folder, in which every tensor has a place and gets one."""
    model, report = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0].float().numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("model_class")
    parser.add_argument("config", type=Path)
    parser.add_argument("--tokenizer", default="qwen35moe/qwen35moe-bf16")
    parser.add_argument("--norms-around", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--silent", nargs="*", default=[], help="parts of names of tensors that need not count"
    )
    args = parser.parse_args()
    given = json.loads(args.config.read_text())
    config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    config.architectures = [args.model_class]
    with tempfile.TemporaryDirectory() as work:
        saved, folder = Path(work) / "saved", Path(work) / "hf"
        getattr(transformers, args.model_class)(config).save_pretrained(saved)
        whole = json.loads((saved / "config.json").read_text())
        recipe = {
            "oracle": f"transformers {transformers.__version__}, float32, eager attention, no cache",
            "class": args.model_class,
            "tokenizer": args.tokenizer,
            "seed": args.seed,
            "norms_around": args.norms_around,
            "config": whole,
            "shapes": shapes(saved),
        }
        model = load(write_folder(folder, recipe), args.model_class)
        n_vocab = getattr(config, "text_config", config).vocab_size
        ids = np.random.default_rng(args.seed).integers(3, n_vocab, args.tokens)
        expected = logits(model, ids)
        check_all_count(folder, recipe, model, ids, expected, args.silent)
    columns = list(range(0, n_vocab, n_vocab // N_COLUMNS))[:N_COLUMNS]
    recipe |= {
        "ids": ids.tolist(),
        "columns": columns,
        "logits": [[float(f"{x:.7g}") for x in row] for row in expected[:, columns].tolist()],
    }
    ORACLES.mkdir(exist_ok=True)
    text = json.dumps(recipe, indent=1)
    for key in ("shapes", "ids", "columns", "logits"):
        one = json.dumps({key: recipe[key]}, indent=1)[3:-2]
        text = text.replace(one, f'"{key}": {json.dumps(recipe[key], separators=(",", ":"))}')
    assert json.loads(text) == recipe
    (ORACLES / f"{args.name}.json").write_text(text + "\n")
    sys.stdout.write(f"{args.name}: {len(text)} bytes; deviation of logits {expected.std():.3}\n")


def check_all_count(folder, recipe, model, ids, expected, silent):
    """Other numbers for one tensor must show."""
    everything = weights(recipe)
    for name, x in everything.items():
        if any(part in name for part in silent):
            continue
        other = weight(name, x.shape, recipe["seed"] + 1, recipe["norms_around"])
        changed = folder.parent / "changed"
        write_folder(changed, recipe, lambda tensors, n=name, o=other: tensors.update({n: o}))
        moved = np.abs(logits(load(changed, recipe["class"]), ids) - expected).max()
        assert moved > 0.01, f"{name} moves logits by {moved} only"
        for path in changed.iterdir():
            path.unlink()
        changed.rmdir()


if __name__ == "__main__":
    main()
