"""What is installed: typed, documented, cheap to import."""

import ast
import inspect
import json
import platform
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import ikq
from ikq.cli import run_command

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


# what the standard library has only since 3.11 and later, where a name may stand
LATER = {
    "typing": {
        "Unpack",
        "Self",
        "Never",
        "NotRequired",
        "Required",
        "LiteralString",
        "assert_never",
        "override",
    },
    "enum": {"StrEnum"},
    "datetime": {"UTC"},
    "hashlib": {"file_digest"},
    "asyncio": {"timeout", "timeout_at", "TaskGroup", "Runner"},
    "contextlib": {"chdir"},
    "itertools": {"batched"},
}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.stem)
def test_modules_need_no_later_python_than_the_package_says(path: Path) -> None:
    """3.10: syntax, and names of the standard library outside of `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(), feature_version=(3, 10))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            late = LATER.get(node.module or "", set()) & {alias.name for alias in node.names}
            assert not late, f"line {node.lineno}: {late}"
            assert node.module != "tomllib"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr not in LATER.get(node.value.id, set()), f"line {node.lineno}: {node.attr}"


def test_info_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["info", "F16", "--no-self-test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == ikq.__version__
    assert found["python"] == platform.python_version()
    assert found["in_use"] == ikq.isa()
    assert found["in_use"] in found["instruction_sets"]
    assert found["cpus"] >= 1
    assert "gpus" in found
    assert [row["type"] for row in found["kernels"]] == ["F16"]
