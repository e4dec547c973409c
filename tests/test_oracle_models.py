"""Architectures without a fixture: checkpoints made from a seed are converted and give the logits of `transformers`."""

import numpy as np
import pytest
from engine_checks import EXACT, largest
from numpy_model import NumpyModel
from oracle_models import NAMES, recipe, write_folder
from sequence_checks import fresh, run, same

import ikq
from ikq.models import model_spec, mtp_spec


@pytest.fixture
def gemma4(tmp_path):
    ikq.convert_checkpoint(write_folder(tmp_path / "hf", recipe("gemma4")), tmp_path / "x.gguf")
    return tmp_path


def test_tokenizer_with_merges_on_plain_text(gemma4):
    from tokenizers import Tokenizer

    oracle = Tokenizer.from_file(str(gemma4 / "hf" / "tokenizer.json"))
    reader = ikq.GGUFReader(gemma4 / "x.gguf")
    assert reader.metadata["tokenizer.ggml.model"] == "gemma4"
    # parsers of replies see it, though it is special
    assert reader.metadata["tokenizer.ggml.token_type"][4:6] == [4, 3]
    found = ikq.Tokenizer.from_reader(reader)
    rng = np.random.default_rng(3)
    texts = ["the rain in spain,  stays.\n\n\nmainly \u00e9\u4f60", " a", "a\n", "\n \n"]
    texts += ["".join(rng.choice(list("etaoin shr\nd.,X"), 80)) for _ in range(50)]
    n = 0
    for text in texts:
        ids = oracle.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special=False) == ids
        assert found.encode(text, add_special=True) == [2, *ids]
        assert found.decode(ids) == text
        n += len(ids)
    assert n < 0.8 * sum(map(len, texts))  # pairs were joined


# float32 on both sides, and weights of attention that follow scores of up to 60; another draw of any one tensor moves
# logits by 0.01 and more
TOLERANCE = 5e-5
BOUND = 3e-4


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_oracle(name, tmp_path):
    r = recipe(name)
    expected, columns = np.array(r["logits"]), r["columns"]
    folder = write_folder(tmp_path / "hf", r)
    ikq.convert_checkpoint(folder, tmp_path / "x.gguf", "f32")
    reader = ikq.GGUFReader(tmp_path / "x.gguf")
    spec = model_spec(reader)
    assert not [note for note in spec.notes if "no part" in note]
    assert expected.std() > 0.3
    bound = TOLERANCE * max(1.0, np.abs(expected).max())
    plain = NumpyModel(reader, spec).logits(r["ids"])
    assert largest(plain[:, columns], expected) < bound
    with ikq.Model.load(tmp_path / "x.gguf", **EXACT) as model:
        found = model.logits(r["ids"])
    assert largest(found[:, columns], expected) < bound
    # and elsewhere as the plain reading has it
    assert largest(found, plain) < bound


@pytest.mark.parametrize("name", [n for n in NAMES if "head_logits" in recipe(n)])
def test_heads_give_the_logits_of_the_oracle(name, files):
    """Blocks that predict a further token, from the next token and the hidden state before the output."""
    r = recipe(name)
    reader = ikq.GGUFReader(files(name))
    whole = NumpyModel(reader, model_spec(reader))
    whole.logits(r["ids"])
    head = NumpyModel(reader, mtp_spec(reader))
    hidden = head.eval(r["ids"][1:], whole.hidden[-1][:-1])
    assert head.spec.output is None
    expected = np.array(r["head_logits"])
    found = whole.head(hidden)[:, r["columns"]]
    assert largest(found, expected) < TOLERANCE * max(1.0, np.abs(expected).max())


# What these models have besides: on sequences and devices


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files by oracle, made when they are asked for."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder / "x.gguf"
            ikq.convert_checkpoint(write_folder(folder / "hf", recipe(name)), made[name], "f32")
        return made[name]

    return get


