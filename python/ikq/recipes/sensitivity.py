"""How much errors of each tensor matter to the model's output, from weights and activation statistics alone.

For small errors the KL divergence of the output is a sum over tensors of a coefficient times the tensor's
relative squared output error. Coefficients are followed through the model as energies (sums of mean squares):

* An error of `output` moves logits: its coefficient is half the energy of the logits about their mean.
* An error that is a share r of the energy of the residual stream at its end costs r times that, as far as it
  moves logits of likely tokens against one another: their rows of `output` are more alike than those of
  others and move together, which errors of the rows themselves do not.
* A matrix that writes to the stream (attention output, down) adds its error's energy; the stream's own energy
  is that of the embedding and of all that was added before. The norm in front of each branch makes shares
  count.
* An error in front of a linear step keeps its share (values). In front of the softmax it counts by the
  variance of the scores and by what attention averages away; in front of a gated activation by the ratio of
  the hidden units' energy if gate and up had nothing to do with one another to the measured one.
* On its way to the end a share shrinks where a branch adds signal and passes on less of the error than of the
  signal.

Statistics are diagonal: they leave out how the columns of an input go together, which makes products of
signals larger than those of errors by a factor. It is taken from the hidden units, where the statistics have
both sides. Nothing here is fitted to any model; what no statistics tell (how tokens and positions are
correlated) is left out, so coefficients are right to within a factor of two or so. `ikq.recipes.probes`
measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ikq.errors import RefusedError
from ikq.models import ModelSpec, model_spec
from ikq.models.spec import DeltaNet, DenseFfn, Gqa, Layer, Linear, Mla, Moe, Routing
from ikq.recipes.errors import expert_importance, sample_rows
from ikq.recipes.problem import Problem
from ikq.recipes.source import Tensors
from ikq.statistics.imatrix import Imatrix

__all__ = ["coefficients"]

_ROWS = 64
_OUTPUT_ROWS = 4096
_TRIALS = 512

_OPEN = 3.0
"""What texts leave open of the next token, in nats: a perplexity of 20. With 2 or 3.5, `_likeness` is the
same within a tenth."""

Floats = NDArray[np.float64]


def coefficients(problem: Problem) -> dict[str, float]:
    """KL divergence per relative squared output error, by tensor.

    Raises:
        ikq.errors.RefusedError: No statistics.
        ikq.errors.UnsupportedError: The architecture is not known.
    """
    if problem.imatrix is None:
        raise RefusedError(
            "sensitivities need activation statistics: give --imatrix FILE (`ikq imatrix` makes one), or a "
            "table with --sensitivity FILE.csv"
        )
    with Tensors(problem.source) as tensors:
        spec = model_spec(tensors.reader)
        found = _Walk(spec, _Statistics(tensors, problem.imatrix)).coefficients()
    names = [t.name for t in problem.tensors]
    return _filled({n: found[n] for n in names if found.get(n, 0.0) > 0}, problem)


def _filled(found: Mapping[str, float], problem: Problem) -> dict[str, float]:
    """Tensors that layers do not name (heads for further tokens) count as others of their kind."""
    by_kind: dict[str, list[float]] = {}
    for t in problem.tensors:
        if t.name in found:
            by_kind.setdefault(t.kind, []).append(math.log(found[t.name]))
    everything = [x for values in by_kind.values() for x in values] or [0.0]

    def value(name: str, kind: str) -> float:
        return found.get(name, math.exp(float(np.mean(by_kind.get(kind, everything)))))

    return {t.name: value(t.name, t.kind) for t in problem.tensors}


class _Statistics:
    """Energies of matrices under the statistics, from few rows of each."""

    def __init__(self, tensors: Tensors, imatrix: Imatrix) -> None:
        self._tensors = tensors
        self._imatrix = imatrix

    def vector(self, name: str) -> Floats:
        """A tensor of one row, as it is."""
        return self._tensors[name].dequantize().astype(np.float64).ravel()

    def rows(self, linear: Linear, n: int = _ROWS) -> tuple[Floats, int]:
        """Some rows (experts x rows x columns) and how many there are of each expert."""
        names = linear.weight if isinstance(linear.weight, tuple) else (linear.weight,)
        parts, n_rows = [], 0
        for name in names:
            tensor = self._tensors[name]
            if isinstance(linear.weight, tuple) or tensor.ndim == 2:
                n_rows = tensor.shape[-2]
            else:
                n_rows = tensor.shape[1]
            taken = sample_rows(tensor, n)
            if linear.n_rows is not None or linear.first_row:
                # rows of a part of the tensor
                count = n_rows - linear.first_row if linear.n_rows is None else linear.n_rows
                first = math.floor(linear.first_row / n_rows * taken.shape[1])
                last = max(first + 1, math.ceil((linear.first_row + count) / n_rows * taken.shape[1]))
                taken, n_rows = taken[:, first:last], count
            parts.append(taken)
        return np.concatenate(parts).astype(np.float64), n_rows

    def inputs(self, linear: Linear, n_experts: int, n_per_row: int, norm: str | None = None) -> Floats:
        """Mean squared inputs, experts x columns; those of a norm's weights where there are no statistics."""
        names = linear.weight if isinstance(linear.weight, tuple) else (linear.weight,)
        found = []
        for name in names:
            entry = self._imatrix.entry_for(name)
            if entry is None and norm is not None:
                found.append(np.square(self.vector(norm))[np.newaxis])
            else:
                n = n_experts if len(names) == 1 else 1
                found.append(expert_importance(self._imatrix, entry, n, n_per_row).astype(np.float64))
        return np.concatenate(found)

    def row_energies(self, linear: Linear, norm: str | None = None) -> tuple[Floats, int]:
        """Mean squared outputs of some rows (experts x rows), and how many rows there are."""
        rows, n_rows = self.rows(linear)
        inputs = self.inputs(linear, rows.shape[0], rows.shape[2], norm)
        return np.einsum(
            "eij,ej->ei", rows**2, np.broadcast_to(inputs, (rows.shape[0], rows.shape[2]))
        ), n_rows

    def energy(self, linear: Linear, norm: str | None = None) -> float:
        """Mean squared length of the output, mean over experts, columns of inputs taken as unrelated."""
        energies, n_rows = self.row_energies(linear, norm)
        return float(energies.mean()) * n_rows


