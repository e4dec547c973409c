"""Architectures without a fixture: checkpoints made from a seed are converted and give the logits of `transformers`."""

import numpy as np
import pytest
from engine_checks import EXACT, largest
from numpy_model import NumpyModel
from oracle_models import NAMES, recipe, write_folder

import ikq
from ikq.models import model_spec

# float32 on both sides: what is summed in another order
TOLERANCE = 2e-5


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
