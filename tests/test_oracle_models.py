"""Architectures without a fixture: checkpoints made from a seed are converted and give the logits of `transformers`."""

import numpy as np
import pytest
from engine_checks import EXACT, largest
from numpy_model import NumpyModel
from oracle_models import NAMES, recipe, write_folder

import ikq
from ikq.models import model_spec


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
