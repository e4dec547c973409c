"""Hypothesis profiles and where the fixtures are."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# fast: what `make test` runs; deep: nightly. IKQ_HYPOTHESIS chooses.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("fast", max_examples=25, derandomize=True, **_common)
settings.register_profile("deep", max_examples=1000, **_common)
settings.load_profile(os.environ.get("IKQ_HYPOTHESIS", "fast"))


@pytest.fixture(scope="session")
def samples() -> Path:
    """Files that the reference programs wrote; not part of this repository."""
    path = SHARED / "models" / "samples"
    if not path.is_dir():
        pytest.skip("../shared/models/samples is not there: files by the reference programs are not tested")
    return path


@pytest.fixture(scope="session")
def tiny_moe() -> Path:
    return ROOT / "tests" / "data" / "tiny-moe-bf16.gguf"


@pytest.fixture(scope="session")
def server():
    """A server of a small model, for all tests that leave it as it was."""
    from serving import TOOLS, serving  # of tests/serve

    with serving(load=TOOLS) as running:
        yield running
