"""Architectures against `transformers`: small models from a seed, converted and run (`seeded_models`)."""

import itertools

import numpy as np
import pytest
from engine_checks import EXACT, largest
from numpy_model import NumpyModel
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
        # keys of the cache, and positions that are not the step's first
        model.truncate(0)
        ends = [0, 1, 11, *range(13, len(found) + 1)]
        pieces = [model.eval(np.array(own["ids"][a:b])) for a, b in itertools.pairwise(ends)]
        in_numpy = NumpyModel(ikq.GGUFReader(out), model.spec).logits(own["ids"])
    expected = stored_logits(own)
    limit = own["tolerance"] * max(1.0, expected.std())
    assert expected.std() > 0.3
    assert largest(found[:, :: own["stride"]], expected) < limit
    assert largest(np.concatenate(pieces), found) < limit
    assert largest(in_numpy, found) < limit


@pytest.mark.parametrize("name", CASES)
def test_cases_are_small(name):
    assert sum(int(np.prod(shape)) for _, shape in names_and_shapes(case(name))) < 1_000_000
