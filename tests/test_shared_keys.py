"""Layers without keys of their own read those of others (Gemma 4): on sequences, and on devices."""

import numpy as np
import pytest
from engine_checks import EXACT, largest
from numpy_model import NumpyModel
from seeded_models import case, converted
from sequence_checks import run, same

import ikq
from ikq.models import model_spec

# float32 in both, after positions were moved
BOUND = 3e-4


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("gemma4"), case("gemma4"))


def test_in_pieces_shifted_and_saved(file, tmp_path):
    """Wherever positions have gone."""
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


def test_on_one_device(file):
    ids = case("gemma4")["ids"]
    with ikq.Model.load(file, **EXACT) as model:
        whole = model.logits(ids)
    # layer 4 reads the keys of 2, and 5 those of 3
    with ikq.Model.load(file, **EXACT, override_tensor=r"blk\.[24]\.=CPU1") as model:
        assert same(model.logits(ids), whole)
    with pytest.raises(
        ikq.FormatError, match=r"layer 5 reads the keys and values of layer 3: they cannot be on"
    ):
        ikq.Model.load(file, **EXACT, override_tensor=r"blk\.5\.=CPU1")
