"""Architectures against `transformers`: small models from a seed, converted and run (`seeded_models`)."""

import itertools

import numpy as np
import pytest
from engine_checks import EXACT, largest
from numpy_model import NumpyModel
from seeded_models import CASES, case, converted, limit, names_and_shapes, stored_logits

import ikq
from ikq.models import CHECKPOINTS, model_spec, mtp_spec


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, tmp_path):
    own = case(name)
    out = converted(tmp_path, own)
    architecture, _ = CHECKPOINTS[own["config"]["architectures"][0]]
    assert ikq.GGUFReader(out).metadata["general.architecture"] == architecture
    with ikq.Model.load(out, **EXACT) as model:
        assert not [note for note in model.spec.notes if "no part" in note]
        found = model.logits(np.array(own["ids"]))
        # keys of the cache, and positions that are not the step's first
        model.truncate(0)
        ends = [0, 1, 11, *range(13, len(found) + 1)]
        pieces = [model.eval(np.array(own["ids"][a:b])) for a, b in itertools.pairwise(ends)]
        in_numpy = NumpyModel(ikq.GGUFReader(out), model.spec).logits(own["ids"])
    expected, columns = stored_logits(own), np.s_[:, :: own["stride"]]
    bound = limit(own, expected)
    assert expected.std() > 0.3
    assert largest(found[columns], expected) < bound
    assert largest(in_numpy[columns], expected) < bound
    assert largest(np.concatenate(pieces), found) < bound
    # and in the columns that are not stored as the plain reading has it
    assert largest(in_numpy, found) < bound


@pytest.mark.parametrize("name", [name for name in CASES if "head" in case(name)])
def test_heads_give_the_logits_of_transformers(name, tmp_path):
    """Blocks that predict a further token, from the next token and the hidden state before the output."""
    own = case(name)
    reader = ikq.GGUFReader(converted(tmp_path, own))
    whole = NumpyModel(reader, model_spec(reader))
    whole.logits(own["ids"])
    head = NumpyModel(reader, mtp_spec(reader))
    assert head.spec.output is None
    hidden = head.eval(own["ids"][1:], whole.hidden[-1][:-1])
    expected = stored_logits(own, "head_logits")
    assert expected.std() > 0.3
    assert largest(whole.head(hidden)[:, :: own["stride"]], expected) < limit(own, expected)


@pytest.mark.parametrize("name", CASES)
def test_cases_are_small(name):
    assert sum(int(np.prod(shape)) for _, shape in names_and_shapes(case(name))) < 1_000_000
