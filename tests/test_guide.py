"""The guide: every command in it runs, every file and heading that it links to is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = ROOT / "docs" / "recipes.md"
WITH_COMMANDS = [ROOT / "README.md", RECIPES, *sorted((ROOT / "docs" / "guide").glob("*.md"))]
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def commands(page: Path) -> list[str]:
    lines = (line for block in SHELL.findall(page.read_text()) for line in block.splitlines())
    return [line for line in lines if line.strip()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the guide names, those of the repository too."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(DATA)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for name in ("model-bf16", "model"):
        shutil.copy(DATA / "tiny-moe-bf16.gguf", tmp_path / f"{name}.gguf")
    text = "\n".join(p.read_text() for p in sorted((ROOT / "tests").glob("test_s*.py")))
    (tmp_path / "calibration.txt").write_text(text[:24_000])
    (tmp_path / "heldout.txt").write_text(text[24_000:40_000])
    (tmp_path / "notes.txt").write_text("import os\n")
    shutil.copy(DATA / "imatrix-plain.dat", tmp_path / "a.imatrix")
    run("ikq quantize --pure model-bf16.gguf model-iq4_ks.gguf IQ4_KS", tmp_path)
    run("ikq imatrix -m model-bf16.gguf -f heldout.txt -o model.imatrix.gguf", tmp_path)
    run("ikq quantize --pure model-bf16.gguf model-mix.gguf Q8_0", tmp_path)
    return tmp_path


def run(line: str, folder: Path) -> str:
    bin_folder = folder / "bin"
    if not bin_folder.exists():
        bin_folder.mkdir()
        (bin_folder / "ikq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ikq "$@"\n')
        (bin_folder / "ikq").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "IKQ_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env=environment,
        input="Hello\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("page", [p for p in WITH_COMMANDS if commands(p)], ids=lambda p: p.stem)
def test_every_command_runs(page: Path, folder: Path) -> None:
    for line in commands(page):
        # a server runs until it is told to end, which tests of its own do; diff says with 1 that files differ
        if line.startswith("ikq serve"):
            assert run("ikq serve --help", folder).startswith("usage: ikq serve")
        elif line.startswith("ikq diff"):
            run(f"{line.split('#')[0]} || test $? = 1", folder)
        else:
            run(line, folder)


def test_recipes_from_python(folder: Path) -> None:
    for i, code in enumerate(PYTHON.findall(RECIPES.read_text())):
        (folder / f"example{i}.py").write_text(code)
        assert run(f"{sys.executable} example{i}.py", folder).startswith("# ikq recipe for model-bf16.gguf\n")


def test_recipes_has_commands_to_paste() -> None:
    """Those that need nothing but this repository: the model is in it."""
    lines = [line for line in commands(RECIPES) if "tests/data/tiny-moe-bf16.gguf" in line]
    assert len(lines) >= 5
    for line in lines:
        for word in shlex.split(line):
            assert not word.startswith("tests/") or (ROOT / word).exists(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, heading = link.partition("#")
        target = page if not name else (page.parent / name).resolve()
        assert target.exists(), f"{page.name}: {link}"
        if heading:
            found = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in found}
            assert heading in slugs, f"{page.name}: {link}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
