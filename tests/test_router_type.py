"""A router of 8 bits: what `--ffn-gate-inp-type q8_0` changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED

import ikq
from ikq.evaluate import cut, measure_perplexity, text_tokens

TEXT = SHARED / "models" / "text" / "heldout.txt"
N_WINDOWS = 40


def measured(path: Path) -> tuple[float, dict[str, list[list[int]]]]:
    """Perplexity of the first windows, and the experts that their tokens were routed to."""
    with ikq.Model.load(path, n_ctx=512) as model, model.collect_activations(choices=True) as collector:
        windows = cut(text_tokens(model.tokenizer, TEXT.read_text(encoding="utf-8")), chunks=N_WINDOWS)
        *_, last = measure_perplexity(model, windows)
        return last.value, collector.expert_choices()


@pytest.mark.skipif(not TEXT.exists(), reason="../shared/models/text is not there")
def test_a_router_of_eight_bits_chooses_the_same_experts(tmp_path: Path, tiny_moe: Path) -> None:
    """Nothing but the router is quantized, so that whatever differs is its doing."""
    out = tmp_path / "o.gguf"
    plan = ikq.plan_quantization(tiny_moe, out, "COPY", ffn_gate_inp_type="q8_0")
    changed = {t.name: t.to_type for t in plan.tensors if not t.copied}
    assert changed == {f"blk.{i}.ffn_gate_inp.weight": ikq.QuantType.Q8_0 for i in range(4)}
    plan.run()
    exact, expected = measured(tiny_moe)
    found_value, found = measured(out)
    assert found.keys() == expected.keys() == changed.keys()
    for router, tokens in expected.items():
        assert (
            len(tokens) == len(found[router]) == N_WINDOWS * 511
        )  # the last token of a window predicts nothing
        same = [set(a) == set(b) for a, b in zip(tokens, found[router], strict=True)]
        assert all(len(set(chosen)) == 2 for chosen in tokens)
        assert np.mean(same) > 0.99, (router, np.mean(same))
    assert found_value == pytest.approx(exact, rel=0.003)
