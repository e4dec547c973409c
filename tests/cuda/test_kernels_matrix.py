"""Products of many columns on (emulated) tensor cores against double precision, and what their bits do not depend on."""

import numpy as np
import pytest
from emulator import FULL, ORDERS, aligned, for_types, module, needs_gxx, on_device, only_in_full
from test_kernels_products import (
    activated,
    activation_bound,
    check_quantized,
    dequantized,
    quantized,
    weights,
)
from weights import TYPES, row_lengths

import ikq

pytestmark = needs_gxx

U = 2.0**-24
TILES = (32, 64, 128)
# one of each way that tiles are made: scales of 32 and 16 elements, mins of 32, 16 and none, constants, runs of 8, 16, 32
SOME = ["q4_0", "q8_0", "q4_k", "q6_k", "q2_k", "iq2_ks", "iq4_ks", "iq2_xs"]
# types of these with scales of 16 elements
NOT_WIDEST = ("q6_k", "q2_k", "iq2_xs")
PAIRS = [("q4_k", "q4_k"), ("iq4_ks", "q6_k"), ("q2_k", "q4_0")]


def shared_bytes(tile: int) -> int:
    return 384 * tile + 49152


def widest(*names: str) -> int:
    """The widest tile that all these types have."""
    return 64 if any(name in NOT_WIDEST for name in names) else TILES[-1]


def tile_for(n_columns: int, *names: str) -> int:
    return next((c for c in TILES if n_columns <= c <= widest(*names)), widest(*names))


