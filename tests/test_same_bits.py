"""A sequence's logits are the same bits however its tokens are cut into steps, whatever runs beside it, on any number
of threads, with any plan of its FFNs."""

import threading

import numpy as np
import pytest
from model_files import NAMES, RECURRENT, path, prompt
from sequence_checks import (
    CACHES,
    COMPUTE,
    DEFAULT,
    PLANS,
    ROTATED,
    fresh,
    in_cuts,
    load,
    long_text,
    run,
    same,
)
from small_models import N_CTX, Parts, biased, dense, mixture, tokens

import ikq
from ikq.models import model_spec


@pytest.mark.parametrize("compute", list(COMPUTE))
@pytest.mark.parametrize("name", NAMES)
def test_cuts(name, compute):
    ids = prompt(name, 1)
    rng = np.random.default_rng(7)
    with load(name, **COMPUTE[compute]) as model:
        whole = model.logits(ids)
        assert np.ptp(whole) > 1
        assert same(whole, fresh(model, ids))
        for width in (1, 2, 7, 32, 33):
            assert same(whole, fresh(model, ids, width)), width
        for _ in range(3):
            cuts = np.sort(rng.choice(np.arange(1, len(ids)), 4, replace=False))
            assert same(whole, in_cuts(model, ids, cuts)), cuts
        # logits of the last alone, and after tokens of which none were wanted
        assert same(whole[-1:], fresh(model, ids, want="last"))
        with model.new_sequence() as sequence:
            assert model.step([(sequence, ids[:50], "none")]) == [None]
            assert same(whole[50:], run(model, sequence, ids[50:]))
    for options in ({"n_ubatch": 7}, {"n_ubatch": 1}, {"n_threads": 1}, {"n_threads": 3}, {"mmap": "on"}):
        with load(name, **COMPUTE[compute], **options) as model:
            assert same(whole, model.logits(ids)), options
            assert same(whole, fresh(model, ids, 40)), options


@pytest.mark.parametrize("compute", list(COMPUTE))
@pytest.mark.parametrize("name", NAMES)
def test_plans(name, compute):
    ids = prompt(name, 0)
    found = {}
    for plan, options in PLANS.items():
        with load(name, **COMPUTE[compute], **options) as model:
            found[plan] = model.logits(ids)
            assert same(found[plan], fresh(model, ids, 1)), plan
    for plan, logits in found.items():
        assert same(logits, found["fused"]), plan


@pytest.mark.parametrize("name", NAMES)
def test_cache_types(name):
    ids = prompt(name, 0)
    attention = next(x.attention for x in model_spec_of(name).layers if x.attention.kind != "delta_net")
    row = attention.kv_rank + attention.n_rot if attention.kind == "mla" else attention.head_dim
    seen = []
    for cache in CACHES:
        for rotation in (True, False) if cache in ROTATED else (True,):
            options = {"cache_type_k": cache, "cache_type_v": cache, "cache_rotation": rotation}
            if row % 32 and cache not in ("f32", "f16", "bf16"):
                with pytest.raises(ikq.UnsupportedError, match=cache):
                    load(name, **DEFAULT, **options)
                continue
            with load(name, **DEFAULT, **options) as model:
                whole = model.logits(ids)
                assert same(whole, fresh(model, ids, 1)), options
                assert same(whole, fresh(model, ids, 13)), options
                seen.append(whole)
    # each is a cache of its own
    assert all(not same(a, b) for i, a in enumerate(seen) for b in seen[:i])


def model_spec_of(name):
    with ikq.GGUFReader(path(name)) as reader:
        return model_spec(reader)


@pytest.mark.parametrize("name", NAMES)
def test_over_several_pages(name):
    """Pages end at 256 positions, chunks of recurrent layers at 32."""
    ids = long_text(600)
    with load(name, n_ctx=1024) as model:
        whole = model.logits(ids)
        for cuts in ([256, 512], [255, 257], [1, 300, 301, 302], [31, 511], [250 + i for i in range(12)]):
            assert same(whole, in_cuts(model, ids, cuts)), cuts
    for options in ({"n_ubatch": 100}, {"n_threads": 1, "n_ubatch": 33}):
        with load(name, n_ctx=1024, **options) as model:
            assert same(whole, model.logits(ids)), options


