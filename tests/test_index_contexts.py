"""Attention to positions that an index chooses (DeepSeek V3.2, GLM-5): contexts that it chooses whole, and no longer."""

import pytest
from engine_checks import EXACT
from seeded_models import case, converted

import ikq


@pytest.mark.parametrize("name", ["deepseek32", "glm-dsa"])
def test_longer_contexts_are_refused(name, tmp_path):
    """Up to what an index chooses, attention reads all positions; the engine has no index."""
    file, exact = converted(tmp_path, case(name)), EXACT | {"n_ctx": 128}
    with ikq.Model.load(file, **exact) as model:
        assert model.n_ctx == 128
    with ikq.Model.load(file, **(exact | {"n_ctx": None})) as model:
        assert model.n_ctx == 128
    with pytest.raises(ikq.RefusedError, match=r"n_ctx=129.*which is not computed yet"):
        ikq.Model.load(file, **(exact | {"n_ctx": 129}))
