"""Gated delta-net layers: the kernels of `delta.cu` against the rule in double precision, token by token."""

from dataclasses import dataclass

import numpy as np
import planted
import pytest
from emulator import ORDERS, Module, Program, aligned, build, module, needs_gxx
from test_kernels_layers import f32, i32
from test_kernels_products import U, check_quantized, sigmoid

pytestmark = needs_gxx

CHUNK = 32
EPS = float(np.float32(1e-6))


@dataclass(frozen=True)
class Sizes:
    n_k: int
    n_v: int
    dk: int
    dv: int
    taps: int = 4
    mixed: bool = False
    tiled: bool = False

    @property
    def channels(self):
        return 2 * self.n_k * self.dk + self.n_v * self.dv

    @property
    def floats(self):
        """Of a state."""
        matrices = self.n_v * self.dk * self.dv
        chunk = CHUNK * (self.n_v * self.dv + self.n_k * self.dk + self.n_v)
        return matrices + chunk + (self.taps - 1 + CHUNK) * self.channels

    @property
    def args(self):
        return self.n_k, self.n_v, self.dk, self.dv, self.taps


SIZES = [
    Sizes(2, 4, 32, 32),
    Sizes(2, 4, 16, 48, tiled=True),
    Sizes(1, 3, 40, 20, taps=1),
    Sizes(2, 2, 64, 64, taps=2, mixed=True),
    Sizes(2, 6, 32, 32, mixed=True),
]


class Tokens:
    """Random products of a sequence's tokens, and what comes of them in doubles."""

    def __init__(self, layer, n, seed):
        rng = np.random.default_rng(seed)
        s = layer.sizes
        n_values = s.n_v * s.dv
        self.channels = rng.normal(size=(n, s.channels)).astype(np.float32)
        self.z = rng.normal(size=(n, n_values)).astype(np.float32)
        self.beta, self.alpha = (rng.normal(size=(n, s.n_v)).astype(np.float32) for _ in range(2))
        self.want, self.results = layer.expected(self)

    def products(self, s, part):
        """As kernels take them: u, z (None where mixed), beta, alpha (None where mixed)."""
        u, z, beta, alpha = (a[part] for a in (self.channels, self.z, self.beta, self.alpha))
        if not s.mixed:
            return u, z, beta, alpha
        n, keys, of_key = len(u), s.n_k * s.dk, s.n_v // s.n_k
        by_key = [
            u[:, :keys].reshape(n, s.n_k, s.dk),
            u[:, keys : 2 * keys].reshape(n, s.n_k, s.dk),
            u[:, 2 * keys :].reshape(n, s.n_k, of_key * s.dv),
            z.reshape(n, s.n_k, of_key * s.dv),
        ]
        gates = [a.reshape(n, s.n_k, of_key) for a in (beta, alpha)]
        return np.concatenate(by_key, -1).reshape(n, -1), None, np.concatenate(gates, -1).reshape(n, -1), None


