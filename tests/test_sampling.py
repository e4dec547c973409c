"""`ikq.sampling`: each step against a small model of its own, what is drawn against what should be, properties.

The models work on probabilities of the whole vocabulary and sort everything, so that they share nothing with the
steps, which select from logits.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ikq
from ikq.sampling import (
    DEFAULT_ORDER,
    Sampler,
    SamplingKeywords,
    SamplingOptions,
    log_probability,
    parse_samplers,
    top_logprobs,
)
from ikq.sampling.candidates import largest
from ikq.sampling.dry import breakers

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}


def logits_of(n, seed=0, scale=2.5):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x))
    return e / e.sum()


def best_first(p):
    return sorted(range(len(p)), key=lambda i: (-p[i], i))


def renormalized(p, kept):
    q = np.zeros_like(p)
    q[list(kept)] = p[list(kept)]
    return q / q.sum()


# Models of the steps: probabilities in, probabilities out


def model_top_k(p, k):
    return renormalized(p, best_first(p)[:k])


def model_top_p(p, bound):
    kept, total = [], 0.0
    for i in best_first(p):
        kept.append(i)
        total += p[i]
        if total >= bound:
            break
    return renormalized(p, kept)


def model_min_p(p, share):
    return renormalized(p, [i for i in range(len(p)) if p[i] >= share * p.max()])


def model_typical(p, bound):
    surprise = [-math.log(x) if x else math.inf for x in p]
    entropy = sum(x * s for x, s in zip(p, surprise, strict=True) if x)
    kept, total = [], 0.0
    for i in sorted(range(len(p)), key=lambda i: abs(surprise[i] - entropy)):
        kept.append(i)
        total += p[i]
        if total >= bound:
            break
    return renormalized(p, kept)


def model_top_n_sigma(p, n):
    x = np.log(p)
    return renormalized(p, [i for i in range(len(p)) if x[i] >= x.max() - n * np.std(x)])


def model_xtc(p, threshold):
    top = [i for i in best_first(p) if p[i] >= threshold]
    return renormalized(p, set(range(len(p))) - set(top[:-1]))


def model_temperature(p, t):
    with np.errstate(divide="ignore"):
        return softmax(np.log(p) / t)


def model_dynatemp(p, t, half, exponent):
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    share = entropy / math.log((p > 0).sum())
    return model_temperature(p, t - half + 2 * half * share**exponent)


STEPS = {
    "top_k": ({"top_k": 7}, lambda p: model_top_k(p, 7)),
    "top_k of many": ({"top_k": 333}, lambda p: model_top_k(p, 333)),
    "top_p": ({"top_p": 0.9}, lambda p: model_top_p(p, 0.9)),
    "min_p": ({"min_p": 0.05}, lambda p: model_min_p(p, 0.05)),
    "typical": ({"typical_p": 0.6}, lambda p: model_typical(p, 0.6)),
    "top_n_sigma": ({"top_n_sigma": 1.5}, lambda p: model_top_n_sigma(p, 1.5)),
    "xtc": ({"xtc_probability": 1.0, "xtc_threshold": 0.02}, lambda p: model_xtc(p, 0.02)),
    "temperature": ({"temperature": 0.7}, lambda p: model_temperature(p, 0.7)),
    "dynatemp": (
        {"dynatemp_range": 0.5, "dynatemp_exponent": 2.0},
        lambda p: model_dynatemp(p, 1, 0.5, 2),
    ),
}


@pytest.mark.parametrize("n", [40, 6000])
@pytest.mark.parametrize("step", list(STEPS))
def test_steps(step, n):
    options, model = STEPS[step]
    sampler = Sampler(SamplingOptions(**{**OFF, **options}))
    for seed in range(5):
        logits = logits_of(n, seed)
        ids, p = sampler.distribution(logits)
        found = np.zeros(n)
        found[ids] = p
        # a relative rounding of float32 logits of up to 15 moves a probability by 15 * 2**-24
        np.testing.assert_allclose(found, model(softmax(logits)), rtol=1e-5, atol=1e-12)


def test_the_usual_order():
    options = {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95, "temperature": 1.3}
    sampler = Sampler(SamplingOptions(seed=0, **options))
    logits = logits_of(3000, 1)
    p = model_top_k(softmax(logits), 50)
    p = model_temperature(model_min_p(model_top_p(model_typical(p, 0.95), 0.9), 0.02), 1.3)
    found = np.zeros(3000)
    ids, probabilities = sampler.distribution(logits)
    found[ids] = probabilities
    np.testing.assert_allclose(found, p, rtol=1e-5)


def test_another_order():
    logits = logits_of(500, 2)
    options = {**OFF, "top_p": 0.8, "temperature": 2.0}
    ids, p = Sampler(SamplingOptions(**options, samplers="temperature;top_p")).distribution(logits)
    wanted = model_top_p(model_temperature(softmax(logits), 2.0), 0.8)
    assert set(ids) == set(np.flatnonzero(wanted))
    np.testing.assert_allclose(p, wanted[ids], rtol=1e-5)
    # temperature first flattens, so that more are kept than in the usual order
    assert len(ids) > len(Sampler(SamplingOptions(**options)).distribution(logits)[0])
    # a step that is not named does not happen
    assert len(Sampler(SamplingOptions(**options, samplers="temperature")).distribution(logits)[0]) == 500


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("top_k;top-p;temp", ("top_k", "top_p", "temperature")),
        ("kpt", ("top_k", "top_p", "temperature")),
        ("temperature", ("temperature",)),
        (["typical", "MIN_P"], ("typical_p", "min_p")),
        ("edskypmxtw", DEFAULT_ORDER),
        ("", ()),
    ],
)
def test_names_of_steps(given, names):
    assert parse_samplers(given) == names


# What is drawn


def chi_square_bound(df, z=4.75):
    """Exceeded with probability 1e-6 (z), by the approximation of Wilson and Hilferty."""
    return df * (1 - 2 / (9 * df) + z * math.sqrt(2 / (9 * df))) ** 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6, "top_k": 12},
        {"top_p": 0.8},
        {"typical_p": 0.7, "temperature": 1.5},
        {"repeat_penalty": 1.4, "presence_penalty": 0.3},
    ],
)
def test_draws_follow_the_distribution(options):
    logits = logits_of(40, 3, scale=1.5)
    sampler = Sampler(SamplingOptions(**{**OFF, **options, "seed": 11}))
    sampler.reset([1, 5, 5, 7])
    ids, p = sampler.distribution(logits)
    n = 20_000
    counts = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=40)
    assert counts.sum() == counts[ids].sum() == n
    # cells of fewer than 5 expected draws are put together
    expected, found = p * n, counts[ids]
    small = expected < 5
    expected = np.append(expected[~small], expected[small].sum())
    found = np.append(found[~small], found[small].sum())
    expected, found = expected[expected > 0], found[expected > 0]
    statistic = ((found - expected) ** 2 / expected).sum()
    assert statistic < chi_square_bound(len(expected) - 1)


def test_xtc_is_drawn():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingOptions(**OFF | {"xtc_probability": 0.25, "xtc_threshold": 0.2, "seed": 4}))
    n = 8000
    counts = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=4)
    without = np.array([0, 0.3, 0.15, 0.05]) / 0.5  # the less probable of the two top choices stays
    expected = n * (0.75 * np.array([0.5, 0.3, 0.15, 0.05]) + 0.25 * without)
    assert ((counts - expected) ** 2 / expected).sum() < chi_square_bound(3)


def test_seeds():
    logits = [logits_of(300, seed) for seed in range(20)]

    def text(**options):
        sampler = Sampler(SamplingOptions(**{**OFF, **options}))
        return [sampler.sample(x) for x in logits]

    assert text(seed=5) == text(seed=5)
    assert text(seed=5) != text(seed=6)
    assert text(seed=None) != text(seed=None)
    sampler = Sampler(SamplingOptions(seed=-1))
    again = Sampler(SamplingOptions(seed=sampler.seed))
    assert [sampler.sample(x) for x in logits] == [again.sample(x) for x in logits]
    sampler.reset()
    again.reset()
    assert [sampler.sample(x) for x in logits] == [again.sample(x) for x in logits]


def test_the_random_numbers_are_those_of_philox():
    """The published counter-based generator with this key; texts of a seed must not change with numpy."""
    sampler = Sampler(SamplingOptions(**OFF | {"seed": 1234}))
    words = np.random.Philox(1234).random_raw(50)
    uniform = (words >> np.uint64(11)) * 2.0**-53
    logits = np.zeros(1000, np.float32)  # a token is its place among equal parts
    assert [sampler.sample(logits) for _ in range(50)] == [int(u * 1000) for u in uniform]


# Penalties


def test_penalties():
    logits = logits_of(50, 7)
    recent = [3, 3, 3, 9, 20, 9, 49]
    options = {"repeat_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2}
    sampler = Sampler(SamplingOptions(**OFF, **options, repeat_last_n=5))
    sampler.reset(recent)
    wanted = logits.astype(np.float64)
    for token in set(recent[-5:]):
        wanted[token] = wanted[token] / 1.3 if wanted[token] > 0 else wanted[token] * 1.3
        wanted[token] -= 0.4 + 0.2 * recent[-5:].count(token)
    ids, p = sampler.distribution(logits)
    np.testing.assert_allclose(p, softmax(wanted)[ids], rtol=1e-5)
    # accepted tokens count, and push old ones out
    for token in (1, 1, 1, 1, 1):
        sampler.accept(token)
    _, p = sampler.distribution(logits)
    changed = softmax(logits)[1] > p[1]
    assert changed
    for options in ({"repeat_last_n": 0}, {"repeat_last_n": 5, "samplers": "top_k"}):
        sampler = Sampler(SamplingOptions(**OFF, repeat_penalty=1.3, **options))
        sampler.reset(recent)
        np.testing.assert_allclose(sampler.distribution(logits)[1], softmax(logits), rtol=1e-6)


def dry_penalties(tokens, multiplier, base, allowed, breaks=()):
    """By definition: every earlier place is compared with the end, token by token."""
    found = {}
    for j in range(len(tokens) - 1):
        n = 0
        while n <= j and tokens[j - n] == tokens[-1 - n] and tokens[j - n] not in breaks:
            n += 1
        if n >= allowed and tokens[j + 1] not in breaks:
            penalty = multiplier * base ** (n - allowed)
            found[tokens[j + 1]] = max(penalty, found.get(tokens[j + 1], 0))
    return found


class Words:
    """A vocabulary of three-letter tokens: `aaa`, `aab`, ...; the last one holds a newline."""

    n_vocab = 6

    def token_bytes(self, token):
        return b"x\ny" if token == 5 else bytes([97 + token]) * 3

    def encode(self, text):
        return [ord(c) - 97 for c in text[::3]]


@given(
    tokens=st.lists(st.integers(0, 5), max_size=40),
    allowed=st.integers(1, 4),
    base=st.sampled_from([1.0, 1.75]),
)
def test_dry(tokens, allowed, base):
    options = {"dry_multiplier": 0.8, "dry_base": base, "dry_allowed_length": allowed}
    sampler = Sampler(SamplingOptions(**OFF, **options), vocabulary=Words())
    sampler.reset(tokens)
    wanted = np.zeros(6)
    for token, penalty in dry_penalties(tokens, 0.8, base, allowed, breaks={5}).items():
        wanted[token] -= penalty
    ids, p = sampler.distribution(np.zeros(6, np.float32))
    # of the longest punished repetition here, 1.75 ** 38, float32 keeps 24 bits, and exp makes it 0 anyway
    np.testing.assert_allclose(p, softmax(wanted)[ids], rtol=1e-4, atol=1e-12)


def test_dry_stays_finite_and_fast_on_one_token_for_ever():
    sampler = Sampler(SamplingOptions(**OFF, dry_multiplier=1.0))
    sampler.reset(np.zeros(30_000, int))
    ids, p = sampler.distribution(np.zeros(4, np.float32))
    assert ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(p, [0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-12)


def test_breakers_may_span_tokens():
    words = Words()
    assert breakers(["\n"], words) == {5: [()]}
    assert breakers(["bbb"], words) == {1: [()]}
    # "abbb" begins at the end of token 0 and goes on with token 1
    assert breakers(["abbb"], words) == {0: [(1,)]}
    assert breakers([""], words) == {}
    # they are remembered for each vocabulary
    assert breakers(["\n"], words) is breakers(("\n",), words)
    options = SamplingOptions(**OFF, dry_multiplier=1.0, dry_sequence_breakers=["abbb"])
    sampler = Sampler(options, vocabulary=words)
    # the repetition "0 1 2 3 0 1": its end lies behind the breaker "0 1", so nothing is repeated
    sampler.reset([0, 1, 2, 3, 0, 1])
    np.testing.assert_allclose(sampler.distribution(np.zeros(6, np.float32))[1], 1 / 6)


# Samplers with feedback


def test_mirostat_2():
    logits = logits_of(200, 8)
    sampler = Sampler(
        SamplingOptions(mirostat=2, mirostat_tau=3.0, mirostat_eta=0.2, temperature=0.9, seed=3)
    )
    mu, p = 6.0, model_temperature(softmax(logits), 0.9)
    for _ in range(100):
        kept = np.flatnonzero(-np.log2(p) <= mu)
        q = renormalized(p, kept if len(kept) else [int(p.argmax())])
        ids, found = sampler.distribution(logits)
        assert set(ids) == set(np.flatnonzero(q))
        np.testing.assert_allclose(found, q[ids], rtol=1e-5)
        mu -= 0.2 * (-math.log2(q[sampler.sample(logits)]) - 3.0)


@pytest.mark.parametrize("current", [False, True])
def test_adaptive_p(current):
    logits = logits_of(100, 9)
    sampler = Sampler(
        SamplingOptions(
            **OFF | {"top_k": 20, "temperature": 0.8, "seed": 1},
            adaptive_target=0.3,
            adaptive_decay=0.8,
            adaptive_update_with_current=current,
        )
    )
    original = softmax(logits)
    p = model_temperature(model_top_k(original, 20), 0.8)
    kept = np.flatnonzero(p)
    drawn = [0.3 / 0.2, 1 / 0.2]  # weighted sum, weight
    for _ in range(50):
        target = min(1, max(0, 2 * 0.3 - drawn[0] / drawn[1]))
        distance = np.abs(p[kept] - target) / 0.3
        wanted = np.zeros(100)
        wanted[kept] = softmax(5 - 10 * distance**2 / (1 + distance))
        ids, found = sampler.distribution(logits)
        np.testing.assert_allclose(found, wanted[ids], rtol=1e-4)
        token = sampler.sample(logits)
        drawn = [0.8 * drawn[0] + (p if current else original)[token], 0.8 * drawn[1] + 1]


# Properties

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 3),
        "dynatemp_range": st.floats(0, 2),
        "top_k": st.integers(0, 60),
        "top_p": st.floats(0, 1),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0, 1),
        "top_n_sigma": st.floats(0, 3),
        "xtc_probability": st.floats(0, 1),
        "xtc_threshold": st.floats(0, 1),
        "repeat_penalty": st.floats(0.5, 2),
        "frequency_penalty": st.floats(-1, 1),
        "dry_multiplier": st.floats(0, 2),
        "mirostat": st.sampled_from([0, 2]),
        "adaptive_target": st.floats(-1, 1),
        "min_keep": st.integers(0, 5),
        "samplers": st.permutations(DEFAULT_ORDER),
        "seed": st.integers(0, 2**64 - 1),
    },
)
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=60)


@given(options=OPTIONS, logits=LOGITS, banned=st.sets(st.integers(0, 59)))
def test_probabilities_sum_to_one_and_banned_tokens_are_never_drawn(options, logits, banned):
    allowed = set(range(len(logits))) - banned
    sampler = Sampler(SamplingOptions(**options, logit_bias=dict.fromkeys(banned, -math.inf)))
    sampler.reset([t % len(logits) for t in (1, 2, 1, 2, 1)])
    x = np.array(logits, np.float32)
    before = x.copy()
    if not allowed:
        with pytest.raises(ikq.FormatError, match="banned"):
            sampler.sample(x)
        return
    for _ in range(3):
        ids, p = sampler.distribution(x)
        assert len(set(ids.tolist())) == len(ids)
        assert (p >= 0).all()
        assert abs(p.sum() - 1) < 1e-12 * len(p)
        assert set(ids[p > 0].tolist()) <= allowed
        token = sampler.sample(x)
        assert token in allowed
        sampler.accept(token)
    assert np.array_equal(x, before)


@given(options=OPTIONS, logits=LOGITS)
def test_temperature_zero_takes_the_best(options, logits):
    options = {k: v for k, v in options.items() if "penalty" not in k and k != "dry_multiplier"}
    sampler = Sampler(SamplingOptions(**{**options, "temperature": 0}))
    x = np.array(logits, np.float32)
    assert sampler.sample(x) == int(np.argmax(x))


@given(
    keys=st.lists(st.integers(-3, 3), min_size=1, max_size=400),
    k=st.integers(1, 400),
)
def test_the_largest_of_equal_ones_are_the_first(keys, k):
    x = np.array(keys, np.float32)
    wanted = sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:k]
    assert largest(x, k).tolist() == wanted


def test_the_largest_of_a_large_vocabulary():
    x = np.round(logits_of(151_936, 4), 2)  # with many equal ones
    order = np.lexsort((np.arange(len(x)), -x))
    for k in (1, 40, 1000, 5000, 100_000, 151_936):
        assert np.array_equal(largest(x, k), order[:k])


# The rest


def test_logprobs():
    logits = logits_of(1000, 5)
    p = np.log(softmax(logits))
    assert log_probability(logits, 17) == pytest.approx(p[17], abs=1e-5)
    found = top_logprobs(logits, 3)
    assert [i for i, _ in found] == best_first(p)[:3]
    assert [x for _, x in found] == pytest.approx(p[best_first(p)[:3]], abs=1e-5)


def test_logit_bias():
    logits = logits_of(10, 6)
    biased = Sampler(SamplingOptions(**OFF, logit_bias={2: 1.5, 3: -2.0, 99: 1.0}))
    wanted = logits.copy()
    wanted[[2, 3]] += [1.5, -2.0]
    np.testing.assert_allclose(biased.distribution(logits)[1], softmax(wanted), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_no_numbers(bad):
    logits = logits_of(10)
    logits[3] = bad
    with pytest.raises(ikq.FormatError, match="NaN or infinite"):
        Sampler().sample(logits)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("typical_p", 2),
        ("xtc_probability", 1.5),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("dry_base", 0.5),
        ("dry_allowed_length", 0),
        ("dry_sequence_breakers", "\n"),
        ("mirostat", 1),
        ("mirostat", 3),
        ("adaptive_target", 1.5),
        ("adaptive_decay", 1.0),
        ("seed", 2**64),
        ("seed", 1.5),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: math.nan}),
        ("samplers", "top_q"),
        ("samplers", ["top_k", "top-k"]),
        ("min_keep", -1),
    ],
)
def test_wrong_options_are_named_with_their_value(option, value):
    with pytest.raises(ValueError, match=option) as e:
        SamplingOptions(**{option: value})
    if not isinstance(value, dict):
        assert str(value) in str(e.value) or option in ("dry_sequence_breakers", "samplers")


def test_keywords_are_the_fields():
    fields = SamplingOptions.__dataclass_fields__
    assert SamplingKeywords.__annotations__.keys() == fields.keys()
    for name in fields:
        assert f"    {name}: " in SamplingOptions.__doc__
