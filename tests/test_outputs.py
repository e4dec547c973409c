"""Outputs replace neither what is read nor a model."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

import ikq
from ikq.cli import run_command
from ikq.errors import RefusedError
from ikq.files.outputs import check_outputs
from ikq.files.whole_file import whole_file

DATA = Path(__file__).parent / "data"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(DATA / "tiny-moe-bf16.gguf", tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["perplexity", "--kl-divergence-base", "MODEL"], "--kl-divergence-base MODEL: that is the file of the model"),
        (["perplexity", "--kl-divergence-base", "TEXT"], "--kl-divergence-base TEXT: that is the file of -f"),
        (["perplexity", "--kl-divergence-base", "OTHER"], "is a GGUF file"),
        (["imatrix", "-o", "MODEL"], "-o MODEL: that is the file of the model"),
        (["imatrix", "-o", "TEXT"], "-o TEXT: that is the file of -f"),
        (["imatrix", "-o", "OTHER"], "-o OTHER is a model"),
        (["imatrix", "-o", "new", "--covariance", "MODEL"], "--covariance MODEL"),
        (["imatrix", "-o", "new", "--covariance", "new"], "--covariance new: that is the file of -o"),
        (["imatrix", "-o", "new", "--report", "MODEL"], "--report MODEL"),
        (["imatrix", "-o", "new", "--report", "new"], "--report new: that is the file of -o"),
    ],
)  # fmt: skip
def test_of_verbs_that_run_models(
    words: list[str],
    said: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    other = Path(shutil.copyfile(model, tmp_path / "other.gguf"))
    text = tmp_path / "text.txt"
    text.write_text("def read(path):\n    return path\n" * 100)
    names = {"MODEL": model, "OTHER": other, "TEXT": text}
    before = {p: p.read_bytes() for p in names.values()}
    verb, *options = [str(names.get(w, w)) for w in words]
    for word, path in names.items():
        said = said.replace(word, str(path))
    assert run_command([verb, "-m", str(model), "-f", str(text), "--chunks", "1", "-c", "64", *options]) == 2
    assert said in capsys.readouterr().err
    assert {p: p.read_bytes() for p in names.values()} == before
    assert not Path("new").exists()


def test_what_may_be_replaced(model: Path, tmp_path: Path) -> None:
    imatrix, base, new = (tmp_path / name for name in ("i.gguf", "b.kld", "new"))
    ikq.ActivationStatistics.open(DATA / "imatrix-plain.dat").write(imatrix, "gguf")
    base.write_bytes(b"_logits_")
    inputs = [("the model", model), ("--imatrix", None)]
    check_outputs([("-o", imatrix), ("--covariance", None)], inputs, are_gguf=True)
    check_outputs([("-o", base), ("--report", new)], inputs)
    with pytest.raises(ikq.RefusedError, match="is a GGUF file"):
        check_outputs([("-o", imatrix)], inputs)
    with pytest.raises(ikq.RefusedError, match="is a folder"):
        check_outputs([("-o", tmp_path)], inputs)
    with pytest.raises(ikq.RefusedError, match="there is no folder"):
        check_outputs([("-o", tmp_path / "no" / "o")], inputs)
    # names of one file that is not there yet
    with pytest.raises(ikq.RefusedError, match="the file of -o"):
        check_outputs([("-o", new), ("--report", tmp_path / "." / "new")], inputs)


def test_a_part_of_a_model_is_one(model: Path, tmp_path: Path) -> None:
    assert run_command(["gguf-split", "--split-max-tensors", "20", str(model), str(tmp_path / "part")]) == 0
    shards = sorted(tmp_path.glob("part-*.gguf"))
    assert len(shards) > 1
    for shard in shards:
        with pytest.raises(ikq.RefusedError, match="is a model"):
            check_outputs([("-o", shard)], [], are_gguf=True)


@pytest.mark.parametrize("option", ["--imatrix", "--recipe", "--tensor-type-file"])
def test_quantizing_keeps_what_it_reads(
    option: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = tmp_path / "read"
    if option == "--imatrix":
        shutil.copyfile(DATA / "imatrix-plain.dat", read)
    else:
        read.write_text("attn_v=q8_0\n")
    link = tmp_path / "link.gguf"
    link.symlink_to(read)
    before = read.read_bytes()
    for output in (read, link):
        assert run_command(["quantize", option, str(read), str(model), str(output), "Q8_0"]) == 2
        assert f"the output {output} is the file of" in capsys.readouterr().err
    assert read.read_bytes() == before


def test_devices_and_pipes_stay_what_they_are(tmp_path: Path, model: Path) -> None:
    """A file that is complete is renamed to its name, which would put it in the place of `/dev/null`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_outputs([("-o", pipe)], [("the model", __file__)])
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with whole_file(pipe) as f:
        f.write(b"all ")
        f.write(b"of it")
    reader.join(60)
    assert read == [b"all of it"]
    assert pipe.is_fifo()
    assert {p.name for p in tmp_path.iterdir()} == {"pipe", model.name}
    with pytest.raises(RefusedError, match="pipe is a device or a pipe, not a file"):
        check_outputs([("-o", pipe)], [], are_gguf=True)
    words = ["imatrix", "-m", model, "-f", __file__, "-o", pipe]
    assert run_command([str(word) for word in words]) == 2
    assert run_command(["quantize", str(model), str(pipe), "Q8_0"]) != 0
    assert pipe.is_fifo()