class Layer:
    """Weights, states, and the launches of a step."""

    def __init__(self, sizes, n_states, kernels=None):
        s, rng = sizes, np.random.default_rng(sizes.dk)
        self.sizes = s
        self.conv = rng.normal(size=(s.channels, s.taps)).astype(np.float32)
        self.dt, self.slope = rng.normal(size=s.n_v).astype(np.float32), -np.abs(rng.normal(size=s.n_v)) / 4
        self.slope = self.slope.astype(np.float32)
        self.norm = rng.normal(size=s.dv).astype(np.float32)
        self.states = aligned((n_states, s.floats), np.float32)
        self.kernels: Module | Program = kernels or module('#include "delta.cu"\n')

    def expected(self, tokens):
        """Outputs and, before their norm, results, `(n, n_v, dv)` in doubles."""
        s, n = self.sizes, len(tokens.z)
        u = np.concatenate([np.zeros((s.taps - 1, s.channels)), tokens.channels.astype(np.float64)])
        c = sum(u[t : t + n] * self.conv[:, t] for t in range(s.taps))
        c = c * sigmoid(c)
        keys = s.n_k * s.dk
        q, k = (c[:, at : at + keys].reshape(n, s.n_k, s.dk) for at in (0, keys))
        q, k = (x / np.sqrt((x**2).sum(-1, keepdims=True) + EPS) for x in (q, k))
        v = c[:, 2 * keys :].reshape(n, s.n_v, s.dv)
        beta = sigmoid(tokens.beta.astype(np.float64))
        decay = np.exp(self.slope * np.log1p(np.exp(tokens.alpha.astype(np.float64) + self.dt)))
        of = np.arange(s.n_v) % s.n_k if s.tiled else np.arange(s.n_v) // (s.n_v // s.n_k)
        state, results = np.zeros((s.n_v, s.dk, s.dv)), np.zeros((n, s.n_v, s.dv))
        for t in range(n):
            state *= decay[t][:, None, None]
            seen = np.einsum("hkv,hk->hv", state, k[t][of])
            state += k[t][of][..., None] * (beta[t][:, None] * (v[t] - seen))[:, None, :]
            results[t] = np.einsum("hkv,hk->hv", state, q[t][of]) / np.sqrt(s.dk)
        z = tokens.z.astype(np.float64).reshape(n, s.n_v, s.dv)
        size = np.sqrt((results**2).mean(-1, keepdims=True) + EPS)
        return results / size * self.norm * (z * sigmoid(z)), results

    def step(self, entries, order=0):
        """Runs `(tokens, first, end, state)` of several sequences; outputs, results before their norm, codes, scales."""
        s = self.sizes
        parts = [t.products(s, slice(first, end)) for t, first, end, _ in entries]
        u, z, beta, alpha = (
            None if a[0] is None else f32(np.concatenate(a)) for a in zip(*parts, strict=True)
        )
        n, runs, run_of = len(u), [], []
        for i, (_, first, end, state) in enumerate(entries):
            runs.append((len(run_of), first, end - first, state))
            run_of += [i] * (end - first)
        runs, run_of = i32(runs), i32(run_of)
        inputs, gates = aligned((n, s.channels), "f4"), aligned((n, 2 * s.n_v), "f4")
        pairs, results = aligned((n, s.n_k, 2, CHUNK), "f4"), aligned((n, s.n_v, s.dv), "f4")
        y = aligned((n, s.n_v, s.dv), "f4")
        whole = s.dv % 32 == 0
        codes, ds = aligned((n, s.n_v, s.dv), "i1"), aligned((n, max(1, s.n_v * s.dv // 32), 2), "f4")
        mixed, of_heads, run = int(s.mixed), (2 * s.n_k + s.n_v, n), self.kernels.run
        run(
            "delta_inputs", of_heads, 32, u, u.shape[1], beta, alpha, beta.shape[1], f32(self.conv), f32(self.dt),
            f32(self.slope), self.states, runs, run_of, inputs, gates, *s.args, mixed, mixed, EPS, order=order,
        )  # fmt: skip
        run("delta_pairs", (s.n_k, n), 128, inputs, self.states, runs, run_of, pairs, *s.args, order=order)
        run(
            "delta_chunks", (s.n_v, -(-s.dv // 32), len(entries)), 128, inputs, gates, pairs, self.states, runs, results,
            *s.args, int(s.tiled), order=order,
        )  # fmt: skip
        run(
            "delta_keep", of_heads, 32, u, u.shape[1], inputs, gates, self.states, runs, run_of, *s.args, mixed,
            order=order,
        )  # fmt: skip
        z = u if z is None else z
        run(
            "delta_output", (s.n_v, n), 32, results, f32(self.norm), z, z.shape[1], y, codes if whole else None,
            ds if whole else None, *s.args[:4], mixed, EPS, order=order,
        )  # fmt: skip
        return y, results, codes, ds

    def slack(self, tokens):
        """Of results: a token adds what sums of dk + 32 terms leave, and the 64 before it have done so."""
        return 64 * (np.sqrt(self.sizes.dk + CHUNK) + 16) * U * np.abs(tokens.results).max()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sizes", SIZES)
def test_whole_and_in_pieces(sizes, order):
    """Two sequences side by side: right, and the same bits however they are cut."""
    layer = Layer(sizes, 4)
    a, b = Tokens(layer, 75, 1), Tokens(layer, 40, 2)
    y, results, codes, ds = layer.step([(a, 0, 75, 2), (b, 0, 40, 0)], order)
    assert np.isfinite(y).all()
    for tokens, part in ((a, slice(0, 75)), (b, slice(75, None))):
        assert np.abs(results[part] - tokens.results).max() <= layer.slack(tokens)
        # a norm divides by the size of the head's results, and multiplies by weight and gate
        size = np.sqrt((tokens.results**2).mean(-1, keepdims=True) + EPS)
        reach = np.abs(layer.norm).max() * np.abs(tokens.z).max() * 8
        assert (np.abs(y[part] - tokens.want) <= reach * (layer.slack(tokens) / size + 16 * U)).all()
    if sizes.dv % 32 == 0:
        check_quantized(codes.reshape(len(y), -1), ds, y.reshape(len(y), -1))
    # cuts within chunks, at their ends and across; single tokens
    cuts_a, cuts_b = (0, 1, 2, 31, 32, 33, 60, 75), (0, 5, 6, 7, 20, 32, 38, 40)
    pieces = [
        layer.step([(b, *cuts_b[i : i + 2], 1), (a, *cuts_a[i : i + 2], 3)], order)[0] for i in range(7)
    ]
    for i, piece in enumerate(pieces):
        n = cuts_b[i + 1] - cuts_b[i]
        assert np.array_equal(piece[:n], y[75 + cuts_b[i] : 75 + cuts_b[i + 1]])
        assert np.array_equal(piece[n:], y[cuts_a[i] : cuts_a[i + 1]])


@pytest.mark.parametrize("sizes", SIZES[:2])
def test_tokens_of_the_chunk_are_forgotten(sizes):
    """A state goes back within its chunk by being told other positions; what was there leaves no trace."""
    layer = Layer(sizes, 2)
    right, wrong = Tokens(layer, 70, 1), Tokens(layer, 70, 9)
    wrong.channels[:] = np.nan
    want = layer.step([(right, 0, 70, 0)])[0]
    first = layer.step([(right, 0, 37, 1)])[0]
    layer.step([(wrong, 37, 63, 1)])
    again = layer.step([(right, 37, 50, 1)])[0]
    layer.step([(wrong, 50, 60, 1)])
    last = layer.step([(right, 45, 70, 1)])[0]
    assert np.array_equal(np.concatenate([first, again[:8], last]), want)
    # a state of another sequence is begun anew, whatever it holds
    layer.states[1] = np.nan
    assert np.array_equal(layer.step([(right, 0, 70, 1)])[0], want)


def test_a_decay_of_minus_infinity_forgets():
    layer = Layer(SIZES[0], 2)
    a, b = Tokens(layer, 50, 1), Tokens(layer, 50, 1)
    layer.dt[:] = 0
    for tokens in (a, b):
        tokens.alpha[41] = np.inf
    b.channels[:30] *= 100
    x, y = (layer.step([(t, 0, 50, i)])[0] for i, t in enumerate((a, b)))
    assert np.isfinite(x).all()
    # the convolution of token 41 reads the three before it, which are the same
    assert np.array_equal(x[41:], y[41:])
    assert not np.array_equal(x[:41], y[:41])


def test_a_token_that_is_not_a_number_leaves_earlier_ones_alone():
    layer = Layer(SIZES[0], 2)
    tokens = Tokens(layer, 40, 1)
    want = layer.step([(tokens, 0, 40, 0)])[0]
    tokens.channels[20], tokens.alpha[20] = np.nan, np.nan
    found = layer.step([(tokens, 0, 40, 1)])[0]
    assert np.array_equal(found[:20], want[:20])
    assert np.isnan(found[20:]).all()


def test_planted_errors_are_seen():
    """A decay too few changes results; a missing barrier is a race."""
    text = '#include "delta.cu"\n'
    with planted.planted(planted.DECAY_OF_A_TOKEN_TOO_FEW) as folder:
        layer = Layer(SIZES[0], 1, Module(build(text, None, folder)))
        tokens = Tokens(layer, 8, 1)
        results = layer.step([(tokens, 0, 8, 0)])[1]
        assert np.abs(results - tokens.results).max() > 100 * layer.slack(tokens)
    with planted.planted(planted.BARRIER_OF_A_CHUNK) as folder:
        layer = Layer(SIZES[0], 1, Program(build(text, "thread", folder)))
        with pytest.raises(AssertionError, match="data race"):
            layer.step([(Tokens(layer, 8, 1), 0, 8, 0)])
