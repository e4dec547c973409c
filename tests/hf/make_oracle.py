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


HEADS = {
    # names in the checkpoint: before those of the block, of what it has besides
    "layers": (
        "model.layers.{n}.",
        "model.layers.{n}.eh_proj",
        "model.layers.{n}.enorm",
        "model.layers.{n}.hnorm",
        "model.layers.{n}.shared_head.norm",
    ),
    "mtp": ("mtp.layers.0.", "mtp.fc", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm"),
}


def add_head(kind, shapes, config):
    """Shapes of a block that predicts a further token: as the last layer, and what makes its input."""
    n, n_embd = config.num_hidden_layers, config.hidden_size
    block, eh_proj, *norms = (f"{name.format(n=n)}" for name in HEADS[kind])
    last = f"model.layers.{n - 1}."
    more = {block + k.removeprefix(last): s for k, s in shapes.items() if k.startswith(last)}
    more[f"{eh_proj}.weight"] = [n_embd, 2 * n_embd]
    more |= {f"{norm}.weight": [n_embd] for norm in norms}
    return shapes | more


def load(folder, name, *, has_head=False):
    """The model of a folder, in which every tensor has a place and gets one."""
    model_class = getattr(transformers, name)
    if has_head:
        # the class names the layers of published models
        n = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
        model_class._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{n}\..*", r"^mtp.*"]
    model, report = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0].float().numpy()


def head_logits(model, ids):
    """What the block that predicts further tokens gives for all tokens but the first."""
    from transformers.modeling_layers import MtpModel

    config = model.config
    config.num_mtp_layers = 1
    if getattr(config, "layer_types", None):
        config.mtp_layer_types = ["full_attention"]
    if getattr(config, "mlp_layer_types", None):
        config.mtp_mlp_layer_types = ["sparse"]
    head = MtpModel.from_pretrained(model).eval()
    tokens = torch.tensor(ids)[None]
    with torch.no_grad():
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        positions = torch.arange(1, len(ids))[None]
        out = head.forward_layer(0, hidden[:, :-1], positions, None, input_ids=tokens[:, 1:])
        return head._project_to_logits(out)[0].float().numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("model_class")
    parser.add_argument("config", type=Path)
    parser.add_argument("--tokenizer", default="qwen35moe/qwen35moe-bf16")
    parser.add_argument("--norms-around", type=float, default=1.0)
    parser.add_argument("--head", choices=list(HEADS), help="add a block that predicts a further token")
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
        if args.head:
            recipe["shapes"] = add_head(args.head, recipe["shapes"], config)
        model = load(write_folder(folder, recipe), args.model_class, has_head=bool(args.head))
        n_vocab = getattr(config, "text_config", config).vocab_size
        ids = np.random.default_rng(args.seed).integers(3, n_vocab, args.tokens)
        expected = logits(model, ids)
        compute, from_head = logits, None
        if args.head:
            from_head = head_logits(model, ids)

            def compute(model, ids):
                return np.concatenate([logits(model, ids), head_logits(model, ids)])

        check_all_count(folder, recipe, compute, ids, compute(model, ids), args.silent)
    columns = list(range(0, n_vocab, n_vocab // N_COLUMNS))[:N_COLUMNS]
    recipe |= {
        "ids": ids.tolist(),
        "columns": columns,
        "logits": rounded(expected[:, columns]),
    }
    if from_head is not None:
        recipe["head_logits"] = rounded(from_head[:, columns])
    ORACLES.mkdir(exist_ok=True)
    text = json.dumps(recipe, indent=1)
    for key in ("shapes", "ids", "columns", "logits", "head_logits"):
        if key not in recipe:
            continue
        one = json.dumps({key: recipe[key]}, indent=1)[3:-2]
        text = text.replace(one, f'"{key}": {json.dumps(recipe[key], separators=(",", ":"))}')
    assert json.loads(text) == recipe
    (ORACLES / f"{args.name}.json").write_text(text + "\n")
    sys.stdout.write(f"{args.name}: {len(text)} bytes; deviation of logits {expected.std():.3}\n")


def rounded(x):
    return [[float(f"{value:.7g}") for value in row] for row in x.tolist()]


def check_all_count(folder, recipe, compute, ids, expected, silent):
    """Other numbers for one tensor must show."""
    everything = weights(recipe)
    for name, x in everything.items():
        if any(part in name for part in silent):
            continue
        other = weight(name, x.shape, recipe["seed"] + 1, recipe["norms_around"])
        changed = folder.parent / "changed"
        write_folder(changed, recipe, lambda tensors, n=name, o=other: tensors.update({n: o}))
        model = load(changed, recipe["class"], has_head=len(expected) > len(ids))
        moved = np.abs(compute(model, ids) - expected).max()
        assert moved > 0.01, f"{name} moves logits by {moved} only"
        for path in changed.iterdir():
            path.unlink()
        changed.rmdir()


if __name__ == "__main__":
    main()
