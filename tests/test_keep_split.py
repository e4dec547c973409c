"""Splitting the output: as the input is, with a first file of metadata only, and any number of files."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ikq


def ikq_command(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "ikq", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, **kwargs)  # type: ignore[call-overload]


def split_model(folder: Path, tiny_moe: Path, limit: str = "7M") -> Path:
    """The tiny MoE in several files of different numbers of tensors."""
    done = ikq_command("gguf-split", "--split", "--split-max-size", limit, tiny_moe, folder / "in")
    assert done.returncode == 0, done.stderr
    return min(folder.glob("in-*.gguf"))


def files(first: Path) -> list[Path]:
    return [s.path for s in ikq.GGUFReader(first).shards]


def counts(first: Path) -> list[int]:
    """Tensors in each file."""
    return [s.n_tensors for s in ikq.GGUFReader(first).shards]


def test_the_files_of_the_input(tmp_path: Path, tiny_moe: Path) -> None:
    source = split_model(tmp_path, tiny_moe)
    assert len(set(counts(source))) > 1, "files of different numbers of tensors"
    planned = ikq_command("quantize", "--keep-split", "--dry-run", source, tmp_path / "out.gguf", "Q4_0")
    assert planned.returncode == 0, planned.stderr
    done = ikq_command("quantize", "--keep-split", source, tmp_path / "out.gguf", "Q4_0")
    assert done.returncode == 0, done.stderr
    out = tmp_path / source.name.replace("in-", "out-")
    assert counts(out) == counts(source)
    assert not (tmp_path / "out.gguf").exists()
    assert f"would have {sum(f.stat().st_size for f in files(out))} bytes" in planned.stdout
    ikq.quantize_file(tiny_moe, tmp_path / "whole.gguf", "Q4_0")
    split, whole = ikq.GGUFReader(out), ikq.GGUFReader(tmp_path / "whole.gguf")
    assert list(split.tensors) == list(whole.tensors)
    assert all(np.array_equal(t.raw, split.tensors[name].raw) for name, t in whole.tensors.items())


def test_the_extra_output_goes_with_the_output(tmp_path: Path, tiny_moe: Path) -> None:
    source = split_model(tmp_path, tiny_moe)
    names, i = list(ikq.GGUFReader(source).tensors), 0
    expected = counts(source)
    while sum(expected[: i + 1]) <= names.index("output.weight"):
        i += 1
    expected[i] += 1
    options = {"extra_output_tensor": "q4_0", "leave_output_tensor": True}
    plan = ikq.plan_quantization(source, tmp_path / "out.gguf", "Q8_0", keep_split=True, **options)  # type: ignore[arg-type]
    assert plan.shards == tuple(expected)
    written = plan.run()
    assert [s.n_tensors for s in ikq.GGUFReader(written.files[0]).shards] == expected


def test_one_file_stays_one(tmp_path: Path, tiny_moe: Path) -> None:
    done = ikq_command("quantize", "--keep-split", tiny_moe, tmp_path / "out.gguf", "Q4_0")
    assert done.returncode == 0, done.stderr
    assert f"note: {tiny_moe} is one file, and so is the output" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]


def test_a_first_file_of_metadata(tmp_path: Path, tiny_moe: Path) -> None:
    options = ("--no-tensor-first-split", "--split-max-tensors", "30")
    done = ikq_command("quantize", *options, tiny_moe, tmp_path / "out.gguf", "Q4_0")
    assert done.returncode == 0, done.stderr
    assert counts(tmp_path / "out-00001-of-00003.gguf") == [0, 30, 21]


@pytest.mark.parametrize(
    "options",
    [
        ("--keep-split", "--split-max-size", "1G"),
        ("--keep-split", "--split-max-tensors", "3"),
        ("--split-max-size", "1G", "--split-max-tensors", "3"),
        ("--no-tensor-first-split",),
        ("--no-tensor-first-split", "--keep-split"),
    ],
)
def test_options_that_exclude_one_another(tmp_path: Path, tiny_moe: Path, options: tuple[str, ...]) -> None:
    done = ikq_command("quantize", *options, tiny_moe, tmp_path / "out.gguf", "Q4_0")
    assert done.returncode == 2
    assert "--split-max-tensors" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_three_hundred_files_with_sixty_four_descriptors(tmp_path: Path) -> None:
    """Neither reading nor writing keeps a descriptor per file."""
    source = tmp_path / "in.gguf"
    x = np.random.default_rng(1).standard_normal((4, 64), dtype=np.float32)
    with ikq.GGUFWriter(source, {"general.architecture": "llama"}, split_max_tensors=1) as writer:
        for i in range(300):
            writer.add_tensor(f"blk.{i}.ffn_up.weight", x)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    first = tmp_path / "in-00001-of-00300.gguf"
    done = ikq_command("quantize", "--keep-split", first, tmp_path / "out.gguf", "Q8_0", 2, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    reader = ikq.GGUFReader(tmp_path / "out-00001-of-00300.gguf")
    assert [s.n_tensors for s in reader.shards] == [1] * 300
    expected = ikq.quantize(x, "Q8_0").reshape(-1)
    assert all(np.array_equal(t.raw.reshape(-1), expected) for t in reader.tensors.values())
