"""Routing, norms, rope, caches, attention and the choice of tokens, against double precision."""

import numpy as np
import pytest
from emulator import ORDERS, aligned, for_types, module, needs_gxx, on_device
from test_kernels_products import U, check_quantized, quantized, sigmoid
from weights import TYPES, device_row_bytes, weights_module

pytestmark = needs_gxx

PAGE = 256
LAYER = 7
CACHES = ["f32", "f16", "bf16", "q8_0", "q6_0", "q4_0", "q4_1", "iq4_nl"]
# types of keys and values, heads, heads of the cache, elements of keys and of values, and what else
ATTENTIONS = [
    ("f16", "f16", 4, 2, 64, 64, {}),
    ("q8_0", "q4_0", 4, 1, 128, 128, {"sinks": True, "first": 100}),
    ("q6_0", "iq4_nl", 2, 1, 64, 64, {}),
    ("q4_1", "q6_0", 2, 1, 64, 64, {}),
    ("f16", "q8_0", 2, 2, 96, 64, {"cap": 30.0, "gate": True}),
    ("f32", "f32", 3, 3, 80, 80, {}),
    ("f16", "f16", 2, 1, 576, 512, {"latent": True}),
]


def f32(x):
    return on_device(np.asarray(x, np.float32))


def i32(x):
    return on_device(np.asarray(x, np.int32))


def router_module():
    return module('#include "router.cu"\n')


def norm_module():
    return module('#include "norm.cu"\n')


def route(logits, k, func, bias=None, normalize=False, scale=1.0, groups=(1, 1), reduction=None, order=0):
    tokens, n = logits.shape
    ids, weights, bad = aligned((tokens, k), np.int32), aligned((tokens, k), np.float32), i32([-1] * tokens)
    least, threshold = reduction or (k, 0.0)
    router_module().run(
        "router", tokens, 32, f32(logits), bias, ids, weights, bad, LAYER, n, k, func, int(normalize), scale, *groups, least,
        threshold, order=order,
    )  # fmt: skip
    return ids, weights, bad.tolist()


