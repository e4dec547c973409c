"""Models run from every tensor type that a file may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import N_CTX, Parts, mixture, tokens, write

import ikq

STORABLE = [t for t in ikq.QuantType if t.is_storable and t.can_encode]


def interleaved(type: ikq.QuantType) -> bool:
    """Whether rows of a type have an interleaved form with the same codes."""
    return type != ikq.QuantType.F16 and any(t.base == type for t in ikq.QuantType)


# Codes of activations have 8 bits: relative errors of about 0.5 % per product, of which a layer has four in a row.
# Medians, because a token between two experts may take the other one.
LARGEST_ERROR = 0.02
# Products of these have a factor of 1.05 and 1.01 that decoded weights do not.
FACTORS = {"IQ2_KT": 0.3, "IQ3_KT": 0.06}


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


@pytest.mark.filterwarnings("ignore::ikq.errors.NotTernaryWarning")
@pytest.mark.parametrize("type", STORABLE, ids=lambda t: t.name)
def test_all_matrices_of_one_type(parts: Parts, tmp_path: Path, type: ikq.QuantType) -> None:
    with ikq.GGUFReader(mixture(parts, tmp_path / "f32.gguf", "F32", "F32")) as reader:
        tensors: dict[str, object] = {}
        for name, tensor in reader.tensors.items():
            is_matrix = tensor.ndim > 1 and name not in ("token_embd.weight", "blk.0.ffn_gate_inp.weight")
            # I2_S has one scale per matrix and no experts
            is_matrix &= type.name != "I2_S" or tensor.ndim == 2
            x = tensor.dequantize()
            tensors[name] = ikq.QTensor.quantize(x, type) if is_matrix else x
        path = write(tmp_path / "typed.gguf", dict(reader.metadata), tensors)
    found = {}
    for compute in ("f32", "auto"):
        with ikq.Model.load(path, n_ctx=N_CTX, n_threads=2, compute=compute) as model:
            found[compute] = [model.logits(tokens(n)) for n in (1, 3, 40)]
            model.truncate(0)
            found[compute].append(np.concatenate([model.eval([t]) for t in tokens(3)]))
    for exact, fast in zip(found["f32"], found["auto"], strict=True):
        assert np.isfinite(exact).all()
        assert exact.std() > 0.1
        assert np.median(np.abs(fast - exact)) < FACTORS.get(type.name, LARGEST_ERROR) * exact.std()
    for logits in found.values():
        # one prompt or token by token: the same up to rounding of sums
        assert np.median(np.abs(logits[3] - logits[1])) < LARGEST_ERROR * logits[1].std()
    if type.rows > 1:
        # groups of rows are taken apart when they are copied, or at every use
        with ikq.Model.load(path, n_ctx=N_CTX, n_threads=2, mmap="on") as model:
            assert model.memory.copied == 0
            assert np.array_equal(model.logits(tokens(3)), found["auto"][1])


@pytest.mark.filterwarnings("ignore::ikq.errors.NotTernaryWarning")
@pytest.mark.parametrize("type", [t for t in STORABLE if interleaved(t)], ids=lambda t: t.name)
def test_repacking_while_loading_changes_nothing(parts: Parts, tmp_path: Path, type: ikq.QuantType) -> None:
    """Sums are taken in the same order: equal, where 1e-5 would do."""
    path = tmp_path / "typed.gguf"
    with ikq.GGUFReader(mixture(parts, tmp_path / "f32.gguf", "F32", "F32")) as reader:
        tensors: dict[str, object] = {}
        for name, tensor in reader.tensors.items():
            is_matrix = tensor.ndim > 1 and name != "blk.0.ffn_gate_inp.weight"
            x = tensor.dequantize()
            tensors[name] = ikq.QTensor.quantize(x, type) if is_matrix else x
        write(path, dict(reader.metadata), tensors)
        n_matrices = sum(isinstance(t, ikq.QTensor) for t in tensors.values())
    found = []
    for repack in (False, True):
        with ikq.Model.load(path, n_ctx=N_CTX, n_threads=2, repack=repack, mmap="on") as model:
            found.append(
                np.concatenate([*(model.logits(tokens(n)) for n in (1, 3, 40)), model.eval(tokens(2))])
            )
            why, copied = model.explain().why_memory, model.memory.copied
    # all but the embedding, of which single rows are read
    assert f"{n_matrices - 1} of {len(tensors)} tensors repacked" in why
    assert copied > 0
    assert found[0].std() > 0.1
    assert np.abs(found[1] - found[0]).max() <= 1e-5 * np.abs(found[0]).max()


def test_repacking_leaves_parts_that_are_no_whole_groups(parts: Parts, tmp_path: Path) -> None:
    """Merged experts of 20 rows each: 40 rows are whole groups of 8, their halves are not."""
    rng = np.random.default_rng(4)
    with ikq.GGUFReader(mixture(parts, tmp_path / "f32.gguf", "F32", "F32")) as reader:
        tensors = {name: t.dequantize() for name, t in reader.tensors.items()}
        meta = dict(reader.metadata) | {"qwen3moe.expert_feed_forward_length": 20}
    for role in ("gate", "up", "down"):
        del tensors[f"blk.0.ffn_{role}_exps.weight"]
    arrays = {"gate_up": (5, 40, 256), "down": (5, 256, 20)}
    for name, shape in arrays.items():
        x = rng.standard_normal(shape, dtype=np.float32) / 16
        tensors[f"blk.0.ffn_{name}_exps.weight"] = ikq.QTensor.quantize(x, "Q8_0") if name == "gate_up" else x
    path = write(tmp_path / "merged.gguf", meta, tensors)
    found = []
    for repack in (False, True):
        with ikq.Model.load(path, n_ctx=N_CTX, n_threads=1, repack=repack) as model:
            found.append(model.logits(tokens(9)))
    assert np.array_equal(*found)


def test_threads_change_no_bit(tiny_moe: Path) -> None:
    """Also where keys are cut into ranges, which happens from 1024 positions on."""
    found = []
    for n_threads in (1, 2, 5):
        with ikq.Model.load(tiny_moe, n_ctx=1200, n_threads=n_threads) as model:
            prompt = [(61 * i) % 4000 for i in range(1100)]
            found.append(
                np.concatenate([model.eval(prompt, want="last"), model.eval([7]), model.eval([8, 9])])
            )
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
