"""`Model.exchange`: another file's tensors in a loaded model, and only what differs is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ikq

IMATRIX = Path(__file__).resolve().parent / "data" / "imatrix-plain.dat"
TOKENS = list(range(5, 45))


@pytest.fixture(scope="module")
def files(tiny_moe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exchange")
    for name in ("IQ4_KS", "Q2_K"):
        ikq.quantize_file(tiny_moe, folder / f"{name}.gguf", name, imatrix=IMATRIX, pure=True)
    return folder / "IQ4_KS.gguf", folder / "Q2_K.gguf"


def mixed_file(first: ikq.GGUFReader, second: ikq.GGUFReader, names: set[str], path: Path) -> Path:
    with ikq.GGUFWriter(path, first.metadata) as writer:
        for name, tensor in first.tensors.items():
            writer.add_tensor(name, second.tensors[name] if name in names else tensor)
    return path


@pytest.mark.parametrize("mmap", ["auto", "on"])
def test_it_computes_what_the_mixed_file_does(files: tuple[Path, Path], tmp_path: Path, mmap: str) -> None:
    with ikq.GGUFReader(files[0]) as first, ikq.GGUFReader(files[1]) as second:
        every = [n for n, t in first.tensors.items() if t.ndim > 1]
        model = ikq.Model.load(files[0], n_ctx=64, mmap=mmap)
        # some tensors, others, all, none: what is not named is the first file's again
        for names in (set(every[::3]), set(every[1::2]), set(every), set()):
            with first.with_tensors_of(second, names) as reader:
                kinds = {n: reader.tensors[n].type for n in every}
                before, model = model, model.exchange(reader)
            assert {n for n in every if kinds[n] == second.tensors[n].type != first.tensors[n].type} <= names
            with pytest.raises(ValueError, match="closed"):
                before.logits(TOKENS)
            with ikq.Model.load(mixed_file(first, second, names, tmp_path / "m.gguf"), n_ctx=64) as alone:
                np.testing.assert_array_equal(model.logits(TOKENS), alone.logits(TOKENS))
                assert model.n_ctx == 64
                if mmap == "auto":
                    assert abs(model.memory.copied - alone.memory.copied) < 1 << 20
        model.close()


def test_what_it_refuses(files: tuple[Path, Path], tiny_moe: Path) -> None:
    with ikq.GGUFReader(files[0]) as first, ikq.GGUFReader(files[1]) as second:
        with pytest.raises(ikq.FormatError, match="no_such"):
            first.with_tensors_of(second, ["no_such"])
        model = ikq.Model.load(files[0], n_ctx=64)
        with model.collect_activations(), pytest.raises(ValueError, match="collected"):
            model.exchange(second)
        model.logits(TOKENS)
        sequence = model.new_sequence()
        other = model.exchange(second)
        with pytest.raises(ValueError, match="closed"):
            model.exchange(second)
        # a sequence belongs to the model that it was made by
        with pytest.raises(ValueError, match=r"another model|closed"):
            other.step([(sequence, TOKENS, "last")])
        other.close()
    with pytest.raises(ValueError, match="closed"):
        first.with_tensors_of(second, [])