@dataclass(frozen=True)
class _Branch:
    """A branch of a layer: what it adds to the stream, and what its matrices' errors come to.

    Attributes:
        energy: Of what it adds, columns of inputs taken as unrelated; None: `exact` is known.
        exact: Of what it adds, where a norm behind it says so.
        passed: Share of an error's share in the stream that goes through it.
        shares: Relative error of what it adds per relative error of a matrix, by tensor.
    """

    energy: float
    exact: float | None
    passed: float
    shares: Mapping[str, float]


class _Walk:
    """Follows errors through a model."""

    def __init__(self, spec: ModelSpec, statistics: _Statistics) -> None:
        self._spec = spec
        self._statistics = statistics
        self._alignments: list[float] = []

    def coefficients(self) -> dict[str, float]:
        spec, statistics = self._spec, self._statistics
        branches = [b for layer in spec.layers for b in (self._attention(layer), self._ffn(layer))]
        alignment = max(1.0, math.exp(float(np.mean(np.log(self._alignments))))) if self._alignments else 1.0
        embedding, _ = statistics.rows(Linear(spec.token_embd), _OUTPUT_ROWS)
        stream = float(np.square(embedding).sum(axis=2).mean()) * spec.embd_scale**2
        output = Linear(spec.token_embd) if spec.output is None else spec.output
        scale, likeness = self._logits(output)
        of_stream = scale * likeness

        streams, added = [stream], []
        for b in branches:
            added.append(alignment * b.energy if b.exact is None else b.exact)
            streams.append(streams[-1] + added[-1])
        # what is left at the end of a share that the stream has behind each branch
        left = [1.0] * len(streams)
        for i in reversed(range(len(branches))):
            lost = max(0.0, 1 - branches[i].passed) * added[i] / streams[i + 1]
            left[i] = left[i + 1] * (1 - lost)
        out: dict[str, float] = {}
        for i, b in enumerate(branches):
            share = added[i] / alignment / streams[i + 1] * left[i + 1]
            for name, per_error in b.shares.items():
                out[name] = out.get(name, 0.0) + of_stream * share * per_error
        out[spec.token_embd] = out.get(spec.token_embd, 0.0) + of_stream * left[0]
        for name in _names(output):
            out[name] = out.get(name, 0.0) + scale
        return out

    def _logits(self, output: Linear) -> tuple[float, float]:
        """Half the mean squared logit about the mean of all logits, and `_likeness` of likely tokens."""
        rows, _ = self._statistics.rows(output, _OUTPUT_ROWS)
        inputs = self._statistics.inputs(output, rows.shape[0], rows.shape[2], self._spec.output_norm)
        energy = float(np.einsum("ej,ej->e", rows.var(axis=1), inputs).mean())
        return energy / 2, _likeness(rows.reshape(-1, rows.shape[2]), inputs.mean(axis=0))

    def _attention(self, layer: Layer) -> _Branch:
        a, statistics = layer.attention, self._statistics
        norm = layer.attention_norm
        energy = statistics.energy(a.output)
        shares: dict[str, float] = {}

        def add(linear: Linear | str | None, share: float) -> None:
            for name in () if linear is None else _names(linear):
                shares[name] = shares.get(name, 0.0) + share

        add(a.output, 1.0)
        if isinstance(a, Gqa):
            # An error of scores moves weights p, and the result by p_i (v_i - result). With S the sum of p^2,
            # that is 1 - S of the result's energy where p is even over some tokens, and (1 - sqrt(S))^2 where
            # one token has most of it; attention is between, at their mean.
            scores = self._score_variance(a, norm) * (1 - math.sqrt(self._averaged(a, norm)))
            add(a.q, scores)
            add(a.k, scores)
            add(a.v, 1.0)
        elif isinstance(a, Mla):
            # scores are scaled to a variance of about one
            for linear in (a.q, a.q_a, a.k_b):
                add(linear, 1.0)
            add(a.kv_a, 2.0)
            add(a.v_b, 1.0)
            add(a.kv_b, 2.0)
        elif isinstance(a, DeltaNet):
            # one product of queries and keys with values; gates count as what they multiply
            add(a.qkv, 3.0)
            for linear in (a.z, a.beta, a.alpha):
                add(linear, 1.0)
        return _Branch(energy, self._exact(layer.post_attention_norm), 1.0, shares)

    def _averaged(self, a: Gqa, norm: str) -> float:
        """Energy of results over that of values: the sum of squared weights, of unrelated values."""
        rows, _ = self._statistics.rows(a.output)
        results = self._statistics.inputs(a.output, rows.shape[0], rows.shape[2])
        if a.v is None:
            return 0.5  # those are another layer's, normed with what it reads
        values, _ = self._statistics.row_energies(a.v, norm)
        return min(1.0, float(results.mean()) / max(float(values.mean()), 1e-30))

    def _score_variance(self, a: Gqa, norm: str) -> float:
        """Of the scores, for queries and keys that have nothing to do with one another."""
        if a.q_norm is not None and a.k is None:
            q = np.square(self._statistics.vector(a.q_norm))
            return float(a.scale**2 * q.sum())
        if a.q_norm is not None and a.k_norm is not None:
            q, k = (np.square(self._statistics.vector(name)) for name in (a.q_norm, a.k_norm))
            return float(a.scale**2 * (q * k).sum())
        if a.k is None:
            return 1.0
        q_energy, _ = self._statistics.row_energies(a.q, norm)
        k_energy, _ = self._statistics.row_energies(a.k, norm)
        return float(a.scale**2 * a.head_dim * q_energy.mean() * k_energy.mean())

    def _ffn(self, layer: Layer) -> _Branch:
        f = layer.ffn
        exact = self._exact(layer.post_ffn_norm)
        if isinstance(f, DenseFfn):
            energy, shares, passed = self._gated(f, layer.ffn_norm)
            return _Branch(energy, exact, passed, shares)
        energy, shares, passed = self._gated(f, layer.ffn_norm)
        energy *= self._weight_energy(f.routing, layer.ffn_norm)
        if f.shared is not None:
            more, of_shared, through = self._gated(
                f.shared, layer.ffn_norm if f.norms is None else f.norms.shared
            )
            if f.norms is not None:
                # both are normed before they are added
                energy = self._exact(f.norms.experts_output) or 0.0
                more = self._exact(f.norms.shared_output) or 0.0
            total = energy + more
            passed = (passed * energy + through * more) / total
            shares = {n: s * energy / total for n, s in shares.items()}
            shares |= {n: s * more / total for n, s in of_shared.items()}
            energy = total
        return _Branch(energy, exact, min(1.0, passed), shares)

    def _gated(self, f: DenseFfn | Moe, norm: str) -> tuple[float, dict[str, float], float]:
        """Energy of the result, shares of its matrices, and what passes of an error at the input."""
        statistics = self._statistics
        gate, _ = statistics.row_energies(f.gate, norm)
        up, _ = statistics.row_energies(f.up, norm)
        rows, _ = statistics.rows(f.down)
        hidden = float(statistics.inputs(f.down, rows.shape[0], rows.shape[2]).mean())
        value, slope = _activation_energies(f.activation, gate)
        unrelated = float((value * up).mean())
        if unrelated > 0 and hidden > 0:
            self._alignments.append(_alignment(f.activation, gate, up, hidden))
        of_up = min(1.0, unrelated / hidden) if hidden > 0 else 1.0
        of_gate = min(2.0, float((slope * gate * up).mean()) / hidden) if hidden > 0 else 1.0
        shares: dict[str, float] = {}
        experts = len(f.gate.weight) if isinstance(f.gate.weight, tuple) else 1
        for linear, share in ((f.down, 1.0), (f.up, of_up), (f.gate, of_gate)):
            for name in _names(linear):
                shares[name] = shares.get(name, 0.0) + share / experts
        return statistics.energy(f.down), shares, min(1.0, of_up + of_gate)

    def _weight_energy(self, routing: Routing, norm: str) -> float:
        """Sum of the chosen experts' squared weights, for random inputs of the measured size."""
        rows, _ = self._statistics.rows(routing.router, 4096)
        matrix = rows[0]
        inputs = self._statistics.inputs(routing.router, 1, matrix.shape[1], norm)[0]
        rng = np.random.default_rng(0)
        x = rng.standard_normal((_TRIALS, matrix.shape[1])) * np.sqrt(inputs)
        logits = x @ matrix.T
        if routing.func == "sigmoid":
            p = 1 / (1 + np.exp(-logits))
        else:
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
        chosen = -np.sort(-p, axis=1)[:, : routing.n_used]
        if routing.normalize or routing.func == "softmax_chosen":
            chosen /= chosen.sum(axis=1, keepdims=True)
        return float(np.square(chosen * routing.scale).sum(axis=1).mean())

    def _exact(self, post_norm: str | None) -> float | None:
        """Energy behind a norm: that of its weights."""
        return None if post_norm is None else float(np.square(self._statistics.vector(post_norm)).sum())


