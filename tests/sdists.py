"""What tests read of other packages' source distributions; `make sdists` fetches it."""

import os
from pathlib import Path

import pytest
from conftest import ROOT

SDISTS = Path(os.environ.get("IKQ_SDISTS", ROOT / ".venv" / "sdists"))


def sdist(name):
    """The folder with what `tools/fetch_sdists.py` unpacked of a source distribution."""
    path = SDISTS / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there (`make sdists` fetches it)", allow_module_level=True)
    return path
