"""Models run from every tensor type that a file may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import N_CTX, Parts, mixture, tokens, write

import ikq

STORABLE = [t for t in ikq.QuantType if t.is_storable and t.can_encode]


def twin(type: ikq.QuantType) -> ikq.QuantType | None:
    """The interleaved form of a type with the same codes, if there is one."""
    found = [t for t in ikq.QuantType if t.base == type and t.is_storable]
    return found[0] if found and type != ikq.QuantType.F16 else None


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
        assert np.isfinite(fast).all()
    # of forty tokens, since where two experts are nearly alike to the router rounding chooses between them
    exact, fast = found["f32"][2], found["auto"][2]
    errors = np.median(np.abs(fast - exact), axis=-1)
    assert (errors < FACTORS.get(type.name, LARGEST_ERROR) * exact.std()).mean() >= 0.9
    for logits in found.values():
        # one prompt or token by token
        assert np.array_equal(logits[3], logits[1])
    # rows are re-arranged when they are copied, or at every use
    with ikq.Model.load(path, n_ctx=N_CTX, n_threads=2, mmap="on") as model:
        assert model.memory.copied == 0
        for n, logits in zip((1, 3, 40), found["auto"], strict=False):
            assert np.array_equal(model.logits(tokens(n)), logits)


@pytest.mark.filterwarnings("ignore::ikq.errors.NotTernaryWarning")
@pytest.mark.parametrize("type", [t for t in STORABLE if twin(t)], ids=lambda t: t.name)
def test_interleaved_files_run_as_plain_ones(parts: Parts, tmp_path: Path, type: ikq.QuantType) -> None:
    """The same codes in other places: the same bits."""
    files = [tmp_path / "plain.gguf", tmp_path / "interleaved.gguf"]
    with ikq.GGUFReader(mixture(parts, tmp_path / "f32.gguf", "F32", "F32")) as reader:
        plain: dict[str, object] = {}
        other: dict[str, object] = {}
        for name, tensor in reader.tensors.items():
            is_matrix = tensor.ndim > 1 and name not in ("token_embd.weight", "blk.0.ffn_gate_inp.weight")
            x = tensor.dequantize()
            plain[name] = ikq.QTensor.quantize(x, type) if is_matrix else x
            other[name] = repacked(plain[name], twin(type)) if is_matrix else x
        for file, tensors in zip(files, (plain, other), strict=True):
            write(file, dict(reader.metadata), tensors)
    found = []
    for file in files:
        with ikq.Model.load(file, n_ctx=N_CTX, n_threads=2) as model:
            found.append(np.concatenate([model.logits(tokens(n)) for n in (1, 3, 40)]))
    assert found[0].std() > 0.1
    assert np.array_equal(*found)


def repacked(tensor: ikq.QTensor, type: ikq.QuantType) -> ikq.QTensor:
    raw = np.asarray(tensor.raw).reshape(-1, ikq.row_bytes(tensor.type, tensor.shape[-1]))
    return ikq.QTensor(ikq.repack(raw, tensor.type, type, tensor.shape[-1]), type, tensor.shape)


def test_halves_of_merged_experts_that_are_no_whole_bands(parts: Parts, tmp_path: Path) -> None:
    """Merged experts of 20 rows each: neither their halves nor all their rows are bands of 16."""
    rng = np.random.default_rng(4)
    with ikq.GGUFReader(mixture(parts, tmp_path / "f32.gguf", "F32", "F32")) as reader:
        tensors = {name: t.dequantize() for name, t in reader.tensors.items()}
        meta = dict(reader.metadata) | {"qwen3moe.expert_feed_forward_length": 20}
    for role in ("gate", "up", "down"):
        del tensors[f"blk.0.ffn_{role}_exps.weight"]
    both, down = (rng.standard_normal(s, dtype=np.float32) / 16 for s in ((5, 40, 256), (5, 256, 20)))
    both = ikq.QTensor.quantize(both, "Q8_0").dequantize()
    experts = {"gate": both[:, :20], "up": both[:, 20:], "down": down}
    apart = tensors | {f"blk.0.ffn_{role}_exps.weight": x for role, x in experts.items()}
    merged = tensors | {
        "blk.0.ffn_gate_up_exps.weight": ikq.QTensor.quantize(both, "Q8_0"),
        "blk.0.ffn_down_exps.weight": down,
    }
    found = []
    for name, written in (("apart", apart), ("merged", merged)):
        path = write(tmp_path / f"{name}.gguf", meta, written)
        for mmap in ("auto", "on"):
            with ikq.Model.load(path, n_ctx=N_CTX, n_threads=1, compute="f32", mmap=mmap) as model:
                found.append(model.logits(tokens(9)))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[2], found[3])
    assert np.abs(found[0] - found[2]).max() <= 1e-5 * np.abs(found[0]).max()


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
