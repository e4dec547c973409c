"""Damaged models: 10,000 mutants of the fixtures load and run, or are refused with an error of ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from model_files import NAMES, path

N_MUTANTS = 10_000


@pytest.mark.parametrize("name", NAMES)
def test_mutants(name, tmp_path):
    # memory-backed where there is such a place: each mutant is written and mapped
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    copy = folder / f"ikq-{tmp_path.parent.name}-{tmp_path.name}.gguf"
    command = [Path(__file__).with_name("engine_mutants.py"), path(name), copy, 1, N_MUTANTS // len(NAMES)]
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        copy.unlink(missing_ok=True)
    # a process of its own: what does not survive says at which mutant
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr.rpartition(chr(13))[2][-2000:]}"
    found = json.loads(done.stdout)
    assert sum(found.values()) == N_MUTANTS // len(NAMES)
    # changes are neither all harmless nor all fatal
    assert found["logits"] > 0
    assert found["FormatError"] > 0
