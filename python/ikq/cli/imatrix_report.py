"""What `ikq imatrix` says about statistics: coverage, numbers per tensor, similarity of layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ikq import ActivationStatistics, LayerSimilarity
from ikq.statistics.calibrate import Coverage, TensorCoverage, summarize, summarize_layers

__all__ = ["coverage_lines", "facts", "similarity_lines", "statistics_lines"]

_BLOCK = re.compile(r"blk\.\d+\.")
# Names that a list on the terminal shows before it says how many more there are.
_SHOWN = 12


def coverage_lines(found: Coverage, wanted: Mapping[str, int] | None, exact: bool) -> list[str]:
    """A table by kind of matrix, and what has no data by name.

    Args:
        found: The coverage.
        wanted: Matrices of the model, if one is known.
        exact: Whether counts are tokens of each expert.
    """
    by_kind: dict[str, list[TensorCoverage]] = {}
    for row in found.tensors:
        by_kind.setdefault(_kind(row.name), []).append(row)
    missing: dict[str, int] = {}
    for name in found.missing:
        missing[_kind(name)] = missing.get(_kind(name), 0) + 1
    titles = ("with data", "experts seen", "fewest tokens", "median", "most")
    widths = (11, 13, 14, 9, 9)
    lines = [" ".join([f"{'matrix':<24}", *(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True))])]
    for kind in [*by_kind, *(k for k in missing if k not in by_kind)]:
        rows = by_kind.get(kind, [])
        of = len(rows) + missing.get(kind, 0)
        experts = sum(r.n_expert for r in rows)
        seen = experts - sum(len(r.unseen) for r in rows)
        line = f"{kind:<24} {f'{len(rows)} of {of}':>11} {f'{seen} of {experts}' if experts > of else '':>13}"
        if rows:
            # a median over the experts of all layers
            middle = float(np.median([r.median for r in rows]))
            line += f" {min(r.fewest for r in rows):>14.0f} {middle:>9.0f} {max(r.most for r in rows):>9.0f}"
        lines.append(line.rstrip())
    if not exact:
        lines.append("(.dat files do not hold tokens per expert: counts are estimates)")
    n = len(found.tensors) - len(found.foreign)
    if wanted is None:
        lines.append(f"{len(found.tensors)} matrices have data (give -m to compare with a model)")
    else:
        lines.append(f"{n} of {len(wanted)} matrices of the model have data")
    lines += _named("without data", found.missing)
    lines += _named("not in the model", found.foreign)
    unseen = [(r.name, r.unseen) for r in found.tensors if r.unseen]
    if unseen:
        lines.append(f"{found.n_unseen} of {found.n_experts} experts saw no token:")
        lines += [f"  {name}: {_runs(experts)}" for name, experts in unseen[:_SHOWN]]
        if len(unseen) > _SHOWN:
            lines.append(f"  ... and {len(unseen) - _SHOWN} matrices more; --report FILE.json names all")
    return lines


def _kind(name: str) -> str:
    return _BLOCK.sub("", name).removesuffix(".weight")


def _named(what: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{what}: {', '.join(names[:_SHOWN])}{more}"]


def _runs(numbers: Iterable[int]) -> str:
    """Numbers with neighbours joined: `1, 4-7`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def statistics_lines(statistics: ActivationStatistics) -> list[str]:
    """The tables of --show-statistics."""
    rows = summarize(statistics)
    lines = [
        f"{statistics.n_chunks} chunks of {statistics.chunk_size} tokens, {len(statistics)} entries"
        + (f", from {', '.join(statistics.datasets)}" if statistics.datasets else "")
        + (", every token for every expert" if statistics.all_experts else ""),
        "",
        f"{'layer':>5} {'tensor':<22} {'sum':>12} {'min':>10} {'max':>11} {'mean':>10} {'deviation':>10} "
        f"{'active':>7} {'n':>8} {'entropy':>8} {'even':>7} {'|z|>1':>7} {'cosine':>7}",
    ]
    for s in rows:
        lines.append(
            f"{'-' if s.layer is None else s.layer:>5} {s.role:<22} {s.total:>12.4f} {s.least:>10.4g} "
            f"{s.most:>11.4g} {s.mean:>10.4g} {s.deviation:>10.4g} {s.active:>7.2%} {s.n:>8} "
            f"{s.entropy:>8.3f} {s.evenness:>7.2%} {s.outliers:>7.2%} {_cosine(s.cosine):>7}"
        )
    layers = sorted(summarize_layers(rows), key=lambda x: -x.total)
    lines += ["", f"{'layer':>5} {'sum':>12} {'|z|>1':>7} {'cosine':>7}"]
    lines += [f"{x.layer:>5} {x.total:>12.4f} {x.outliers:>7.2%} {_cosine(x.cosine):>7}" for x in layers]
    return lines


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def similarity_lines(layers: list[LayerSimilarity]) -> list[str]:
    """Layers, attention and FFNs, those that change most first."""
    lines = []
    for title, part in (("layers", 0), ("attention", 1), ("feed-forward", 2)):
        order = sorted(range(len(layers)), key=lambda i: layers[i][part])
        lines.append(f"cosine of input and output, {title} (what changes most first)")
        lines += [f"  {rank:>3}: layer {i:>3}  {layers[i][part]:.6f}" for rank, i in enumerate(order)]
    return lines


def facts(
    statistics: ActivationStatistics,
    found: Coverage,
    wanted: Mapping[str, int] | None,
    similarity: list[LayerSimilarity],
) -> dict[str, Any]:
    """All of it for JSON."""
    numbers = {s.name: s._asdict() for s in summarize(statistics)}
    tensors = [row._asdict() | {"statistics": numbers.get(row.name)} for row in found.tensors]
    return {
        "datasets": statistics.datasets,
        "n_chunks": statistics.n_chunks,
        "chunk_size": statistics.chunk_size,
        "all_experts": statistics.all_experts,
        "counts_are_exact": statistics.counts_are_exact,
        "n_wanted": None if wanted is None else len(wanted),
        "missing": found.missing,
        "foreign": found.foreign,
        "n_experts": found.n_experts,
        "n_unseen": found.n_unseen,
        "tensors": tensors,
        "layers": [x._asdict() for x in summarize_layers(summarize(statistics))],
        "layer_similarity": [x._asdict() for x in similarity],
    }
