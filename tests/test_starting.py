"""Ctrl-C while the command starts: no traceback, exit code 130, at whichever import it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Interrupts the process when it begins to import a module, as a user might.
INTERRUPTER = """
import os, signal, sys

class Interrupter:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ.get("INTERRUPTED_AT"):
            sys.meta_path.remove(Interrupter)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter)
"""

COMMAND = "import sys\nfrom ikq.__main__ import main\nsys.exit(main())\n"


def started(
    words: list[str], module: str, folder: Path, *, ignored: bool = False
) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(INTERRUPTER)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "INTERRUPTED_AT": module}
    # tests may run where interrupts are ignored, which processes inherit
    wish = signal.SIG_IGN if ignored else signal.SIG_DFL
    return subprocess.run(
        words,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, wish),
    )


@pytest.mark.parametrize(
    "module",
    ["ikq._moved", "numpy", "numpy._core", "ikq._ikq", "ikq.inference.model", "ikq.cli", "ikq.cli.recipe"],
)
def test_an_interrupted_start_is_quiet(module: str, tmp_path: Path) -> None:
    script = tmp_path / "ikq"
    script.write_text(COMMAND)
    for words in ([sys.executable, "-m", "ikq"], [sys.executable, str(script)]):
        done = started([*words, "types"], module, tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n"), words


def test_later_ones_end_the_same_way(tmp_path: Path) -> None:
    # a verb at work imports this for `--plot`
    words = [sys.executable, "-m", "ikq", "sweep-bench", "-m", "x.gguf", "--plot", "x.png"]
    done = started(words, "matplotlib", tmp_path)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_where_interrupts_are_ignored_they_stay_so(tmp_path: Path) -> None:
    done = started([sys.executable, "-m", "ikq", "types", "q8_0"], "numpy", tmp_path, ignored=True)
    assert done.returncode == 0
    assert "Q8_0" in done.stdout


def test_a_library_leaves_signals_alone(tmp_path: Path) -> None:
    code = (
        "import signal, ikq\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "from ikq.__main__ import main\n"
        "main(['types', 'q8_0'])\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    script = tmp_path / "program.py"
    script.write_text(code)
    done = started([sys.executable, str(script)], "", tmp_path)
    assert done.returncode == 0, done.stderr
    done = started([sys.executable, str(script)], "numpy", tmp_path)
    assert "KeyboardInterrupt" in done.stderr