def bound(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What float arithmetic may differ from doubles in products of rows w and columns x, `(columns, rows)`.

    For each 16 elements at most, a term and a min are added, each with a rounding of the sum. A term has six roundings:
    of the column's scale (two of the last places of a float at most, as it has 22 bits), of its product with the sum,
    and of the weight's scale, which is made with two. A min is at most four times the largest weight.
    """
    steps = -(-w.shape[1] // 16) * 2 + 6
    return U * steps * (np.abs(x) @ (np.abs(w) + 4 * np.abs(w).max(axis=1, keepdims=True)).T)


def check(y, w, x, extra=0.0, slack=0.0, what=None):
    """Element by element within the bound, and all of them together as near as sums of floats come."""
    want = x @ w.T + extra
    error = np.abs(y - want)
    assert (error <= bound(w, x) + slack + 3 * U * np.abs(want) + 1e-30).all(), (what, error.max())
    assert np.linalg.norm(error) <= 1e-6 * np.linalg.norm(want), what


def run(module_, name, device, columns, n_rows, y, tile=None, bias=None, residual=None, order=0):
    """Launches products of a matrix; `columns` are codes and scales."""
    q, ds = columns
    n_columns, n = q.shape
    tile = tile or tile_for(n_columns, name)
    module_.run(
        f"mmq_{name}_t{tile}", (-(-n_rows // 128), -(-n_columns // tile)), 512, device, 0, None, None, 0, 1, q, ds, bias,
        y if residual else None, y, n_rows, n, n_columns, y.shape[1], shared=shared_bytes(tile), order=order,
    )  # fmt: skip


def products_of(name, n_rows, n, n_columns, rng, tile=None, bias=None, residual=False, order=0):
    matrices = module(for_types("mmq.cu", TYPES if FULL else SOME))
    device, exact = weights(name, n_rows, n, rng)
    q, ds, x = quantized(rng.normal(size=(n_columns, n)).astype(np.float32))
    y = aligned((n_columns, n_rows + 3), np.float32)
    extra = (
        np.zeros((n_columns, n_rows)) if bias is None else np.tile(bias.astype(np.float64), (n_columns, 1))
    )
    if residual:
        y[:, :n_rows] = rng.normal(size=(n_columns, n_rows))
        extra += y[:, :n_rows]
    run(matrices, name, device, (q, ds), n_rows, y, tile, bias, residual, order)
    assert np.isnan(y[:, n_rows:]).all(), "written behind a column"
    check(y[:, :n_rows], exact, x, extra, what=(name, n_rows, n, n_columns, tile))


@pytest.mark.parametrize("name", TYPES if FULL else SOME)
def test_products_of_many_columns(name):
    rng = np.random.default_rng(3)
    for i, n in enumerate(row_lengths(name)):
        products_of(name, 5, n, 9, rng, order=ORDERS[i])
    bias = on_device(rng.normal(size=130).astype(np.float32))
    products_of(name, 130, 256, 33, rng, bias=bias, residual=True, order=5)


@pytest.mark.parametrize("name", TYPES if FULL else ["q4_0", "q6_k", "iq2_xs"])
def test_the_widest_tiles_are_there_where_they_are_launched(name):
    """The planner knows by a list for which types the kernels are not empty."""
    shape = {"type": ikq.QuantType(name).id, "n_rows": 5, "n": 256, "n_columns": 9, "stride": 5, "tile": 128}
    shape |= {"bias": False, "residual": False}
    rng = np.random.default_rng(6)
    matrices = module(for_types("mmq.cu", TYPES if FULL else SOME))
    device, exact = weights(name, 5, 256, rng)
    q, ds, x = quantized(rng.normal(size=(9, 256)).astype(np.float32))
    y = aligned((9, 5), np.float32)
    run(matrices, name, device, (q, ds), 5, y, 128)
    if np.isnan(y).all():
        with pytest.raises(ikq.IkqError, match=name.upper()):
            ikq._ikq.cuda_plan("mmq", shape)
    else:
        assert ikq._ikq.cuda_plan("mmq", shape)["kernel"] == f"mmq_{name}_t128"
        check(y, exact, x, what=name)


@only_in_full
@pytest.mark.parametrize("n_columns", [1, 7, 8, 9, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("name", ["q4_k", "q6_k", "q2_k", "q5_0"])
def test_tails(name, n_columns):
    rng = np.random.default_rng(n_columns)
    for n_rows, n, tile in ((127, 256, 32), (128, 512, 64), (129, 768, widest(name)), (1, 256, None)):
        products_of(name, n_rows, n, n_columns, rng, tile)


@pytest.mark.parametrize("name", ["q4_k", "q2_k"] if not FULL else SOME)
def test_bits_depend_on_no_other_column(name):
    """Nor on the tile that a column is computed in."""
    rng = np.random.default_rng(4)
    n_rows, n = 40, 512
    matrices = module(for_types("mmq.cu", TYPES if FULL else SOME))
    device, _ = weights(name, n_rows, n, rng)
    q, ds, _ = quantized(rng.normal(size=(70, n)).astype(np.float32))
    found = []
    for first, count, tile in (
        (0, 70, 64),
        (0, 70, 32),
        (0, 70, widest(name)),
        (37, 1, 32),
        (20, 33, 64),
        (6, 32, 32),
        (3, 65, widest(name)),
    ):
        y = aligned((count, n_rows), np.float32)
        some = slice(first, first + count)
        run(matrices, name, device, (on_device(q[some]), on_device(ds[some])), n_rows, y, tile)
        found.append((some, y))
    for some, y in found:
        assert (y == found[0][1][some]).all()


def fused_module():
    text = "".join(
        f'#define IKQ_TYPE {up}\n#define IKQ_GATE {gate}\n#include "mmq_upgate.cu"\n#undef IKQ_TYPE\n#undef IKQ_GATE\n'
        for up, gate in (PAIRS if FULL else PAIRS[1:2])
    )
    return module(text + for_types("mmq.cu", ["q4_0"]) + '#include "slots.cu"\n')


@pytest.mark.parametrize("act", [0, 1, 2])
@pytest.mark.parametrize(("up", "gate"), PAIRS if FULL else PAIRS[1:2])
def test_up_gate_and_activation_in_one(up, gate, act):
    rng = np.random.default_rng(act)
    for n_rows, n_columns in ((96, 9), (64, 33), (64, 65))[: 3 if FULL else 1]:
        (wu, u), (wg, g) = weights(up, n_rows, 512, rng), weights(gate, n_rows, 512, rng)
        bias = [on_device(rng.normal(size=n_rows).astype(np.float32)) for _ in range(2)]
        bias = bias if act == 2 else [None, None]
        q, ds, x = quantized((rng.normal(size=(n_columns, 512)) * 2).astype(np.float32))
        y, codes = aligned((n_columns, n_rows), np.float32), aligned((n_columns, n_rows), np.int8)
        scales = aligned((n_columns, n_rows // 32, 2), np.float32)
        tile = tile_for(n_columns, up, gate)
        fused_module().run(
            f"mmq_upgate_{up}_{gate}_t{tile}", (-(-n_rows // 64), -(-n_columns // tile)), 512, wu, wg, 0, 0, None, None, 0,
            1, q, ds, *bias, act, 1.702, 7.0, y, codes, scales, n_rows, 512, n_columns, shared=shared_bytes(tile),
            order=ORDERS[act],
        )  # fmt: skip
        a, b = (x @ w.T + (0 if v is None else v) for w, v in ((u, bias[0]), (g, bias[1])))
        slack = [bound(w, x) + U * np.abs(v) for w, v in ((u, a), (g, b))]
        error = np.abs(y - activated(a, b, act))
        assert (error <= activation_bound(a, b, *slack, act)).all(), error.max()
        check_quantized(codes, scales, y)


def sorted_pairs(ids: np.ndarray, n_experts: int):
    """What moe_sort makes: where experts begin in the list of pairs, and the list."""
    flat = ids.reshape(-1)
    order = np.argsort(np.where(flat < 0, n_experts, flat), kind="stable").astype(np.int32)
    bounds = np.searchsorted(np.sort(flat[flat >= 0]), np.arange(n_experts + 1)).astype(np.int32)
    return on_device(bounds), on_device(order)


def experts(up, gate, counts, n_dropped, k, tile, rng):
    """A layer of experts of which each has so many pairs: up, gate and activation, down, sums of slots."""
    n, n_hidden, n_experts = 256, 64, len(counts)
    flat = np.repeat(np.arange(n_experts), counts)
    flat = rng.permutation(np.concatenate([flat, np.full(n_dropped, -1)])).astype(np.int32)
    ids = on_device(flat.reshape(-1, k))
    n_tokens, n_pairs = ids.shape[0], flat.size
    bounds, order = sorted_pairs(ids, n_experts)
    router = on_device(rng.uniform(size=(n_tokens, k)).astype(np.float32))
    wu, u = weights(up, n_experts * n_hidden, n, rng)
    wg, g = weights(gate, n_experts * n_hidden, n, rng)
    wd, d = weights("q4_0", n_experts * 40, n_hidden, rng)
    bias_up, bias_gate = (
        on_device(rng.normal(size=(n_experts, n_hidden)).astype(np.float32)) for _ in range(2)
    )
    bias_down = on_device(rng.normal(size=(n_experts, 40)).astype(np.float32))
    q, ds, x = quantized(rng.normal(size=(n_tokens, n)).astype(np.float32))
    y, codes = aligned((n_pairs, n_hidden), np.float32), aligned((n_pairs, n_hidden), np.int8)
    scales = aligned((n_pairs, n_hidden // 32, 2), np.float32)
    grid_y, modules = -(-n_pairs // tile) + n_experts, fused_module()
    modules.run(
        f"mmq_upgate_{up}_{gate}_t{tile}", (1, grid_y), 512, wu, wg, n_hidden * wu.shape[1], n_hidden * wg.shape[1], bounds,
        order, n_experts, k, q, ds, bias_up, bias_gate, 2, 1.702, 7.0, y, codes, scales, n_hidden, n, n_pairs,
        shared=shared_bytes(tile), order=5,
    )  # fmt: skip
    made = aligned((n_pairs, 40), np.float32)
    modules.run(
        f"mmq_q4_0_t{tile}", (1, grid_y), 512, wd, 40 * wd.shape[1], bounds, order, n_experts, 1, codes, scales, bias_down,
        None, made, 40, n_hidden, n_pairs, 40, shared=shared_bytes(tile), order=1,
    )  # fmt: skip
    hidden = dequantized(codes, scales)
    for e in range(n_experts):
        pairs = np.flatnonzero(flat == e)
        if not len(pairs):
            continue
        tokens = x[pairs // k]
        rows = slice(e * n_hidden, (e + 1) * n_hidden)
        a, b = tokens @ u[rows].T + bias_up[e], tokens @ g[rows].T + bias_gate[e]
        slack = [bound(w[rows], tokens) + U * np.abs(v) for w, v in ((u, a), (g, b))]
        assert (np.abs(y[pairs] - activated(a, b, 2)) <= activation_bound(a, b, *slack, 2)).all(), e
        check_quantized(codes[pairs], scales[pairs], y[pairs])
        check(made[pairs], d[e * 40 : (e + 1) * 40], hidden[pairs], bias_down[e], what=e)
    dropped = flat < 0
    assert np.isnan(y[dropped]).all(), "a pair without an expert has no result"
    assert np.isnan(made[dropped]).all()
    residual = rng.normal(size=(n_tokens, 40)).astype(np.float32)
    out = on_device(residual)
    modules.run("sum_slots", (1, n_tokens), 256, made, ids, router, k, out, out, 40)
    some = np.where(dropped[:, None], 0, made).reshape(n_tokens, k, 40)
    total = np.zeros((n_tokens, 40), np.float32)
    for s in range(k):
        total += router[:, s : s + 1] * some[:, s]
    assert (out == total + residual).all(), "slots are added in their order"


def test_experts_have_groups_of_any_size():
    experts("iq4_ks", "q6_k", [3, 0, 33, 1], 2, 3, 32, np.random.default_rng(1))
    # none, one, and around the sizes of tiles
    experts("iq4_ks", "q6_k", [0, 1, 7, 8, 9, 127, 128, 129, 300], 1, 2, 64, np.random.default_rng(2))


@only_in_full
@pytest.mark.parametrize(("up", "gate"), PAIRS)
@pytest.mark.parametrize("tile", TILES)
def test_experts_have_groups_of_many_sizes(up, gate, tile):
    if tile > widest(up, gate):
        pytest.skip("no such tile for these types")
    rng = np.random.default_rng(tile)
    experts(up, gate, [0, 1, 7, 8, 9, 0, 127, 128, 129, 300, 0], 1, 2, tile, rng)
    # more experts than a warp has lanes; the last ones have none
    experts(up, gate, [1] * 30 + [0, 2, 3, 0, 5, 0] + [0] * 5, 0, 2, tile, rng)


def test_many_experts_are_searched_in_order():
    """More of them than a warp has lanes."""
    counts = [1] * 20 + [0] * 15 + [2, 3, 0, 34, 0]
    experts("iq4_ks", "q6_k", counts, 1, 4, 32, np.random.default_rng(7))


def test_a_column_that_is_not_finite_shows():
    rng = np.random.default_rng(2)
    device, _ = weights("q4_k", 4, 256, rng)
    x = rng.normal(size=(9, 256)).astype(np.float32)
    x[3, 40] = np.inf
    q, ds, _ = quantized(x)
    y = aligned((9, 4), np.float32)
    run(module(for_types("mmq.cu", TYPES if FULL else SOME)), "q4_k", device, (q, ds), 4, y)
    assert np.isnan(y[3]).all()
    assert np.isfinite(np.delete(y, 3, 0)).all()
