"""Architectures against `transformers`: small models from a seed, converted and run (`seeded_models`)."""

import numpy as np
import pytest
from engine_checks import EXACT, largest
from seeded_models import CASES, case, names_and_shapes, stored_logits, write_folder

import ikq
from ikq.models import CHECKPOINTS


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, tmp_path):
    own = case(name)
    folder, out = write_folder(tmp_path / "hf", own), tmp_path / "x.gguf"
    ikq.convert_checkpoint(folder, out, "f32")
    architecture, _ = CHECKPOINTS[own["config"]["architectures"][0]]
    assert ikq.GGUFReader(out).metadata["general.architecture"] == architecture
    with ikq.Model.load(out, **EXACT) as model:
        assert not [note for note in model.spec.notes if "no part in" in note]
        found = model.logits(np.array(own["ids"]))
    expected = stored_logits(own)
    assert expected.std() > 0.3
    assert largest(found[:, :: own["stride"]], expected) < own["tolerance"] * max(1.0, expected.std())


@pytest.mark.parametrize("name", CASES)
def test_cases_are_small(name):
    assert sum(int(np.prod(shape)) for _, shape in names_and_shapes(case(name))) < 1_000_000
