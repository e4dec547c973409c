"""Requests made from the server's own description of its paths, valid ones and such as are not (schemathesis)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import TOOLS, engine, serving

# More with IKQ_HYPOTHESIS=deep, which takes some ten minutes.
DEEP = os.environ.get("IKQ_HYPOTHESIS") == "deep"
CHECKS = "not_a_server_error,content_type_conformance,unsupported_method,negative_data_rejection"


def test_requests_of_the_description(tmp_path):
    command = Path(sys.executable).with_name("schemathesis")
    if not command.exists():
        pytest.skip("schemathesis is not installed: requests of the description are not tried")
    limits = {"max_tokens": 4, "timeout": 20, "n_ctx": 128, "parallel": 4, "queue": 8}
    with serving(load=TOOLS, slot_dir=tmp_path / "slots", **limits) as server:
        options = {
            "--max-examples": "200" if DEEP else "12",
            "--phases": "coverage,fuzzing" if DEEP else "fuzzing",
            "--checks": CHECKS,
            "--workers": "4",
            "--seed": "1",
            "--request-timeout": "120",
            # other names of the same
            "--exclude-path-regex": "^/(chat/|completions|embeddings|models)",
        }
        found = subprocess.run(
            [command, "run", f"{server.url}/openapi.json", "--no-color", "--continue-on-failure"]
            + [text for option in options.items() for text in option],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        assert found.returncode == 0, found.stdout[-6000:]
        assert " generated" in found.stdout
        assert engine(server).n_wanted == 0
        assert server.ask("/v1/completions", {"prompt": "import", "max_tokens": 1})[0] == 200
