"""Matrix-vector products, fused FFN kernels and activations against double precision."""

import numpy as np
import pytest
from emulator import ORDERS, aligned, for_types, module, needs_gxx, on_device
from weights import TOGETHER, TYPES, as_floats, blocks_of_rows, device_form, random_rows, row_lengths

pytestmark = needs_gxx

FLOATS = ["f32", "f16", "bf16"]
FACTORS = {"iq2_kt": 1.05, "iq3_kt": 1.01}
U = 2.0**-24  # half a unit in the last place of a float


def activations():
    return module('#include "activations.cu"\n')


def quantized(x: np.ndarray, order: int = 0):
    """Columns as products read them, and the same as doubles."""
    n = x.shape[-1]
    q, ds = aligned(x.shape, np.int8), aligned((*x.shape[:-1], n // 32, 2), np.float32)
    activations().run("quantize_act", -(-x.size // 256), 256, on_device(x), q, ds, x.size, order=order)
    return q, ds, dequantized(q, ds)


def dequantized(q, ds):
    blocks = q.reshape(*q.shape[:-1], -1, 32).astype(np.float64) * ds[..., :1].astype(np.float64)
    return blocks.reshape(q.shape)


def weights(name: str, n_rows: int, n: int, rng):
    """A matrix in device form, and as doubles with the factor that products apply."""
    if name in FLOATS:
        w = rng.normal(size=(n_rows, n)).astype(np.float32)
        raw = (
            w
            if name == "f32"
            else w.astype(np.float16)
            if name == "f16"
            else (w.view(np.uint32) >> 16).astype(np.uint16)
        )
        exact = (raw.astype(np.uint32) << 16).view(np.float32) if name == "bf16" else raw
        n_bytes = -(-raw.itemsize * n // 16) * 16
        device = aligned((n_rows, n_bytes), np.uint8)
        device[:, : raw.itemsize * n] = raw.view(np.uint8).reshape(n_rows, -1)
        return device, exact.astype(np.float64)
    data = random_rows(name, n_rows, n, rng)
    return device_form(name, data, n_rows, n), as_floats(name, data, n).astype(np.float64) * FACTORS.get(
        name, 1
    )


def bound(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What float arithmetic may differ from doubles in products of rows w and columns x, `(columns, rows)`.

    A lane adds two terms per run and four runs per unit at most, of every fourth unit, or a product for every 32nd
    float; five additions join lanes; six roundings make a term. A term is a code times a scale, or a min, which with all codes present is at most
    four times the largest weight.
    """
    n = w.shape[1]
    steps = -(-n // 32) + 8 + 5 + 6
    return U * steps * (np.abs(x) @ (np.abs(w) + 4 * np.abs(w).max(axis=1, keepdims=True)).T)


def columns_for(name, x, order=0):
    """Kernel arguments for columns, and their values."""
    if name in FLOATS:
        return on_device(x), None, x.astype(np.float64)
    return quantized(x, order)


@pytest.mark.parametrize("order", ORDERS)
def test_quantized_activations(order):
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(5, 96)) * np.exp(4 * rng.normal(size=(5, 1)))).astype(np.float32)
    x[2, 32:64] = 0
    x[3, :32] = 1e-38
    q, ds, back = quantized(x, order)
    most = np.abs(x).reshape(5, 3, 32).max(-1)
    assert (np.abs(q.astype(int)).reshape(5, 3, 32).max(-1) == np.where(most > 1e-30, 127, 0)).all()
    assert (np.abs(back - x) <= np.repeat(most, 32, -1).reshape(x.shape) * (0.5 / 127 + 1e-6) + 1e-30).all()
    sums = (q.reshape(5, 3, 32).astype(int).sum(-1) * ds[..., 0].astype(np.float64)).astype(np.float32)
    assert (ds[..., 1] == sums).all()


def mmv(name, module_, device, exact, n_columns, rng, order=0, bias=None, residual=None, x=None):
    n_rows, n = exact.shape
    if x is None:
        x = rng.normal(size=(n_columns, n)).astype(np.float32)
    arg, ds, x = columns_for(name, x)
    c = next(c for c in (1, 2, 4, 8) if c >= n_columns)
    y = aligned((n_columns, n_rows + 3), np.float32)
    y[:, :n_rows] = 0 if residual is None else residual
    module_.run(
        f"mmv_{name}_c{c}", blocks_of_rows(name, n_rows, n_columns), 128, device, 0, None, 1, arg, ds, bias,
        None if residual is None else y, y, n_rows, n, n_columns, n_rows + 3, order=order,
    )  # fmt: skip
    assert np.isnan(y[:, n_rows:]).all(), "written behind a column"
    want = x @ exact.T + (0 if bias is None else bias) + (0 if residual is None else residual)
    error = np.abs(y[:, :n_rows] - want)
    assert (error <= bound(exact, x) + 3 * U * np.abs(want) + 1e-30).all(), (name, n_columns, n, error.max())
    return y[:, :n_rows]


@pytest.mark.parametrize("name", FLOATS + TYPES)
def test_matrix_vector_products(name):
    rng = np.random.default_rng(11)
    products = module(for_types("mmv.cu", FLOATS + TYPES))
    for n in row_lengths(name) if name in TYPES else [264, 13]:
        device, exact = weights(name, 6, n, rng)
        mmv(name, products, device, exact, 1, rng, 5)
        mmv(name, products, device, exact, 2, rng)
        mmv(name, products, device, exact, 3, rng, 1, bias=on_device(rng.normal(size=6).astype(np.float32)))
        mmv(name, products, device, exact, 8, rng, residual=rng.normal(size=(8, 6)).astype(np.float32))


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize(("n_rows", "n"), [(70, 256), (33, 2304), (31, 1024)])
def test_rows_together_have_the_bits_of_several_columns(name, n_rows, n):
    """Blocks with all rows and with some, warps with units and without, an odd and an even number of them."""
    rng = np.random.default_rng(n)
    device, exact = weights(name, n_rows, n, rng)
    products = module(for_types("mmv.cu", FLOATS + TYPES))
    bias = on_device(rng.normal(size=n_rows).astype(np.float32))
    x = rng.normal(size=(2, n)).astype(np.float32)
    residual = rng.normal(size=(2, n_rows)).astype(np.float32)
    both, one = (mmv(name, products, device, exact, c, rng, c, bias, residual[:c], x[:c]) for c in (2, 1))
    assert (both[:1] == one).all()


PAIRS = [(t, t) for t in ("q4_k", "iq4_ks", "iq2_xxs", "q2_k", "mxfp4", "bf16", "iq4_kt")] + [
    ("iq4_ks", "q6_k"),
    ("q8_0", "iq1_m"),
    ("iq2_kt", "iq4_kt"),
    ("iq4_kt", "q6_k"),
]


def fused_module():
    text = "".join(
        f'#define IKQ_TYPE {up}\n#define IKQ_GATE {gate}\n#include "upgate.cu"\n#undef IKQ_TYPE\n#undef IKQ_GATE\n'
        for up, gate in PAIRS
    )
    return module(text + for_types("down.cu", sorted({up for up, _ in PAIRS})))


def sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


def activated(up, gate, act):
    """As `glu.cuh`, in doubles."""
    if act == 0:
        return up * gate * sigmoid(gate)
    if act == 1:
        return up * 0.5 * gate * (1 + np.tanh(0.7978845608 * (gate + 0.044715 * gate**3)))
    gate, up = np.minimum(gate, 7.0), np.clip(up, -7, 7)
    return gate * sigmoid(1.702 * gate) * (up + 1)


def activation_bound(up, gate, d_up, d_gate, act):
    """What errors of up and gate can do, and ten roundings: slopes of the gate's function are below 1.2, it is
    below |gate|, and up is at most |up| + 1."""
    return (
        d_up * np.abs(gate)
        + 1.2 * d_gate * (np.abs(up) + 1)
        + 10 * U * np.abs(gate) * (np.abs(up) + 1)
        + 1e-30
    )


def check_quantized(q, ds, y):
    """Codes and scales are those of the floats beside them."""
    again_q, again_ds, _ = quantized(np.ascontiguousarray(y))
    assert (q == again_q).all()
    assert (ds == again_ds).all()


@pytest.mark.parametrize("act", [0, 1, 2])
@pytest.mark.parametrize(("up", "gate"), PAIRS)
def test_up_gate_and_activation_in_one(up, gate, act):
    rng = np.random.default_rng(act)
    n, n_rows = 512, 64
    (wu, u), (wg, g) = weights(up, n_rows, n, rng), weights(gate, n_rows, n, rng)
    bias = (
        [on_device(rng.normal(size=n_rows).astype(np.float32)) for _ in range(2)]
        if act == 2
        else [None, None]
    )
    for n_columns, c in ((1, 1), (3, 4)):
        x = rng.normal(size=(n_columns, n)).astype(np.float32) * 2
        arg, ds, x = columns_for(up, x)
        y = aligned((n_columns, n_rows), np.float32)
        q, q_ds = aligned((n_columns, n_rows), np.int8), aligned((n_columns, n_rows // 32, 2), np.float32)
        fused_module().run(
            f"upgate_{up}_{gate}_c{c}", n_rows // 32, 256, wu, wg, 0, 0, None, 1, arg, ds, *bias, act, 1.702, 7.0,
            y, q, q_ds, n_rows, n, n_columns, order=ORDERS[act],
        )  # fmt: skip
        a, b = (x @ w.T + (0 if v is None else v) for w, v in ((u, bias[0]), (g, bias[1])))
        slack = [bound(w, x) + U * np.abs(v) for w, v in ((u, a), (g, b))]
        error = np.abs(y - activated(a, b, act))
        assert (error <= activation_bound(a, b, *slack, act)).all(), error.max()
        check_quantized(q, q_ds, y)


@pytest.mark.parametrize("name", ["q4_k", "iq2_xxs", "bf16", "iq4_kt"])
def test_experts_of_pairs(name):
    """Two tokens with three slots of five experts, one slot empty: up and gate, then down with router weights."""
    rng = np.random.default_rng(8)
    n, n_hidden, n_experts, k = 512, 256, 5, 3
    ids = on_device(np.array([4, 0, 2, 2, -1, 1], np.int32))
    router = on_device(rng.uniform(size=6).astype(np.float32))
    (wu, u), (wg, g) = (weights(name, n_experts * n_hidden, n, rng) for _ in range(2))
    wd, d = weights(name, n_experts * n, n_hidden, rng)
    bias_up, bias_gate = (
        on_device(rng.normal(size=(n_experts, n_hidden)).astype(np.float32)) for _ in range(2)
    )
    bias_down = on_device(rng.normal(size=(n_experts, n)).astype(np.float32))
    arg, ds, x = columns_for(name, rng.normal(size=(2, n)).astype(np.float32))
    y = aligned((6, n_hidden), np.float32)
    q, q_ds = aligned((6, n_hidden), np.int8), aligned((6, n_hidden // 32, 2), np.float32)
    fused_module().run(
        f"upgate_{name}_{name}_c1", (n_hidden // 32, 6), 256, wu, wg, n_hidden * wu.shape[1], n_hidden * wg.shape[1],
        ids, k, arg, ds, bias_up, bias_gate, 0, 0.0, 0.0, y, q, q_ds, n_hidden, n, 1,
    )  # fmt: skip
    check_quantized(q, q_ds, y)
    hidden = y.astype(np.float64) if name in FLOATS else dequantized(q, q_ds)
    want, slack = np.zeros((2, n)), np.zeros((2, n))
    for pair, e in enumerate(ids):
        if e < 0:
            assert not y[pair].any()
            continue
        token = x[pair // k : pair // k + 1]
        a, b = (
            token @ w.reshape(n_experts, n_hidden, n)[e].T + v[e] for w, v in ((u, bias_up), (g, bias_gate))
        )
        slack_a, slack_b = (
            bound(w.reshape(n_experts, n_hidden, n)[e], token) + U * np.abs(v) for w, v in ((u, a), (g, b))
        )
        assert (np.abs(y[pair] - activated(a, b, 0)) <= activation_bound(a, b, slack_a, slack_b, 0)).all()
        column = hidden[pair : pair + 1]
        of_expert = d.reshape(n_experts, n, n_hidden)[e]
        want[pair // k] += router[pair] * (column @ of_expert.T + bias_down[e])[0]
        slack[pair // k] += (
            router[pair] * (bound(of_expert, column) + 4 * U * np.abs(column @ of_expert.T))[0] + 8 * U
        )
    residual = rng.normal(size=(2, n)).astype(np.float32)
    out = on_device(residual)
    fused_module().run(
        f"down_{name}", (blocks_of_rows(name, n), 2), 128, wd, n * wd.shape[1], ids, router, k, y if name in FLOATS else q, q_ds,
        bias_down, out, out, n, n_hidden,
    )  # fmt: skip
    assert (np.abs(out - want - residual) <= slack + 8 * U * (np.abs(want) + 1)).all()


def test_activation_of_products_made_apart():
    rng = np.random.default_rng(2)
    up, gate = (on_device(rng.normal(size=(3, 96)).astype(np.float32)) for _ in range(2))
    bias = on_device(rng.normal(size=(4, 96)).astype(np.float32))
    # the router has dropped the last one
    ids = on_device(np.array([3, 1, -1], np.int32))
    y, q, ds = aligned((3, 96), np.float32), aligned((3, 96), np.int8), aligned((3, 3, 2), np.float32)
    activations().run("glu_act", (3, 3), 32, up, gate, bias, None, ids, y, q, ds, 96, 2, 1.702, 7.0)
    a = up.astype(np.float64) + bias[ids]
    expected = activated(a, gate.astype(np.float64), 2)
    expected[2] = 0
    assert (np.abs(y - expected) <= activation_bound(a, gate, U * 4, 0, 2)).all()
    assert not y[2].any()
    check_quantized(q, ds, y)