def test_shared_keys_in_pieces_shifted_and_saved(files, tmp_path):
    """Layers without keys of their own read those of others, wherever positions have gone."""
    r, file = recipe("gemma4"), files("gemma4")
    ids = np.random.default_rng(7).integers(3, 500, 60)
    reader = ikq.GGUFReader(file)
    plain = NumpyModel(reader, model_spec(reader))
    assert [layer.attention.shares for layer in plain.spec.layers] == [None] * 4 + [2, 3]
    expected = plain.logits(ids[:40])
    with ikq.Model.load(file, **EXACT, swa_full=True, n_ubatch=7) as model:
        sequence = model.new_sequence()
        assert largest(run(model, sequence, ids[:40], 11), expected) < BOUND
        sequence.shift(3, 10)
        plain.shift(3, 10)
        expected = plain.eval(ids[40:50])
        assert largest(run(model, sequence, ids[40:50], 4), expected) < BOUND
        sequence.save(tmp_path / "s")
        expected = plain.eval(ids[50:])
    with ikq.Model.load(file, **EXACT, swa_full=True) as model:
        saved = model.load_sequence(tmp_path / "s")
        assert largest(run(model, saved, ids[50:]), expected) < BOUND
    assert len(r["ids"]) == 24


def test_shared_keys_stay_on_one_device(files):
    ids = recipe("gemma4")["ids"]
    two = {"devices": ("CPU", "CPU1"), **EXACT}
    with ikq.Model.load(files("gemma4"), **EXACT) as model:
        whole = model.logits(ids)
    # layer 4 reads the keys of 2, and 5 those of 3
    with ikq.Model.load(files("gemma4"), **two, override_tensor=r"blk\.[24]\.=CPU1") as model:
        assert same(model.logits(ids), whole)
    with pytest.raises(
        ikq.FormatError, match=r"layer 5 reads the keys and values of layer 3: they cannot be on"
    ):
        ikq.Model.load(files("gemma4"), **two, override_tensor=r"blk\.5\.=CPU1")


@pytest.mark.parametrize("rule", ["exps=CPU1", "ffn_gate_inp=CPU1", r"blk\.1\.=CPU1"])
def test_mixture_with_norms_on_two_devices(files, rule):
    ids = recipe("gemma4-moe")["ids"]
    with ikq.Model.load(files("gemma4-moe"), **EXACT) as model:
        whole = model.logits(ids)
    two = {"devices": ("CPU", "CPU1"), "override_tensor": rule, **EXACT}
    with ikq.Model.load(files("gemma4-moe"), **two) as model:
        assert same(model.logits(ids), whole)
        assert same(fresh(model, np.array(ids), 7), whole)


@pytest.mark.parametrize("name", ["deepseek32", "glm-dsa"])
def test_contexts_longer_than_an_index_chooses_are_refused(files, name):
    """Up to what it chooses, attention reads all positions; the engine has no index."""
    exact = EXACT | {"n_ctx": 128}
    with ikq.Model.load(files(name), **exact) as model:
        assert model.n_ctx == 128
    with ikq.Model.load(files(name), **(exact | {"n_ctx": None})) as model:
        assert model.n_ctx == 128
    with pytest.raises(ikq.RefusedError, match=r"n_ctx=129.*which is not computed yet"):
        ikq.Model.load(files(name), **(exact | {"n_ctx": 129}))


def test_kimi_with_its_eyes(tmp_path, files):
    """Kimi K2.5 has K2's model under another prefix, and beside it what sees."""
    r = recipe("kimi-k2")

    def change(tensors):
        for name in list(tensors):
            tensors[f"language_model.{name}"] = tensors.pop(name)
        tensors["vision_tower.patch_embed.proj.weight"] = np.ones((4, 3), np.float32)
        tensors["mm_projector.proj.0.weight"] = np.ones((4, 4), np.float32)

    whole = {"architectures": ["KimiK25ForConditionalGeneration"], "text_config": r["config"]}
    folder = write_folder(tmp_path / "hf", r | {"config": whole}, change)
    ikq.convert_checkpoint(folder, tmp_path / "x.gguf", "f32")
    found, expected = (ikq.GGUFReader(f).tensors for f in (tmp_path / "x.gguf", files("kimi-k2")))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[n].raw, expected[n].raw) for n in expected)
