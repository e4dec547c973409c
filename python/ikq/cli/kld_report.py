"""Statistics of a distance from a base, in the lines that llama-perplexity prints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikq.evaluate import Divergence, Uncertain

__all__ = ["facts", "head", "row", "statistics"]

_KLD_SHARES = (99.9, 99, 95, 90, 50, 10, 5, 1, 0.1)
_DIFFERENCE_SHARES = (99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1)


def head() -> str:
    """The heading of `row`."""
    return (
        "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              "
        "Δp RMS            Same top p"
    )


def row(d: Divergence) -> str:
    """Statistics so far, in one line."""
    ppl, ratio, mean = d.ppl, d.log_ratio, d.mean
    rms, top = _percent(d.rms), _percent(d.top)
    return (
        f"{d.n_windows:4d}    {ppl.value:9.4f} ± {ppl.error:9.4f}    "
        f"{ratio.value:10.5f} ± {ratio.error:10.5f}    {mean.value:10.5f} ± {mean.error:10.5f}    "
        f"{rms.value:6.3f} ± {rms.error:6.3f} %    {top.value:6.3f} ± {top.error:6.3f} %"
    )


def statistics(d: Divergence) -> list[str]:
    """All statistics, one per line."""
    lines = ["====== Perplexity statistics ======"]
    for name, value in (("PPL(Q)", d.ppl), ("PPL(base)", d.ppl_base)):
        lines.append(_line(name, value))
    lines.append(f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * d.correlation:6.2f}%")
    for name, value in (
        ("ln(PPL(Q)/PPL(base))", d.log_ratio),
        ("PPL(Q)/PPL(base)", d.ratio),
        ("PPL(Q)-PPL(base)", d.difference),
    ):
        lines.append(_line(name, value))
    lines += ["", "====== KL divergence statistics ======"]
    lines.append(f"Mean    KLD: {d.mean.value:10.6f} ± {d.mean.error:10.6f}")
    if d.variance.any():
        lines.append(
            f"  compact base: the mean's standard error from its form is {d.form_error:.6f}; the mean is at"
            f" least {d.least_mean:.6f}; each position below is an estimate"
        )
    lines += _spread("KLD", d.divergence, _KLD_SHARES, 1, "10.6f", "")
    difference = d.probability_differences
    mean = _percent(Uncertain(float(difference.mean()), float(difference.std() / np.sqrt(len(difference)))))
    lines += ["", "====== Token probability statistics ======"]
    lines.append(f"Mean    Δp: {mean.value:6.3f} ± {mean.error:5.3f} %")
    lines += _spread("Δp", difference, _DIFFERENCE_SHARES, 100, "6.3f", "%")
    rms, top = _percent(d.rms), _percent(d.top)
    lines.append(f"RMS Δp    : {rms.value:6.3f} ± {rms.error:5.3f} %")
    lines.append(f"Same top p: {top.value:6.3f} ± {top.error:5.3f} %")
    return lines


def facts(d: Divergence) -> dict[str, Any]:
    """All statistics for programs; shares and probabilities between 0 and 1."""
    values = {
        "ppl": d.ppl, "ppl_base": d.ppl_base, "ln_ratio": d.log_ratio, "ratio": d.ratio,
        "difference": d.difference, "kld": d.mean, "rms_p_diff": d.rms, "same_top": d.top,
    }  # fmt: skip
    return {
        "n_windows": d.n_windows,
        "n_scored": len(d.loss),
        **{name: value._asdict() for name, value in values.items()},
        "correlation": d.correlation,
        "kld_form_error": d.form_error,
        "kld_least": d.least_mean,
        "kld_percentiles": _percentiles(d.divergence, _KLD_SHARES),
        "p_diff_percentiles": _percentiles(d.probability_differences, _DIFFERENCE_SHARES),
    }


def _percentiles(x: NDArray[np.float64], shares: tuple[float, ...]) -> dict[str, float]:
    names = (100, *shares, 0)
    return {f"{s:g}": float(v) for s, v in zip(names, np.percentile(x, names), strict=True)}


def _spread(
    name: str, x: NDArray[np.float64], shares: tuple[float, ...], unit: int, form: str, sign: str
) -> list[str]:
    """Largest to smallest."""
    lines = []
    for share, value in _percentiles(x, shares).items():
        word = {"100": "Maximum", "0": "Minimum", "50": "Median "}.get(share, f"{float(share):4.1f}%  ")
        lines.append(f"{word} {name}: {unit * value:{form}}{sign}")
    return lines


def _line(name: str, value: Uncertain) -> str:
    return f"{'Mean ' + name:<30}: {value.value:10.6f} ± {value.error:10.6f}"


def _percent(x: Uncertain) -> Uncertain:
    return Uncertain(100 * x.value, 100 * x.error)