def _likeness(rows: Floats, inputs: Floats) -> float:
    """How much of an error of hidden states is between likely tokens: 1 where their rows are like any others.

    What an error of hidden states adds to the variance of likely tokens' logits, over what it adds to that of
    all; the same of errors of logits that have nothing to do with one another is taken as 1.

    Args:
        rows: Of the output matrix, tokens x columns.
        inputs: Mean squared inputs, by column.
    """
    x = np.random.default_rng(0).standard_normal((_TRIALS // 4, len(inputs))) * np.sqrt(inputs)
    logits = x @ rows.T
    logits -= logits.max(axis=1, keepdims=True)
    low, high = 1e-3, 1e3
    p = np.full_like(logits, 1 / len(rows))
    # normal inputs tell less than real ones, so their logits are scaled until as much is open as in text
    for _ in range(25):
        middle = math.sqrt(low * high)
        p = np.exp(logits * middle)
        p /= p.sum(axis=1, keepdims=True)
        is_open = float(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=1).mean()) > _OPEN
        low, high = (middle, high) if is_open else (low, middle)
    unrelated = 1 - float(np.square(p).sum(axis=1).mean())
    likely = float(((p @ np.square(rows) - np.square(p @ rows)) @ inputs).mean())
    of_all = float(rows.var(axis=0) @ inputs)
    return min(1.0, likely / (of_all * unrelated)) if of_all * unrelated > 0 else 1.0


def _names(linear: Linear | str) -> tuple[str, ...]:
    weight = linear if isinstance(linear, str) else linear.weight
    return (weight,) if isinstance(weight, str) else weight


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(48)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def _activate(kind: str, x: Floats) -> Floats:
    if kind == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return np.asarray(0.5 * x * (1 + np.tanh(inner)))
    slope = 1.702 if kind == "swiglu_oai" else 1.0
    return np.asarray(x / (1 + np.exp(-np.clip(slope * x, -60, 60))))


def _activation_energies(kind: str, variance: Floats) -> tuple[Floats, Floats]:
    """Mean square of the activation and of its slope, for normal inputs of some variances."""
    x = np.sqrt(variance)[..., np.newaxis] * _NODES
    step = 1e-4
    slope = (_activate(kind, x + step) - _activate(kind, x - step)) / (2 * step)
    return np.square(_activate(kind, x)) @ _WEIGHTS, np.square(slope) @ _WEIGHTS


def _alignment(kind: str, gate: Floats, up: Floats, hidden: float) -> float:
    """By what factor columns that go together raise the energies of gate and up, given the hidden units'."""
    low, high = 1.0, 1e4
    for _ in range(60):
        middle = math.sqrt(low * high)
        value, _ = _activation_energies(kind, gate * middle)
        if float((value * up).mean()) * middle < hidden:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
