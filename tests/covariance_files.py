"""Files of covariances made by hand, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ikq


def write_covariances(
    path: Path,
    sites: dict[str, tuple[NDArray[np.float32], list[float]]],
    kind: str = "covariance",
    cross: dict[str, NDArray[np.float32]] | None = None,
    products: dict[str, NDArray[np.float32]] | None = None,
) -> Path:
    """Writes for each tensor the sums `(n_group, k, k)` and counts of its input, and those with what is wanted.

    `cross` is of what inputs lack, `products` of what products do.
    """
    names = list(sites)
    metadata = {"general.type": kind, "covariance.chunk_count": 1, "covariance.chunk_size": 512}
    for i, name in enumerate(names):
        metadata[f"covariance.site.{i}.tensors"] = [name]
        metadata[f"covariance.site.{i}.groups"] = [-1]
    with ikq.GGUFWriter(path, metadata) as writer:
        for name, (sums, counts) in sites.items():
            rows, columns = np.tril_indices(sums.shape[-1])
            writer.add_tensor(f"{name}.in_cov", np.ascontiguousarray(sums[:, rows, columns], np.float32))
            writer.add_tensor(f"{name}.counts", np.asarray(counts, np.float32)[:, np.newaxis])
            for suffix, missing in (("in_cross", cross), ("out_cross", products)):
                if missing is not None and name in missing:
                    flat = np.ascontiguousarray(missing[name], np.float32).reshape(len(missing[name]), -1)
                    writer.add_tensor(f"{name}.{suffix}", flat)
    return path


def inputs(k: int, n: int, seed: int = 0) -> NDArray[np.float32]:
    """Activations whose columns go together: few directions with most of the energy, and noise."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(100 + k).standard_normal((k // 4, k))
    x = rng.standard_normal((n, k // 4)) @ directions / (k // 4) ** 0.5
    return (x + 0.3 * rng.standard_normal((n, k))).astype(np.float32)


def product_error(x: NDArray[np.float32], w: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Squared error of x w^T with y in the place of w."""
    return float((((w - y).astype(np.float64) @ x.T.astype(np.float64)) ** 2).sum())
