"""A mixture whose parts have norms of their own (Gemma 4) on two devices."""

import numpy as np
import pytest
from engine_checks import EXACT
from seeded_models import case, converted
from sequence_checks import fresh, same

import ikq


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("gemma4-moe"), case("gemma4-moe"))


@pytest.mark.parametrize("rule", ["exps=CPU1", "ffn_gate_inp=CPU1", r"blk\.1\.=CPU1"])
def test_on_two_devices(file, rule):
    ids = case("gemma4-moe")["ids"]
    with ikq.Model.load(file, **EXACT) as model:
        whole = model.logits(ids)
    two = {"override_tensor": rule, **EXACT}
    with ikq.Model.load(file, **two) as model:
        assert same(model.logits(ids), whole)
        assert same(fresh(model, np.array(ids), 7), whole)
