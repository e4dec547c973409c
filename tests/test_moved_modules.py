"""Old places of modules: `import ikq.gguf` and its like, for one release."""

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

import ikq
from ikq._moved import MOVED


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Old names are new in each test, and leave nothing."""

    def forget() -> None:
        for name in [n for n in sys.modules if n.partition(".")[2].partition(".")[0] in MOVED]:
            if name.startswith("ikq."):
                del sys.modules[name]
        for name in MOVED:
            vars(ikq).pop(name, None)

    forget()
    yield
    forget()


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_module_of_the_new_one(old):
    new = importlib.import_module(f"ikq.{MOVED[old]}")
    spec = new.__spec__
    with pytest.warns(
        DeprecationWarning, match=rf"ikq\.{old} is ikq\.{MOVED[old].replace('.', '[.]')} now"
    ) as told:
        found = importlib.import_module(f"ikq.{old}")
    assert found is new
    assert [w.category for w in told] == [DeprecationWarning]
    # what reloading, pickling and `inspect` go by
    assert new.__spec__ is spec
    assert new.__name__ == f"ikq.{MOVED[old]}"


FORMS = {
    "import ikq.gguf": "ikq.gguf.GGUFReader",
    "import ikq.gguf as g": "g.GGUFReader",
    "from ikq import gguf": "gguf.GGUFReader",
    "from ikq.gguf import GGUFReader": "GGUFReader",
    "import ikq": "ikq.gguf.GGUFReader",
}


@pytest.mark.parametrize("statement", FORMS)
def test_every_form_of_importing(statement, tmp_path):
    """The warning is for the line that is to be changed, so Python shows it by itself in a program."""
    program = tmp_path / "program.py"
    program.write_text(f"import ikq as new\n{statement}\nassert {FORMS[statement]} is new.GGUFReader\n")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = 3 if statement == "import ikq" else 2
    assert f"program.py:{line}: DeprecationWarning: ikq.gguf is ikq.files.gguf now" in done.stderr
    assert done.stderr.count("DeprecationWarning") == 1


def test_attributes_that_importing_ikq_used_to_give():
    with pytest.warns(DeprecationWarning, match="ikq.files.gguf"):
        assert ikq.gguf.GGUFReader is ikq.GGUFReader
    with pytest.raises(AttributeError, match="no_such_module"):
        ikq.no_such_module  # noqa: B018


def test_modules_of_folders_are_not_loaded_a_second_time():
    new = importlib.import_module("ikq.quantizing.report.records")
    with pytest.warns(DeprecationWarning, match="now"):
        assert importlib.import_module("ikq.report.records") is new
    with (
        pytest.warns(DeprecationWarning, match="now"),
        pytest.raises(ModuleNotFoundError, match="no_such_module"),
    ):
        importlib.import_module("ikq.report.no_such_module")


def test_folders_that_took_a_modules_name_give_what_it_gave():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from ikq.arrays import dequantize
        from ikq.text import TextModel
    assert dequantize is ikq.dequantize
    assert issubclass(ikq.Model, TextModel)


def test_ikq_itself_uses_the_new_places():
    """All modules that need no extra, one after the other in a fresh interpreter."""
    code = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("error")
import ikq
for module in pkgutil.walk_packages(ikq.__path__, "ikq."):
    if not module.name.startswith(("ikq.__main__", "ikq.serve")):
        importlib.import_module(module.name)
from ikq._moved import MOVED
assert not {f"ikq.{name}" for name in MOVED} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