LENGTHS = (1, 2, 3, 9, 31, 47, 64, 80)


@pytest.mark.parametrize("compute", list(COMPUTE))
@pytest.mark.parametrize("name", NAMES)
def test_eight_sequences_beside_each_alone(name, compute):
    texts = [np.roll(prompt(name, 1), 7 * i)[:n] for i, n in enumerate(LENGTHS)]
    # tokens of the second step, and what is wanted
    more = [np.roll(prompt(name, 0), 5 * i)[: 1 + 3 * (i % 3)] for i in range(8)]
    wants = ["last", "all", "none", "hidden", "all", "last", "hidden", "all"]
    with load(name, **COMPUTE[compute]) as model:
        alone = [fresh(model, text) for text in texts]
        hidden = [fresh(model, text, want="hidden") for text in texts]
        after = []
        for text, tokens_after, want in zip(texts, more, wants, strict=True):
            with model.new_sequence() as sequence:
                run(model, sequence, text)
                after += model.step([(sequence, tokens_after, want)])
        for options in ({}, {"n_ubatch": 50}):
            with load(name, **COMPUTE[compute], **options) as other:
                sequences = [other.new_sequence() for _ in texts]
                found = other.step([(s, t, "all") for s, t in zip(sequences, texts, strict=True)])
                assert all(same(a, b) for a, b in zip(alone, found, strict=True)), options
                # in another order
                order = [3, 7, 0, 2, 6, 1, 5, 4]
                found = other.step([(sequences[i], more[i], wants[i]) for i in order])
                for i, logits in zip(order, found, strict=True):
                    expected = after[i]
                    assert (expected is None) == (logits is None) == (wants[i] == "none")
                    assert logits is None or same(expected, logits), (options, i)
                assert [s.tokens for s in sequences] == [
                    [*t.tolist(), *m.tolist()] for t, m in zip(texts, more, strict=True)
                ]
                again = [other.new_sequence() for _ in texts]
                found = other.step([(s, t, "hidden") for s, t in zip(again, texts, strict=True)])
                assert all(same(a, b) for a, b in zip(hidden, found, strict=True)), options


@pytest.mark.parametrize("name", ["qwen3moe/qwen3moe-bf16", "gemma3/gemma3-bf16", *RECURRENT])
def test_threads_with_sequences_of_their_own(name):
    ids = prompt(name, 1)
    with load(name, n_ctx=128) as model:
        whole = model.logits(ids)
        found = [None] * 4

        def work(i):
            found[i] = fresh(model, ids, 3 + i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(same(whole, logits) for logits in found)


@pytest.fixture(scope="module")
def parts():
    return Parts()


@pytest.mark.parametrize(
    "pair", [("Q4_K", "IQ4_KS"), ("MXFP4", "MXFP4"), ("IQ2_KT", "Q8_0"), ("IQ3_S", "Q6_K")]
)
@pytest.mark.parametrize("form", ["mixture", "biased", "dense"])
def test_block_types(parts, tmp_path, pair, form):
    """Types that fixtures do not have, biases, all plans."""
    make = {
        "mixture": lambda file: mixture(parts, file, *pair),
        "biased": lambda file: biased(parts, file, *pair, 2, [0.0] * 5),
        "dense": lambda file: dense(parts, file, *pair),
    }
    file = make[form](tmp_path / "m.gguf")
    ids = np.array(tokens(90))
    found = {}
    for plan, options in PLANS.items():
        with ikq.Model.load(file, n_ctx=N_CTX, **options) as model:
            found[plan] = model.logits(ids)
            for width in (1, 2, 3, 8, 17):
                assert same(found[plan], fresh(model, ids, width)), (plan, width)
    assert all(same(found["fused"], logits) for logits in found.values())
