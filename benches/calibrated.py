"""Statistics of the calibration text's first windows, which files with error feedback are made with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Windows that statistics are of, and those behind them that errors are measured with.
CALIBRATION, HELD_OUT = 40, 20


def collected(folder: Path, name: str, source: Path, text: Path, skip: int, chunks: int) -> tuple[Path, Path]:
    """The imatrix and covariances of some windows of a text, made in one run."""
    imatrix, covariances = folder / f"{name}.gguf", folder / f"{name}.cov"
    command = [sys.executable, "-m", "ikq", "imatrix", "-m", source, "-f", text, "--chunk", skip]
    command += ["--chunks", chunks, "-c", 512, "--no-ppl", "-o", imatrix, "--covariance", covariances]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return imatrix, covariances
