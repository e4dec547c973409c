"""Steps that want only the largest logits (`Best`), on the CPU and on devices in its place."""

import numpy as np
import pytest
from best_logits_checks import (
    check_heads,
    check_prompts,
    check_steps,
    errors,
    from_all_logits,
    texts,
    too_large,
    twins,
)
from hypothesis import given
from hypothesis import strategies as st
from model_files import Changed, path, reader
from test_sampling import LOGITS, OPTIONS

import ikq
from ikq import _ikq
from ikq.inference.sequence import Best
from ikq.sampling import Candidates, Sampler, SamplingOptions

IDS = list(range(3, 27))


@pytest.mark.parametrize("n_ubatch", [5, 512])
@pytest.mark.parametrize("name", ["qwen2moe/qwen2moe-bf16", "gemma3/gemma3-bf16", "qwen3next/qwen3next-bf16"])
def test_they_are_the_largest_of_all(name, n_ubatch):
    with ikq.Model.load(path(name), n_ctx=64, n_ubatch=n_ubatch) as model:
        check_steps(model, IDS, n_rounds=2)
        check_prompts(model, IDS)
        check_heads(model, IDS)


def test_the_output_on_another_device():
    options = {"devices": ["CPU", "CPU1"], "n_gpu_layers": 99}
    with ikq.Model.load(path("qwen2moe/qwen2moe-bf16"), n_ctx=64, **options) as model:
        check_steps(model, IDS, n_rounds=1)


def test_of_equal_ones_the_first(tmp_path):
    file = tmp_path / "model.gguf"
    twins(Changed(reader("qwen2/qwen2-f32"))).write(file)
    with ikq.Model.load(file, n_ctx=64) as model:
        check_steps(model, IDS, n_rounds=1)
        (found,) = model.step([(model.new_sequence(), IDS, Best(6, each=True))])
        assert all((c.ids[::2] + 1 == c.ids[1::2]).all() and not (c.ids[::2] % 2).any() for c in found)


def test_the_errors_are_those_of_all_logits(tmp_path):
    file = tmp_path / "model.gguf"
    too_large(Changed(reader("qwen2/qwen2-f32"))).write(file)
    with ikq.Model.load(file, n_ctx=64) as model:
        said = errors(model, IDS[:1])
        assert len(said) == 4
        assert "number 77 is" in said[0]
        assert set(said) == {said[0]}
        (hidden,) = model.step([(model.new_sequence(), IDS[:1], "hidden")])
        for n in (1, 9):
            with pytest.raises(ikq.FormatError, match="number 77 is"):
                model._head_best(hidden, n)
        with pytest.raises(ikq.FormatError, match="number 77 is"):
            model.generate(IDS[:1], temperature=0, max_tokens=1).text()


@pytest.mark.parametrize("n", [0, _ikq.MOST_BEST + 1])
def test_what_cannot_be_wanted(tiny_moe, n):
    with ikq.Model.load(tiny_moe, n_ctx=64) as model:
        sequence = model.new_sequence()
        with pytest.raises(ValueError, match=f"the {n} largest logits"):
            model.step([(sequence, [1], Best(n))])
        assert sequence.n_past == 0


# Samplers


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({}, 40),
        ({"temperature": 0}, 1),
        ({"temperature": 0, "top_k": 0, "mirostat": 2}, 1),
        ({"top_k": 7, "min_keep": 9}, 9),
        ({"top_k": 0}, None),
        ({"repeat_penalty": 1.1}, None),
        ({"repeat_penalty": 1.1, "repeat_last_n": 0}, 40),
        ({"temperature": 0, "frequency_penalty": 0.1}, None),
        ({"temperature": 0, "dry_multiplier": 0.8}, None),
        ({"temperature": 0, "logit_bias": {5: -1.0}}, None),
        ({"mirostat": 2}, None),
        ({"top_n_sigma": 1.0}, None),
        ({"samplers": "top_p;top_k"}, None),
        ({"samplers": "top_p;top_k", "top_p": 1.0}, 40),
        ({"samplers": "temperature;top_k"}, None),
        ({"samplers": "temperature;top_k", "temperature": 1.0}, 40),
        ({"samplers": "xtc;top_k"}, 40),
        ({"samplers": "xtc;top_k", "xtc_probability": 0.5}, None),
        ({"samplers": "temperature"}, None),
        ({"adaptive_target": 0.5}, None),
        ({"adaptive_target": 0.5, "adaptive_update_with_current": True}, 40),
    ],
)
def test_how_many_a_sampler_needs(options, n):
    assert Sampler(SamplingOptions(**options)).n_best == n


