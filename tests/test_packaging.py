"""What is installed: typed, documented, cheap to import."""

import inspect
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import ikq

ROOT = Path(ikq.__file__).parent


def test_version_and_command():
    assert ikq.__version__ == version("ikq")
    (command,) = [e for e in entry_points(group="console_scripts") if e.name == "ikq"]
    assert command.value == "ikq.__main__:main"


def test_types_are_shipped():
    assert (ROOT / "py.typed").exists()
    assert (ROOT / "_ikq.pyi").exists()


def test_every_public_name_exists_and_is_documented():
    assert ikq.__all__ == sorted(ikq.__all__, key=lambda n: (n[0].islower() or n[0] == "_", n))
    for name in ikq.__all__:
        thing = getattr(ikq, name)
        if callable(thing):
            assert thing.__doc__, name
            for member, function in vars(thing).items() if inspect.isclass(thing) else ():
                if not member.startswith("_") and callable(function):
                    assert function.__doc__, f"{name}.{member}"


def test_importing_is_cheap():
    """No thread is started, no large package loaded."""
    code = """
import sys, threading, os
import ikq
assert len(os.listdir("/proc/self/task")) == before, os.listdir("/proc/self/task")
heavy = {"torch", "gguf", "tqdm", "tokenizers", "jinja2", "hypothesis", "pandas", "argparse"} & set(sys.modules)
assert not heavy, heavy
"""
    # numpy starts the threads of its BLAS when it is imported
    code = "import os, numpy; before = len(os.listdir('/proc/self/task'))" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_errors_have_the_bases_that_callers_catch():
    assert issubclass(ikq.FormatError, (ikq.IkqError, ValueError))
    assert issubclass(ikq.FormatError, ValueError)
    assert issubclass(ikq.ShapeError, ValueError)
    assert issubclass(ikq.UnsupportedError, NotImplementedError)
    assert issubclass(ikq.MissingImatrixError, ikq.RefusedError)
    for error in (ikq.FormatError, ikq.ShapeError, ikq.UnsupportedError, ikq.RefusedError, ikq.DeviceError):
        assert issubclass(error, ikq.IkqError)
        assert not issubclass(error, OSError)
