"""Random small models of `transformers`, saved by it, converted, and run: logits are those of `transformers`.

`make test-hf` runs this where PyTorch can be installed. Names, orders and forms of tensors are then those that the
library writes, and the oracle is its own forward pass in float32.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from checkpoint_folders import TABLES, write_tokenizer  # noqa: E402
from engine_checks import EXACT, largest  # noqa: E402
from make_seeded import loaded, logits  # noqa: E402
from model_files import NAMES, info, reader  # noqa: E402
from seeded_heads import head_logits  # noqa: E402
from seeded_models import CASES, case, limit, stored_logits, write_folder  # noqa: E402
from seeded_tokenizers import write_for  # noqa: E402

import ikq  # noqa: E402

SHORT = {n.split("/")[0]: n for n in NAMES if "legacy" not in n and "mxfp4" not in n}


def small_model(name, seed=0):
    """A model of the fixture's configuration with other weights, large enough that mistakes show."""
    given = dict(info(SHORT[name])["hf_config"])
    config = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    config.architectures = given["architectures"]
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, given["architectures"][0])(config).float().eval()
    zero_centred = name in ("gemma3", "qwen3next", "qwen35moe")
    with torch.no_grad():
        buffers = [(key, b) for key, b in model.named_buffers() if "e_score_correction_bias" in key]
        for key, p in [*model.named_parameters(), *buffers]:
            if "A_log" in key:
                continue
            if "norm" in key:
                own = "linear_attn.norm" in key
                p.copy_((0.0 if zero_centred and not own else 1.0) + 0.2 * torch.randn_like(p))
            elif p.ndim < 2 or "bias" in key:
                p.copy_(0.1 * torch.randn_like(p))
            else:
                # inputs are the last axis but for the experts of gpt-oss
                n_in = p.shape[1] if name == "gpt-oss" and p.ndim == 3 else p.shape[-1]
                p.copy_(torch.randn_like(p) * (1.2 / n_in**0.5))
    return model


@pytest.mark.parametrize("name", TABLES)
def test_logits(name, tmp_path):
    model = small_model(name)
    folder = tmp_path / "hf"
    model.save_pretrained(folder, max_shard_size="2MB")
    assert json.loads((folder / "config.json").read_text())["architectures"]
    write_tokenizer(folder, reader(SHORT[name]).metadata, SHORT[name])
    ids = np.random.default_rng(1).integers(3, 500, 60)
    with torch.no_grad():
        expected = model(torch.tensor(ids)[None], use_cache=False).logits[0].float().numpy()
    ikq.convert_checkpoint(folder, tmp_path / "x.gguf", "f32")
    with ikq.Model.load(tmp_path / "x.gguf", **EXACT, yarn_truncate=name != "gpt-oss") as loaded:
        found = loaded.logits(ids)
    assert expected.std() > 0.3
    # float32 on both sides; the deepest model has 26 layers
    assert largest(found, expected) < (2e-3 if name == "deepseek2-lite" else 5e-4) * max(1.0, expected.std())


@pytest.mark.parametrize("name", CASES)
def test_seeded(name, tmp_path):
    """Stored logits are what `transformers` gives, also for a longer prompt, and for what it saves itself."""
    own = case(name)
    if "oracle" in own:
        pytest.skip(own["oracle"])
    model = loaded(write_folder(tmp_path / "hf", own), own)
    for key, compute in (("logits", logits), ("head_logits", head_logits)):
        if key in own:
            stored = stored_logits(own, key)
            # the same library, on another machine or of another version
            assert largest(compute(model, own["ids"])[:, :: own["stride"]], stored) < limit(own, stored) / 2
    ids = np.random.default_rng(2).integers(3, 250, 100)
    expected = logits(model, ids)
    folders = [tmp_path / "hf"]
    # `transformers` does not save the head, which the configuration says is there
    if "head" not in own:
        folders.append(tmp_path / "saved")
        model.save_pretrained(folders[1])
        write_for(folders[1], own)
    for folder in folders:
        ikq.convert_checkpoint(folder, folder / "x.gguf", "f32")
        with ikq.Model.load(folder / "x.gguf", **EXACT) as converted:
            assert largest(converted.logits(ids), expected) < limit(own, expected)