@given(options=OPTIONS, current=st.booleans(), logits=LOGITS, ties=st.booleans())
def test_a_sampler_chooses_the_same_from_the_largest(options, current, logits, ties):
    """Random numbers go on as well, and what samplers remember."""
    options = {k: v for k, v in options.items() if "penalty" not in k and k != "dry_multiplier"}
    options |= {"adaptive_update_with_current": current, "seed": options.get("seed", 1)}
    pair = [Sampler(SamplingOptions(**options)) for _ in range(2)]
    n = pair[0].n_best
    x = np.array(logits, np.float32)
    if ties:
        x = np.round(x / 10)
    ids = np.argsort(-x, kind="stable")[:n]
    best = Candidates(ids, x[ids], is_sorted=True)
    if n is None:
        with pytest.raises(ValueError, match="all tokens"):
            pair[0].sample(best)
        return
    for _ in range(4):
        token = pair[0].sample(x)
        assert pair[1].sample(best) == token
        for sampler in pair:
            sampler.accept(token)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_largest_that_are_no_numbers(bad):
    best = Candidates(np.array([3]), np.array([bad], np.float32), is_sorted=True)
    with pytest.raises(ikq.FormatError, match="NaN or infinite"):
        Sampler(SamplingOptions(temperature=0)).sample(best)


# Texts


class Noting(ikq.Model):
    """Notes what is wanted."""

    wants = ()

    def step(self, entries):
        entries = list(entries)
        self.wants = [*self.wants, *(want for _, _, want in entries)]
        return super().step(entries)


CASES = {
    "greedy": ({"temperature": 0}, {Best(1)}),
    "sampled": ({"seed": 5}, {Best(40)}),
    "many": ({"seed": 5, "top_k": _ikq.MOST_BEST}, {Best(_ikq.MOST_BEST)}),
    "too many": ({"seed": 5, "top_k": _ikq.MOST_BEST + 1}, {"last"}),
    "logprobs": ({"temperature": 0, "logprobs": 2}, {"last"}),
    "bias": ({"temperature": 0, "logit_bias": {7: 1.0}}, {"last"}),
    "penalty": ({"temperature": 0, "repeat_penalty": 1.2}, {"last"}),
    "grammar": ({"temperature": 0, "grammar": 'root ::= "a"*'}, {"last"}),
}


@pytest.mark.parametrize("case", CASES)
def test_texts_want_what_they_need(tiny_moe, case):
    """And are those that all logits give."""
    options, wanted = CASES[case]
    with Noting.load(tiny_moe, n_ctx=64) as model:
        found = texts(model, [IDS[:4], IDS[2:9]], max_tokens=12, **options)[0]
        assert set(model.wants) == wanted
        with from_all_logits():
            assert texts(model, [IDS[:4], IDS[2:9]], max_tokens=12, **options)[0] == found


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3, "temperature": 1.2}])
def test_drafts_are_compared_with_the_largest(tiny_moe, options):
    """Drafts that are right often, of texts that repeat themselves."""
    options |= {"max_tokens": 30}
    prompt = IDS[:6] * 4
    with Noting.load(tiny_moe, n_ctx=128) as model:
        with from_all_logits():
            plain = texts(model, [prompt], **options)[0]
        model.wants = ()
        drafted = {"lookup": 1, "draft_adapt": False, "draft_p_min": 0.0, "draft_max": 4}
        assert texts(model, [prompt], **options, **drafted)[0] == plain
        assert any(isinstance(want, Best) and want.each for want in model.wants)
        assert all(isinstance(want, Best) for want in model.wants)