def expected_route(logits, k, func, bias, normalize, scale, groups, reduction):
    """The rule of `ikq-kernels`' routing, in doubles, for a token."""
    x = logits.astype(np.float64)
    p = {0: lambda: np.exp(x - x.max()) / np.exp(x - x.max()).sum(), 1: lambda: sigmoid(x), 2: lambda: x}[
        func
    ]()
    choice = p + (0 if bias is None else bias)
    n_group, used = groups
    if n_group > 1:
        best_two = np.sort(choice.reshape(n_group, -1), axis=1)[:, -2:].sum(1)
        chosen = np.argsort(-best_two, kind="stable")[:used]
        choice = np.where(np.isin(np.arange(len(x)) // (len(x) // n_group), chosen), choice, -np.inf)
    ids = np.argsort(-choice, kind="stable")[:k]
    w = p[ids]
    if func == 2:
        w = np.exp(w - w.max()) / np.exp(w - w.max()).sum()
    w = w * scale / (max(w.sum(), 6.1035156e-5) if normalize else 1)
    if reduction:
        least, threshold = reduction
        rank = np.argsort(np.argsort(-w, kind="stable"), kind="stable")
        keep = (rank < least) | (w > threshold * w.max())
        ids, w = np.where(keep, ids, -1), np.where(keep, w, 0)
    return ids, w


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("func", "n", "k", "more"),
    [
        (0, 128, 8, {"normalize": True}),
        (0, 60, 4, {}),
        (1, 256, 8, {"bias": True, "normalize": True, "scale": 2.5, "groups": (8, 4)}),
        (2, 32, 4, {"scale": 1.5}),
        (2, 7, 7, {}),
        (0, 128, 8, {"reduction": (3, 0.4)}),
    ],
)
def test_router(func, n, k, more, order):
    rng = np.random.default_rng(n + func)
    logits = rng.normal(size=(5, n)).astype(np.float32) * 2
    more = {"bias": None, "normalize": False, "scale": 1.0, "groups": (1, 1), "reduction": None, **more}
    more["bias"] = f32(rng.normal(size=n)) if more["bias"] else None
    ids, weights, bad = route(logits, k, func, order=order, **more)
    assert bad == [-1] * 5
    for t in range(5):
        want_ids, want = expected_route(logits[t], k, func, **more)
        assert ids[t].tolist() == want_ids.tolist()
        # exponentials to 2 units, a sum of n in 5 + n / 32 steps, a division each
        assert np.allclose(weights[t], want, rtol=(n // 32 + 16) * 2 * U, atol=0)


def test_equal_scores_and_scores_that_are_not_finite():
    logits = np.zeros((3, 40), np.float32)
    logits[1, 17], logits[2, 3] = np.nan, 1
    ids, weights, bad = route(logits, 4, 0)
    assert bad == [-1, LAYER, -1]
    assert ids.tolist() == [[0, 1, 2, 3], [-1] * 4, [3, 0, 1, 2]]
    assert not weights[1].any()


@pytest.mark.parametrize("order", ORDERS)
def test_sort_by_expert(order):
    rng = np.random.default_rng(4)
    # fewer pairs than threads, and more; more experts than a warp has lanes
    for n, n_experts in ((77, 12), (1, 2), (257, 3), (900, 70)):
        ids = rng.integers(-1, n_experts - 1, n).astype(np.int32)
        bounds, rows = aligned(n_experts + 1, np.int32), aligned(n, np.int32)
        router_module().run("moe_sort", 1, 256, on_device(ids), bounds, rows, n, n_experts, order=order)
        want = [np.flatnonzero(ids == e) for e in range(n_experts)]
        assert bounds.tolist() == np.cumsum([0, *map(len, want)]).tolist()
        assert rows[: bounds[-1]].tolist() == np.concatenate(want).tolist()
        assert bounds[-1] == bounds[-2], "an expert without rows"


@pytest.mark.parametrize("order", ORDERS)
def test_rms_norm_with_sum_and_codes(order):
    rng = np.random.default_rng(9)
    n = 320
    x, add, weight = f32(rng.normal(size=(3, n)) * 3), f32(rng.normal(size=(3, n))), f32(rng.normal(size=n))
    total, y, q, ds = (
        aligned(s, t) for s, t in (((3, n), "f4"), ((3, n), "f4"), ((3, n), "i1"), ((3, n // 32, 2), "f4"))
    )
    norm_module().run("rms_norm", 3, 256, x, add, weight, total, y, q, ds, n, 1e-5, order=order)
    assert (total == x + add).all()
    h = (x + add).astype(np.float64)
    want = h / np.sqrt((h**2).mean(-1, keepdims=True) + np.float32(1e-5)) * weight
    assert (np.abs(y - want) <= 20 * U * np.abs(want)).all()
    check_quantized(q, ds, y)
    norm_module().run("rms_norm", 3, 256, x, None, weight[:50].copy(), None, y, None, None, 50, 0.0)


def heads_module():
    return module(for_types("heads.cu", CACHES))


def rope(positions, n_rot, base=1e4, magnitude=1.25):
    angles = on_device(base ** (-2 * np.arange(n_rot // 2) / n_rot))
    out = aligned((len(positions), n_rot), np.float32)
    norm_module().run("rope_table", len(positions), 64, i32(positions), angles, out, n_rot // 2, magnitude)
    turn = np.asarray(positions)[:, None] * angles
    want = np.concatenate([np.cos(turn), np.sin(turn)], axis=1) * magnitude
    # an angle of 1e6 is known to 1e6 times 2^-52, and a float has half a unit of 1.25
    assert np.abs(out - want).max() < 1e-9 + 2 * U
    return out, want


@pytest.mark.parametrize("neox", [0, 1])
@pytest.mark.parametrize("cache", CACHES)
def test_heads_are_normed_turned_and_stored(cache, neox):
    rng = np.random.default_rng(6)
    n_heads, n, n_rot, stride = 3, 96, 64, 3 * 96 + 40
    cos_sin, exact = rope([0, 5, 1_000_003], n_rot)
    x, weight = rng.normal(size=(3, stride)).astype(np.float32), f32(rng.normal(size=n))
    y = aligned((3, n_heads, n), np.float32)
    store = aligned((3, n_heads, PAGE, row_bytes(cache, n)), np.uint8)
    slots = [2 * PAGE + 7, 255, -1]
    args = (
        f32(x),
        stride,
        n,
        n_heads,
        n,
        weight,
        n,
        1e-6,
        cos_sin,
        0,
        n_rot,
        neox,
        y,
        n,
        store,
        i32(slots),
        0,
        0,
        0,
    )
    heads_module().run(f"heads_{cache}", (n_heads, 3), 32, *args, order=ORDERS[neox + 1])
    h = x[:, : n_heads * n].reshape(3, n_heads, n).astype(np.float64)
    want = h / np.sqrt((h**2).mean(-1, keepdims=True) + np.float32(1e-6)) * weight
    a, b = (slice(0, 32), slice(32, 64)) if neox else (slice(0, 64, 2), slice(1, 64, 2))
    u, v = want[..., a].copy(), want[..., b].copy()
    c, s = exact[:, None, :32], exact[:, None, 32:]
    want[..., a], want[..., b] = u * c - v * s, u * s + v * c
    assert np.abs(y - want).max() <= 24 * U * np.abs(want).max() * 1.5
    written = np.zeros((3, PAGE), bool)
    for column, slot in enumerate(slots[:2]):
        written[slot // PAGE, slot % PAGE] = True
        row = store[slot // PAGE, :, slot % PAGE]
        assert_stored(cache, row, y[column])
    untouched = store.transpose(0, 2, 1, 3)[~written]
    assert (untouched == 0xFF).all(), "a row that has no slot was written"


def test_parts_of_heads_are_normed_and_turned():
    """Compressed keys: a norm of the first elements, a rope of the last; heads and results that stand apart."""
    rng = np.random.default_rng(16)
    n_heads, n_norm, n_rot, head_stride, y_stride = 2, 64, 32, 130, 101
    n = n_norm + n_rot
    cos_sin, exact = rope([3, 400], n_rot)
    x, weight = rng.normal(size=(2, n_heads * head_stride)).astype(np.float32), f32(rng.normal(size=n_norm))
    y = aligned((2, n_heads, y_stride), np.float32)
    args = (
        f32(x),
        n_heads * head_stride,
        head_stride,
        n_heads,
        n,
        weight,
        n_norm,
        1e-6,
        cos_sin,
        n_norm,
        n_rot,
        0,
    )
    heads_module().run("heads_f32", (n_heads, 2), 32, *args, y, y_stride, None, None, 0, 0, 0)
    h = x.reshape(2, n_heads, head_stride)[..., :n].astype(np.float64)
    c, k = h[..., :n_norm], h[..., n_norm:]
    c = c / np.sqrt((c**2).mean(-1, keepdims=True) + np.float32(1e-6)) * weight
    cosines, sines = exact[:, None, : n_rot // 2], exact[:, None, n_rot // 2 :]
    turned = np.empty_like(k)
    turned[..., ::2] = k[..., ::2] * cosines - k[..., 1::2] * sines
    turned[..., 1::2] = k[..., ::2] * sines + k[..., 1::2] * cosines
    want = np.concatenate([c, turned], axis=-1)
    assert np.abs(y[..., :n] - want).max() <= 24 * U * np.abs(want).max() * 1.5
    assert np.isnan(y[..., n:]).all(), "what lies between heads was written"


def cache_floats(cache, rows, n):
    """Rows of a cache, `(..., row_bytes)`, as floats."""
    rows = np.ascontiguousarray(rows)
    if cache == "f32":
        return rows.view(np.float32)[..., :n]
    if cache == "f16":
        return rows.view(np.float16)[..., :n].astype(np.float32)
    if cache == "bf16":
        return (rows.view(np.uint16)[..., :n].astype(np.uint32) << 16).view(np.float32)
    n_rows = rows.size // rows.shape[-1]
    out = aligned((*rows.shape[:-1], n), np.float32)
    weights_module().run(f"dequant_{cache}_f32", n_rows, 128, on_device(rows), None, out, n)
    return out


def row_bytes(cache, n):
    return device_row_bytes(cache, n) if cache in TYPES else -(-n * (4 if cache == "f32" else 2) // 16) * 16


def assert_stored(cache, row, y):
    got = cache_floats(cache, row, y.shape[-1])
    blocks = y.reshape(*y.shape[:-1], -1, 32)
    most, wide = (
        np.repeat(v.max(-1), 32, -1) for v in (np.abs(blocks), blocks - blocks.min(-1, keepdims=True))
    )
    if cache in ("f32", "f16", "bf16"):
        assert (
            np.abs(got - y) <= np.abs(y) * {"f32": 0, "f16": 2.0**-11, "bf16": 2.0**-8}[cache] + 1e-7
        ).all()
        return
    # half a step; where the largest magnitude is the lowest code, its opposite has none: up to a step more (of the
    # table's, 14 of 127). What scales and mins lose as halves comes on top
    half = {
        "q8_0": most / 254,
        "q6_0": most / 64,
        "q4_0": most / 16,
        "q4_1": wide / 30,
        "iq4_nl": most * 12 / 127,
    }[cache]
    cut_off = {"q8_0": 1, "q6_0": 2, "q4_0": 2, "q4_1": 1, "iq4_nl": 14 / 12}[cache]
    rounding = most * 2.0**-10
    assert (np.abs(got - y) <= half * cut_off * 1.01 + rounding).all()
    assert (np.abs(got - y) <= half * 1.01 + rounding).mean() > 0.9


def attention_module():
    text = '#include "combine.cu"\n'
    for k, v in sorted({(k, v) for k, v, *_ in ATTENTIONS}):
        text += f'#define IKQ_TYPE {k}\n#define IKQ_VALUES {v}\n#include "attention.cu"\n'
        text += "#undef IKQ_TYPE\n#undef IKQ_VALUES\n"
    return module(text)


def fill_cache(cache, n_pages, n_kv, n, rng):
    """Random rows in every slot, by the kernel that stores them; and their floats, `(slots, heads, n)`."""
    x = rng.normal(size=(n_pages * PAGE, n_kv * n)).astype(np.float32)
    store = aligned((n_pages, n_kv, PAGE, row_bytes(cache, n)), np.uint8)
    heads_module().run(
        f"heads_{cache}", (n_kv, len(x)), 32, f32(x), n_kv * n, n, n_kv, n, None, 0, 0.0, None, 0, 0, 0,
        None, 0, store, i32(np.arange(len(x))), 0, 0, 0,
    )  # fmt: skip
    return store, cache_floats(cache, store.transpose(0, 2, 1, 3), n).reshape(-1, n_kv, n)


def attention(q, k, v, pages, first, end, n_kv, scale, cap, sinks, gate):
    """`(columns, heads, n_v)` in doubles; k and v: `(slots, n_kv, n)`."""
    columns, n_heads, _ = q.shape
    out = np.zeros((columns, n_heads, v.shape[-1]))
    for c in range(columns):
        at = np.arange(first[c], end[c])
        slots = pages[c][at // PAGE] * PAGE + at % PAGE
        for h in range(n_heads):
            kv = h // (n_heads // n_kv)
            s = k[slots, kv].astype(np.float64) @ q[c, h] * scale
            s = cap * np.tanh(s / cap) if cap else s
            m = max(s.max(initial=-np.inf), -np.inf if sinks is None else sinks[h])
            w = np.exp(s - m)
            total = w.sum() + (0 if sinks is None else np.exp(sinks[h] - m))
            out[c, h] = w @ v[slots, kv].astype(np.float64) / total if total else 0
    return out if gate is None else out * sigmoid(gate.astype(np.float64))


@pytest.mark.parametrize(("k", "v", "n_heads", "n_kv", "n_k", "n_v", "more"), ATTENTIONS)
def test_attention(k, v, n_heads, n_kv, n_k, n_v, more):
    """Three columns of two sequences, whose pages are not in order, split three ways; one column sees nothing."""
    rng = np.random.default_rng(n_k)
    k_cache, keys = fill_cache(k, 3, n_kv, n_k, rng)
    v_cache, values = (k_cache, keys[..., :n_v]) if more.get("latent") else fill_cache(v, 3, n_kv, n_v, rng)
    q = rng.normal(size=(3, n_heads, n_k)).astype(np.float32)
    pages = np.array([[2, 0], [1, 99], [2, 0]], np.int32)
    first, end = np.array([more.get("first", 0), 0, 5]), np.array([300, 41, 5])
    sinks = f32(rng.normal(size=n_heads)) if more.get("sinks") else None
    gate = f32(rng.normal(size=(3, n_heads, n_v))) if more.get("gate") else None
    span, n_splits, scale, cap = 113, 3, float(np.float32(1 / np.sqrt(n_k))), more.get("cap", 0.0)
    kernels = attention_module()
    for order in ORDERS:
        partial = aligned((3, n_heads, n_splits, n_v + 2), np.float32)
        kernels.run(
            f"attend_{k}_{v}", (n_heads, n_splits, 3), 128, f32(q), k_cache, v_cache, i32(pages), i32(first), i32(end),
            partial, n_heads, n_kv, n_k, n_v, n_k if more.get("latent") else n_v, 2, span, scale, cap,
            order=order,
        )  # fmt: skip
        y, codes, ds = (
            aligned((3, n_heads, n_v), "f4"),
            aligned((3, n_heads, n_v), "i1"),
            aligned((3, n_heads * n_v // 32, 2), "f4"),
        )
        whole = n_v % 32 == 0
        kernels.run(
            "attend_combine", (n_heads, 3), 128, partial, sinks, gate, n_v, y, codes if whole else None,
            ds if whole else None, n_heads, n_v, n_splits, 0, order=order,
        )  # fmt: skip
        want = attention(q, keys, values, pages, first, end, n_kv, scale, cap, sinks, gate)
        # a score is a sum of n_k products (|q| |k| bounds it): its error is that of its weight; weights are summed
        reach = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(keys, axis=-1).max() * scale
        slack = U * (2 * 40 * reach + 2 * 300) * np.abs(values).max()
        assert np.abs(y - want).max() <= slack
        assert not y[2].any()
        if whole:
            check_quantized(codes.reshape(3, -1), ds, y.reshape(3, -1))


def test_best_logits():
    rng = np.random.default_rng(12)
    n = 70_000  # a thread has more than two rounds of a warp's
    logits = rng.normal(size=(3, n)).astype(np.float32)
    logits[0, [40, 2000]] = 9
    # many of one thread, and of one warp; many equal ones
    logits[1, 5::1024] = np.arange(len(logits[1, 5::1024])) % 7 + 10
    logits[2] = np.round(logits[2])
    logits[2, 123:150] = 5, *[4] * 26
    logits[2, [0, 9, 11]] = 0.0, -0.0, 0.0
    for order in ORDERS:
        ids, values = aligned((3, 40), np.int32), aligned((3, 40), np.float32)
        norm_module().run("top_k", 3, 1024, f32(logits), ids, values, n, 40, order=order)
        for t in range(3):
            want = np.argsort(-logits[t], kind="stable")[:40]
            assert ids[t].tolist() == want.tolist()
            assert (values[t] == logits[t][want]).all()
        one, value = aligned(3, np.int32), aligned(3, np.float32)
        norm_module().run("argmax", 3, 1024, f32(logits), one, value, n, order=order)
        assert one.tolist() == ids[:, 0].tolist()
        assert value.tolist() == values[:, 0].tolist()
    norm_module().run("top_k", 1, 32, f32(logits[:1, :3]), ids, values, 3, 5)
    assert ids[0, :3].tolist() == np.argsort(-logits[0, :3], kind="stable").tolist()
    assert ids[0, 3:5].tolist() == [-1, -1]
    zeros = f32([[-1, -0.0, 0.0, -0.0]])
    norm_module().run("top_k", 1, 96, zeros, ids, values, 4, 4)
    assert ids[0, :4].tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_the_first_best_logit_shows_what_is_not_finite(wrong):
    logits = np.linspace(-5, 5, 3000, dtype=np.float32)[np.newaxis]
    logits[0, [777, 1500]] = wrong, np.nan
    for kernel, k in ("argmax", []), ("top_k", [3]):
        ids, values = aligned(3, np.int32), aligned(3, np.float32)
        norm_module().run(kernel, 1, 1024, f32(logits), ids, values, 3000, *k)
        assert ids[0] == 777
        assert np.array_equal(values[0], wrong, equal_nan=True)


def test_logits_are_scaled_and_capped():
    x = np.random.default_rng(4).normal(size=1000).astype(np.float32) * 50
    for scale, cap in (0.3, 0.0), (1.0, 30.0), (0.3, 30.0):
        logits = f32(x)
        norm_module().run("cap_logits", 4, 256, logits, 1000, scale, cap)
        want = x.astype(np.float64) * np.float64(np.float32(scale))
        # a rounding each of scale, quotient, tanh (2 ulp) and product; the slope of what follows is at most 1
        assert (np.abs(logits - (cap * np.tanh(want / cap) if cap else want)) <= 6 * U * np.abs(want)).all()


@pytest.mark.parametrize("cache", ["f16", "bf16", "q8_0", "q6_0", "q4_0", "q4_1", "iq4_nl"])
def test_what_is_not_finite_shows(cache):
    x = np.ones((2, 64), np.float32)
    x[1, 40] = np.nan
    store = aligned((1, 1, PAGE, row_bytes(cache, 64)), np.uint8)
    args = (f32(x), 64, 64, 1, 64, None, 0, 0.0, None, 0, 0, 0, None, 0, store, i32([0, 1]), 0, 0, 0)
    heads_module().run(f"heads_{cache}", (1, 2), 32, *args)
    got = cache_floats(cache, store[0, 0, :2], 64)
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1, 40])
    _, _, back = quantized(x)
    assert np.isfinite(back[0]).all()
    assert np.isnan(back[1, 32:]).all()


def test_sums_and_sigmoids():
    rng = np.random.default_rng(3)
    x, a, b = (f32(rng.normal(size=300)) for _ in range(3))
    small = module('#include "activations.cu"\n')
    both, one, gates = f32(x), f32(x), f32(x)
    small.run("add_to", 2, 256, both, a, b, 300)
    small.run("add_to", 2, 256, one, a, None, 300)
    small.run("sigmoid_of", 2, 256, gates, 300)
    assert (both == x + (a + b)).all()
    assert (one == x + a).all()
    # an exponential to 2 units, a sum and a division
    assert np.abs(gates / sigmoid(x.astype(np.float64)) - 1).max() <= 8 * U
