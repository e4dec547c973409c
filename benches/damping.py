"""What the damping of covariances does to errors on text that nothing was chosen by.

    python benches/damping.py [--types Q4_0 ...] [--chunks 5 40] [--out benches/results/damping.md]

The encoder damps a covariance of k columns from n tokens by (1/20 + k / n) of its mean diagonal. Other shares than 1/20 are had by
adding the difference to the diagonals in the file of covariances, or taking it from them, with k / n added there, too. The bundled
model becomes every TYPE with covariances of so many windows of its calibration text; errors are tr(dW H dW^T) for windows 41 to
60, the geometric mean over matrices (experts by themselves) of the ratio to the error with 1/20. All tokens count once,
first ones too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from calibrated import CALIBRATION, HELD_OUT, collected
from held_out_error import held_out_errors
from quality_table import ALIASES, MODELS, SOURCE

import ikq

TEXT = MODELS / "text" / "calibration.txt"
# What the encoder adds, and shares of the mean diagonal that are compared with it.
OWN = 1 / 20
SHARES = [1 / 80, 1 / 40, 1 / 20, 1 / 10]
# Tokens for which k / n is nothing.
MANY = 1e9
# Bounds of tokens for each column.
GROUPS = [(0.5, 4.0), (4.0, 16.0), (16.0, 1e9)]


def damped(covariances: Path, out: Path, share: float) -> Path:
    """The same covariances, to which the encoder's own damping adds up to another one."""
    sites = list(ikq.Covariances(covariances))
    metadata: dict[str, object] = {"general.type": "covariance"}
    metadata |= {"covariance.chunk_count": 1, "covariance.chunk_size": 512}
    for i, site in enumerate(sites):
        metadata[f"covariance.site.{i}.tensors"] = [name for name, _ in site.tensors]
        metadata[f"covariance.site.{i}.groups"] = [-1 if g is None else g for _, g in site.tensors]
    with ikq.GGUFWriter(out, metadata) as writer:
        for site in sites:
            k = site.sums.shape[-1]
            rows, columns = np.tril_indices(k)
            sums, counts = site.sums.astype(np.float64), np.full(len(site.counts), MANY)
            for group, n in enumerate(site.counts):
                if n < k / 2:
                    counts[group] = 0
                    continue
                diagonal = np.diagonal(sums[group]).copy()
                mean = diagonal.mean()
                # what is added, a, is damped itself: a + OWN (1 + a) is what is wanted
                added = (share + k / float(n) - OWN) / (1 + OWN) * mean
                np.fill_diagonal(sums[group], np.maximum(diagonal + added, 0.0))
                # sums of so many tokens, in a scale of their own
                sums[group] *= MANY / float(n)
            name = site.tensors[0][0]
            triangles = np.ascontiguousarray(sums[:, rows, columns], np.float32)
            writer.add_tensor(f"{name}.in_cov", triangles)
            writer.add_tensor(f"{name}.counts", counts.astype(np.float32)[:, np.newaxis])
    return out


def tokens_per_column(covariances: Path) -> dict[tuple[str, int], float]:
    """By tensor and expert."""
    found = {}
    with ikq.GGUFReader(SOURCE) as reader:
        for site in ikq.Covariances(covariances):
            for name, group in site.tensors:
                shape = reader.tensors[name].shape
                for expert in range(int(np.prod(shape[:-2]))):
                    at = group if group is not None else (expert if len(site.counts) > 1 else 0)
                    found[name, expert] = float(site.counts[at]) / shape[-1]
    return found


def ratios(
    type_name: str, covariances: Path, imatrix: Path, others: Path, folder: Path
) -> dict[tuple[tuple[float, float] | None, float], float]:
    """Geometric means of ratios of errors to those with the encoder's own share, by tokens per column (`None`: all) and share."""
    errors = {}
    for share in SHARES:
        cov, out = damped(covariances, folder / "damped.cov", share), folder / "out.gguf"
        options: dict[str, Any] = {
            "pure": True,
            "imatrix": imatrix,
            "token_embedding_type": "bf16",
            "output_tensor_type": "bf16",
        }
        ikq.quantize_file(
            SOURCE, out, ALIASES.get(type_name, type_name), error_feedback=cov, restart=True, **options
        )
        errors[share] = held_out_errors(SOURCE, out, others)
    of_column = tokens_per_column(covariances)
    found = {}
    for bounds in (None, *GROUPS):
        low, high = bounds or (GROUPS[0][0], GROUPS[-1][1])
        chosen = [at for at in errors[OWN] if low <= of_column.get(at, 0.0) < high]
        for share in SHARES:
            logs = [np.log(errors[share][at] / errors[OWN][at]) for at in chosen]
            found[bounds, share] = float(np.exp(np.mean(logs))) if logs else float("nan")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", nargs="+", default=["Q4_0", "IQ4_KS", "IQ3_K", "IQ2_XXS"])
    parser.add_argument("--chunks", nargs="+", type=int, default=[5, CALIBRATION])
    parser.add_argument("--out", type=Path, help="the table, as Markdown")
    args = parser.parse_args()
    shares = [f"1/{round(1 / share)}" for share in SHARES if share != OWN]
    lines = ["| TYPE | tokens | tokens per column | " + " | ".join(shares) + " |"]
    lines.append("| --- | --: | --: |" + " --: |" * len(shares))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, others = collected(folder, "other", SOURCE, TEXT, CALIBRATION, HELD_OUT)
        for chunks in args.chunks:
            imatrix, covariances = collected(folder, f"{chunks}", SOURCE, TEXT, 0, chunks)
            for type_name in args.types:
                found = ratios(type_name, covariances, imatrix, others, folder)
                for bounds in (None, *GROUPS):
                    values = [found[bounds, share] for share in SHARES if share != OWN]
                    if np.isnan(values).any():
                        continue
                    last = "" if bounds is None or bounds[1] > 1e6 else f" to {bounds[1]:g}"
                    of = "all" if bounds is None else f"{bounds[0]:g}{last or ' and more'}"
                    cells = [type_name, str(512 * chunks), of, *(f"{v:.4f}" for v in values)]
                    lines.append(f"| {' | '.join(cells)} |")
                    print(lines[-1], flush=True)
    if args.out:
        head = [
            "# Damping of covariances",
            "",
            "`python benches/damping.py --out benches/results/damping.md`",
            "",
        ]
        head += (__doc__ or "").split("\n\n")[2].strip().splitlines()
        args.out.write_text("\n".join([*head, "", *lines]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
