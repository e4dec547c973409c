"""Errors under covariances of inputs, and the imatrix that covariances contain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from covariance_files import inputs, product_error, write_covariances

import ikq
from ikq.cli import run_command
from ikq.recipes.covariances import InputCovariances, write_diagonal
from ikq.recipes.errors import measure_errors
from ikq.recipes.problem import read_problem
from ikq.recipes.recipe import measure_costs

Q4_0, Q2_K = ikq.QuantType.Q4_0, ikq.QuantType.Q2_K
K, ROWS, TOKENS = 256, 64, 3000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix, and one per expert."""
    file = tmp_path_factory.mktemp("covariances") / "m.gguf"
    rng = np.random.default_rng(0)
    with ikq.GGUFWriter(file, {"general.architecture": "llama"}) as writer:
        writer.add_tensor("blk.0.attn_q.weight", rng.standard_normal((ROWS, K), dtype=np.float32))
        writer.add_tensor("blk.0.ffn_down_exps.weight", rng.standard_normal((2, ROWS, K), dtype=np.float32))
    return file


def activations() -> dict[str, list[np.ndarray]]:
    return {
        "blk.0.attn_q.weight": [inputs(K, TOKENS)],
        "blk.0.ffn_down_exps.weight": [inputs(K, TOKENS, 1), inputs(K, TOKENS // 2, 2)],
    }


@pytest.fixture(scope="module")
def covariances(tmp_path_factory: pytest.TempPathFactory) -> ikq.Covariances:
    file = tmp_path_factory.mktemp("covariances") / "c.gguf"
    sites = {
        name: (np.stack([x.T @ x for x in xs]), [float(len(x)) for x in xs])
        for name, xs in activations().items()
    }
    return ikq.Covariances(write_covariances(file, sites))


def test_errors_are_those_of_products(model: Path, covariances: ikq.Covariances, tmp_path: Path) -> None:
    statistics = tmp_path / "d.gguf"
    write_diagonal(covariances, statistics)
    problem = read_problem(model, ikq.Imatrix(statistics), [Q4_0, Q2_K])
    diagonal = measure_errors(problem)
    full = measure_errors(problem, covariances=InputCovariances(covariances))
    # the energy of the product is counted alike, so that coefficients mean the same
    np.testing.assert_array_equal(full.signal, diagonal.signal)
    with ikq.GGUFReader(model) as reader:
        for i, t in enumerate(problem.tensors):
            experts = reader.tensors[t.name].dequantize().reshape(-1, ROWS, K)
            for k, to in enumerate(t.types):
                if to == t.source_type:
                    assert full.relative[i, k] == 0
                    continue
                errors, by_columns, signals = [], [], []
                for w, x in zip(experts, activations()[t.name], strict=True):
                    squares = (x.astype(np.float64) ** 2).mean(axis=0)
                    y = ikq.dequantize(ikq.quantize(w, to, squares.astype(np.float32) * 1.0001), to)
                    errors.append(product_error(x, w, y) / len(x))
                    by_columns.append(float(((w - y).astype(np.float64) ** 2 @ squares).sum()))
                    signals.append(float((w.astype(np.float64) ** 2 @ squares).sum()))
                assert full.relative[i, k] == pytest.approx(sum(errors) / sum(signals), rel=0.05)
                assert diagonal.relative[i, k] == pytest.approx(sum(by_columns) / sum(signals), rel=0.05)
                # columns that go together make something else of errors
                assert full.relative[i, k] != pytest.approx(diagonal.relative[i, k], rel=1e-4)


def test_the_diagonal_is_an_imatrix(covariances: ikq.Covariances, tmp_path: Path) -> None:
    file = tmp_path / "d.gguf"
    write_diagonal(covariances, file)
    found = ikq.Imatrix(file)
    for name, xs in activations().items():
        expected = np.concatenate([(x.astype(np.float64) ** 2).mean(axis=0) for x in xs])
        np.testing.assert_allclose(np.ravel(found[name].values), expected, rtol=1e-4)


def test_experts_that_no_token_reached_and_few_tokens(tmp_path: Path) -> None:
    x = inputs(K, 40)
    sums = np.stack([x.T @ x, np.zeros((K, K), np.float32)])
    file = write_covariances(tmp_path / "c.gguf", {"blk.0.ffn_down_exps.weight": (sums, [40.0, 0.0])})
    full = InputCovariances(ikq.Covariances(file))
    found = full.of("blk.0.ffn_down_exps.weight", 2, K)
    assert found is not None
    np.testing.assert_array_equal(found[0], found[1])
    # forty tokens span forty directions; an error in another one counts a little all the same
    assert np.linalg.eigvalsh(found[0].astype(np.float64))[0] > 0
    assert full.of("blk.0.attn_q.weight", 1, K) is None
    with pytest.raises(ikq.RefusedError, match="another model"):
        full.of("blk.0.ffn_down_exps.weight", 3, K)
    with pytest.raises(ikq.RefusedError, match="another model"):
        full.of("blk.0.ffn_down_exps.weight", 2, 128)


def test_of_another_model(tiny_moe: Path, covariances: ikq.Covariances, tmp_path: Path) -> None:
    statistics = Path(__file__).resolve().parents[1] / "data" / "imatrix-plain.dat"
    problem = read_problem(tiny_moe, ikq.Imatrix(statistics), [Q4_0])
    with pytest.raises(ikq.RefusedError, match="another model"):
        measure_costs(problem, covariances=InputCovariances(covariances))


def test_covariances_alone(tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a text to a recipe and its file, with nothing but covariances."""
    text = tmp_path / "text.txt"
    text.write_text("def read(path):\n    with open(path) as f:\n        return f.read()\n\n" * 60)
    covariance, recipe = tmp_path / "m.cov", tmp_path / "r.txt"
    collect = ["imatrix", "-m", tiny_moe, "-f", text, "-o", tmp_path / "m.imatrix", "-c", 128]
    assert run_command([str(w) for w in (*collect, "--chunks", 6, "--covariance", covariance)]) == 0
    words = ["recipe", str(tiny_moe), "--covariance", str(covariance), "--bpw", "4"]
    few = ["--types", "q8_0,iq4_k,iq3_k,iq2_k"]
    capsys.readouterr()
    assert run_command([*words, *few]) == 2
    assert "-o FILE" in capsys.readouterr().err
    assert run_command([*words, *few, "-o", str(recipe)]) == 0
    printed = capsys.readouterr().out
    statistics = tmp_path / "r.imatrix.gguf"
    assert str(statistics) in recipe.read_text()
    out = tmp_path / "o.gguf"
    quantize = ["quantize", "--recipe", str(recipe), "--imatrix", str(statistics), "--allow-missing"]
    assert run_command([*quantize, str(tiny_moe), str(out)]) == 0
    assert out.stat().st_size == int(printed.split("size: ")[1].split()[0])
    # the same again replaces it by itself; another imatrix of that name stays
    own = statistics.read_bytes()
    assert run_command([*words, *few, "-o", str(recipe)]) == 0
    assert statistics.read_bytes() == own
    other = (tmp_path / "m.imatrix").read_bytes()
    statistics.write_bytes(other)
    capsys.readouterr()
    assert run_command([*words, *few, "-o", str(recipe)]) == 2
    assert str(statistics) in capsys.readouterr().err
    assert statistics.read_bytes() == other
