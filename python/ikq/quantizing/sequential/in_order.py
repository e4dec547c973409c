"""Inputs of a layer in the order in which it meets them: `take_first_inputs`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ikq.files.gguf import GGUFReader, GGUFWriter

__all__ = ["take_first_inputs"]

_SITE = "covariance.site.{}.tensors"


def take_first_inputs(covariances: Path, newer: Path, n: int | None) -> None:
    """Replaces the covariances of the first `n` inputs (`None`: of all) by newer ones, whose file is used up.

    Both files have the inputs in the order in which the layer meets them. Where these are not the same in
    both, all are taken from the newer one.

    Raises:
        OSError: A file cannot be read or written.
        FormatError: A file is damaged.
    """
    if n is not None and not _mixed(covariances, newer, n):
        n = None
    if n is None:
        newer.replace(covariances)
    else:
        newer.unlink()


def _mixed(covariances: Path, newer: Path, n: int) -> bool:
    """Whether both have the same inputs, more than `n`; then they are mixed."""
    out = covariances.with_name(f"{covariances.name}.new")
    with GGUFReader(covariances) as old, GGUFReader(newer) as new:
        readers = [new.metadata.get(_SITE.format(i)) for i in range(n)]
        names = [each[0] for each in readers if isinstance(each, list)]
        if len(names) < n or list(old.tensors) != list(new.tensors):
            return False
        with GGUFWriter(out, new.metadata) as writer:
            for name in new.tensors:
                is_first = any(name.startswith(f"{first}.") for first in names)
                tensor = (new if is_first else old).tensors[name]
                writer.add_tensor(name, np.array(tensor.dequantize(), np.float32).reshape(tensor.shape))
    out.replace(covariances)
    return True
