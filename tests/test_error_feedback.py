"""Error feedback: what it gains, what it does with odd inputs, and that its bytes depend on nothing else."""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from covariance_files import inputs, product_error, write_covariances
from partial_outputs import noted

import ikq

TYPES = [
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
    *("IQ2_K", "IQ3_K", "IQ4_K", "IQ5_K", "IQ6_K", "IQ2_KS", "IQ3_KS", "IQ4_KS", "IQ5_KS"),
    # codes of several columns
    *("IQ4_KSS", "IQ2_KL", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    *("IQ1_KT", "IQ2_KT", "IQ3_KT", "IQ4_KT"),
]
NAME = "blk.0.ffn_down.weight"
K = 512


def model(path: Path, weights: np.ndarray, name: str = NAME) -> Path:
    with ikq.GGUFWriter(path, {"general.architecture": "llama"}) as writer:
        writer.add_tensor(name, weights)
    return path


def quantized(source: Path, type: str, covariances: Path | None, **options: object) -> np.ndarray:
    """The weights of the only tensor after a way to a file and back."""
    out = source.with_name("out.gguf")
    options = {
        "pure": True,
        "restart": True,
        "n_threads": 1,
        "ignore_imatrix_rules": True,
        "clamp": True,
    } | options
    ikq.quantize_file(source, out, type, error_feedback=covariances, **options)
    with ikq.GGUFReader(out) as reader:
        (tensor,) = reader.tensors.values()
        return np.array(tensor.dequantize())


def covariances(path: Path, x: np.ndarray, name: str = NAME) -> Path:
    return write_covariances(path, {name: ((x.T @ x)[np.newaxis], [len(x)])})


@pytest.fixture(scope="module")
def text() -> str:
    files = sorted(Path(ikq.__file__).parent.joinpath("evaluate").glob("*.py"))
    return " ".join(path.read_text() for path in files)


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((96, K), dtype=np.float32) / 8


@pytest.mark.parametrize("type", TYPES)
def test_products_of_other_inputs_are_nearer(tmp_path: Path, weights: np.ndarray, type: str) -> None:
    source = model(tmp_path / "m.gguf", weights)
    cov = covariances(tmp_path / "m.cov", inputs(K, 4096))
    held_out = inputs(K, 1024, seed=1)
    plain = product_error(held_out, weights, quantized(source, type, None))
    found = product_error(held_out, weights, quantized(source, type, cov))
    assert found < 0.85 * plain


@pytest.mark.parametrize("type", ["Q3_K", "IQ4_KS", "IQ2_XXS", "IQ1_KT"])
def test_long_rows(tmp_path: Path, type: str) -> None:
    k = 1792
    weights = np.random.default_rng(7).standard_normal((20, k), dtype=np.float32) / 8
    source = model(tmp_path / "m.gguf", weights)
    cov = covariances(tmp_path / "m.cov", inputs(k, 4 * k))
    held_out = inputs(k, 512, seed=1)
    plain = product_error(held_out, weights, quantized(source, type, None))
    assert product_error(held_out, weights, quantized(source, type, cov)) < 0.85 * plain


def test_no_code_of_a_column_could_be_better(tmp_path: Path) -> None:
    """When codes have been chosen again, changing any one by a step makes the error of products larger."""
    k, n = 256, 4096
    weights = np.random.default_rng(3).standard_normal((32, k), dtype=np.float32) / 8
    source = model(tmp_path / "m.gguf", weights)
    x = inputs(k, n)
    cov = covariances(tmp_path / "m.cov", x)
    h = (x.T @ x).astype(np.float64)
    h = h / np.diag(h).mean() + (0.05 + k / n) * np.eye(k)

    def better(cov: Path | None) -> float:
        """The share of codes for which a neighbour would gain more than rounding explains."""
        y = quantized(source, "Q4_0", cov, biased=True)
        with ikq.GGUFReader(tmp_path / "out.gguf") as reader:
            blocks = np.array(reader.tensors[NAME].raw).reshape(len(weights), k // 32, 18)
        d = np.repeat(
            np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float64), 32, axis=1
        )
        g, level = (weights - y) @ h, np.rint(y / d)
        found = np.zeros(y.shape, bool)
        for step in (-1, 1):
            cost = np.square(d) * np.diag(h)
            found |= (2 * step * d * g - cost > 0.02 * cost) & (level + step >= -8) & (level + step <= 7)
        return float(found.mean())

    assert better(None) > 0.05
    assert better(cov) < 1e-3


ROUNDS = ["Q4_0", "Q4_1", "Q4_K", "IQ3_K", "IQ4_KS", "IQ2_XXS", "IQ1_S", "IQ4_KT", "IQ4_KSS", "IQ2_KL"]


@pytest.mark.parametrize("type", ROUNDS)
def test_rounds_make_the_error_of_every_row_smaller(tmp_path: Path, weights: np.ndarray, type: str) -> None:
    source = model(tmp_path / "m.gguf", weights)
    x = inputs(K, 4096)
    cov = covariances(tmp_path / "m.cov", x)
    h = (x.T @ x).astype(np.float64)
    h = h / np.diag(h).mean() + (0.05 + K / len(x)) * np.eye(K)

    def errors(**options: object) -> np.ndarray:
        d = weights - quantized(source, type, cov, **options).astype(np.float64)
        return ((d @ h) * d).sum(1)

    normal, most = errors(biased=True), errors(biased=True, effort="max")
    # products of integers say what is smaller; they have errors of a thousandth
    assert (most < 1.001 * normal).all()
    assert most.sum() < 0.995 * normal.sum()
    # and scales are without bias again
    y = quantized(source, type, cov, effort="max").astype(np.float64)
    xh = weights @ h
    gains = (xh * y).sum(1) / (xh * weights).sum(1)
    # gains are measured by half of the columns of x R; in the others errors go with x by chance, in 256 of them
    chance = np.sqrt(errors(effort="max") / (xh * weights).sum(1) / 256)
    assert (np.abs(gains - 1) < 5 * chance).all()
    assert abs(gains.mean() - 1) < 5 * chance.mean() / len(gains) ** 0.5
    assert errors(effort="max").sum() < 0.998 * errors().sum()


def test_rounds_go_with_error_feedback(tmp_path: Path, weights: np.ndarray) -> None:
    source = model(tmp_path / "m.gguf", weights)
    with pytest.raises(ikq.RefusedError, match="--effort max goes with --error-feedback or --sequential"):
        quantized(source, "Q4_K", None, effort="max")
    cov = covariances(tmp_path / "m.cov", inputs(K, 1024))
    with pytest.raises(ikq.RefusedError, match="expected one of normal, max"):
        quantized(source, "Q4_K", cov, effort="most")


def test_types_without_feedback_and_interleaved_ones(tmp_path: Path, weights: np.ndarray) -> None:
    source = model(tmp_path / "m.gguf", weights)
    cov = covariances(tmp_path / "m.cov", inputs(K, 4096))
    for name in ("Q8_0", "MXFP4", "IQ1_S_R4"):
        assert np.array_equal(quantized(source, name, cov), quantized(source, name, None))
    for name in ("IQ4_KS", "Q4_K", "IQ2_XXS", "IQ3_S"):
        assert np.array_equal(quantized(source, f"{name}_R4", cov), quantized(source, name, cov))


def test_the_documentation_names_all_types_without_it(tmp_path: Path) -> None:
    source = model(tmp_path / "m.gguf", np.zeros((16, K), np.float32))
    cov = covariances(tmp_path / "m.cov", inputs(K, K))

    options = {"error_feedback": cov, "ignore_imatrix_rules": True}

    def has_it(type: ikq.QuantType) -> bool:
        rule = f"{NAME}={type.name}"
        plan = ikq.plan_quantization(source, tmp_path / "o.gguf", "Q8_0", custom_q=rule, **options)
        (tensor,) = plan.tensors
        assert tensor.to_type == type
        return tensor.feedback == "used"

    page = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text()
    section = page.partition("### Types without error feedback\n")[2].partition("\n## ")[0]
    table = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    # without the head and the rule under it
    named = [name.strip() for cell in table[2:] for name in cell.split(",")]
    without = {each.name for each in ikq.QuantType if each.can_encode and not has_it(each)}
    assert len(named) == len(set(named))
    assert set(named) == without


@pytest.mark.parametrize("type", TYPES)
def test_zero_rows_dead_columns_and_large_numbers(tmp_path: Path, weights: np.ndarray, type: str) -> None:
    odd = weights.copy()
    odd[3] = 0
    odd[5] *= 1e-30
    odd[40] *= 1e34
    odd[41, 7] = 3e38
    x = inputs(K, 4096)
    x[:, 10:20] = 0
    x[:, 300] *= 1e6
    cov = covariances(tmp_path / "m.cov", x)
    found = quantized(model(tmp_path / "m.gguf", odd), type, cov)
    assert np.isfinite(found).all()
    assert not found[3].any()
    # a row has nothing to do with the rows beside it
    rows = [0, 1, 2, 4, 50]
    alone = quantized(model(tmp_path / "m.gguf", odd[rows]), type, cov)
    assert np.array_equal(alone, found[rows])


@pytest.mark.parametrize(
    "type", ["Q2_K", "IQ3_K", "IQ4_KS", "Q4_0", "IQ4_KSS", "IQ2_KL", "IQ2_XXS", "IQ1_M", "IQ2_KT"]
)
def test_inputs_that_say_little_do_no_harm(tmp_path: Path, weights: np.ndarray, type: str) -> None:
    source = model(tmp_path / "m.gguf", weights)
    white = np.random.default_rng(2).standard_normal((1024, K)).astype(np.float32)
    plain = product_error(white, weights, quantized(source, type, None))
    # columns that have nothing to do with one another
    cov = write_covariances(
        tmp_path / "a.cov", {NAME: (1e4 * np.eye(K, dtype=np.float32)[np.newaxis], [1e4])}
    )
    assert product_error(white, weights, quantized(source, type, cov)) <= 1.01 * plain
    # few tokens, which look as if there were few directions; of fewer nothing can be said
    held_out = inputs(K, 1024, seed=1)
    unfed = quantized(source, type, None)
    plain = product_error(held_out, weights, unfed)
    few = quantized(source, type, covariances(tmp_path / "b.cov", inputs(K, K // 2)))
    assert not np.array_equal(few, unfed)
    assert product_error(held_out, weights, few) <= plain
    fewer = quantized(source, type, covariances(tmp_path / "e.cov", inputs(K, K // 2 - 1)))
    assert np.array_equal(fewer, unfed)
    # no token at all
    none = write_covariances(tmp_path / "d.cov", {NAME: (np.zeros((1, K, K), np.float32), [0.0])})
    assert np.array_equal(quantized(source, type, none), quantized(source, type, None))


def singular(name: str, k: int, n: int) -> np.ndarray:
    """Inputs with fewer directions than columns."""
    rng = np.random.default_rng(5)
    x = inputs(k, n)
    match name:
        case "one direction":
            x = np.outer(rng.standard_normal(n), rng.standard_normal(k))
        case "half as many directions":
            x = rng.standard_normal((n, k // 2)) @ rng.standard_normal((k // 2, k))
        case "dead columns":
            x[:, ::3] = 0
        case "columns twice":
            x[:, 1::2] = x[:, ::2]
        case "columns twice, far apart, one turned":
            x[:, k // 2 :] = -x[:, : k // 2]
        case "one token":
            x[:] = x[:1]
        case "one token of two loud columns":
            x[:] = 0
            x[:, 7], x[:, 8] = 100, 50
    return x.astype(np.float32)


SINGULAR = [
    *("one direction", "half as many directions", "dead columns", "columns twice"),
    *("columns twice, far apart, one turned", "one token", "one token of two loud columns"),
]


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("type", ["Q4_0", "Q2_K", "IQ2_XXS", "IQ2_KT"])
def test_singular_covariances_do_no_harm(tmp_path: Path, type: str, name: str) -> None:
    """Where there are fewer directions than columns, errors are put where no input is: at most half of them is left."""
    k = 256
    x = singular(name, k, 1024)
    assert np.linalg.matrix_rank(x) < 0.7 * k
    w = np.random.default_rng(5).standard_normal((32, k), dtype=np.float32) / 8
    source = model(tmp_path / "m.gguf", w)
    plain = product_error(x, w, quantized(source, type, None))
    found = product_error(x, w, quantized(source, type, covariances(tmp_path / "m.cov", x)))
    # asked is not to be worse than 1.01 of it
    assert found <= 0.5 * plain


def test_experts_have_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((2, 32, 256), dtype=np.float32)
    x = [inputs(256, 2048, seed=5), rng.permutation(inputs(256, 2048, seed=6), axis=1)]
    name = "blk.0.ffn_down_exps.weight"
    source = model(tmp_path / "m.gguf", w, name)
    sums = np.stack([a.T @ a for a in x])
    both = write_covariances(tmp_path / "m.cov", {name: (sums, [2048, 2048])})
    found = quantized(source, "IQ3_K", both)
    for expert in range(2):
        cov = covariances(tmp_path / "one.cov", x[expert])
        alone = quantized(model(tmp_path / "one.gguf", w[expert]), "IQ3_K", cov)
        assert np.array_equal(found[expert], alone)
    # up reads what gate reads
    source = model(tmp_path / "m.gguf", w, "blk.0.ffn_up_exps.weight")
    stream = covariances(tmp_path / "s.cov", x[0], "blk.0.ffn_gate_exps.weight")
    assert np.array_equal(quantized(source, "IQ3_K", stream)[0], found[0])


def test_experts_that_few_tokens_reached_are_named(tmp_path: Path) -> None:
    w = np.random.default_rng(3).standard_normal((3, 32, 256), dtype=np.float32)
    x = inputs(256, 2048, seed=5)
    name = "blk.0.ffn_down_exps.weight"
    source = model(tmp_path / "m.gguf", w, name)
    counts = [127, 2048, 0]
    sums = np.stack([x[:n].T @ x[:n] for n in counts])
    cov = write_covariances(tmp_path / "m.cov", {name: (sums, counts)})
    found, plain = (quantized(source, "IQ3_K", c) for c in (cov, None))
    assert [np.array_equal(a, b) for a, b in zip(found, plain, strict=True)] == [True, False, True]
    command = [sys.executable, "-m", "ikq", "quantize", "--pure", "--dry-run", "--ignore-imatrix-rules"]
    command += ["--error-feedback", str(cov), str(source), str(tmp_path / "o.gguf"), "IQ3_K"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"without, because fewer than 128 tokens reached them: 2 of 3 experts of {name}" in done.stdout
    assert "error feedback: 1 of 1 tensors" in done.stdout
    # one matrix, which has none then
    model(source, w[0], NAME.replace("0", "1", 1))
    covariances(cov, x[:127], NAME.replace("0", "1", 1))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "error feedback: 0 of 1 tensors" in done.stdout
    assert "without, because fewer than 128 tokens reached them: blk.1." in done.stdout


def test_rows_are_aimed_at_the_products_that_are_wanted(tmp_path: Path, weights: np.ndarray) -> None:
    source = model(tmp_path / "m.gguf", weights)
    # what is met is smaller than what is wanted, and mixed up a little
    mixed = np.eye(K) * 0.9 + 0.02 * np.random.default_rng(8).standard_normal((K, K)) / K**0.5

    def both(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        wanted = inputs(K, n, seed=seed)
        return wanted, (wanted @ mixed).astype(np.float32)

    def error(y: np.ndarray) -> float:
        wanted, met = both(1024, 1)
        return float(np.square(wanted @ weights.T - met @ y.T, dtype=np.float64).sum())

    wanted, met = both(8192, 0)
    sums, cross = (met.T @ met)[np.newaxis], ((wanted - met).T @ met)[np.newaxis]
    cov = write_covariances(tmp_path / "a.cov", {NAME: (sums, [8192])})
    plain = quantized(source, "IQ4_K", cov)
    aimed = quantized(
        source, "IQ4_K", write_covariances(tmp_path / "b.cov", {NAME: (sums, [8192])}, cross={NAME: cross})
    )
    assert error(aimed) < 0.5 * error(plain)
    # nothing else than what is met
    same = write_covariances(tmp_path / "c.cov", {NAME: (sums, [8192])}, cross={NAME: 0 * cross})
    assert np.array_equal(quantized(source, "IQ4_K", same), plain)
    # halves of a text
    halves = [
        write_covariances(tmp_path / f"{i}.cov", {NAME: (sums / 2, [4096])}, cross={NAME: cross / 2})
        for i in range(2)
    ]
    ikq.Covariances.merge(halves, tmp_path / "d.cov")
    assert np.array_equal(quantized(source, "IQ4_K", tmp_path / "d.cov"), aimed)
    with pytest.raises(ikq.FormatError, match="another form"):
        ikq.Covariances.merge([halves[0], cov], tmp_path / "e.cov")


def test_what_products_lack_is_made_good(tmp_path: Path, weights: np.ndarray) -> None:
    source = model(tmp_path / "m.gguf", weights)
    rng = np.random.default_rng(2)
    before = (0.2 * np.abs(weights).mean() * rng.standard_normal(weights.shape)).astype(np.float32)

    def both(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs, and the error of what the products are added to: a part goes with the inputs, a part does not."""
        met = inputs(K, n, seed=seed)
        noise = np.random.default_rng(seed).standard_normal((n, len(weights)))
        return met, (met @ before.T + 0.1 * noise).astype(np.float32)

    def error(y: np.ndarray) -> float:
        met, missing = both(1024, 1)
        return float(np.square(met @ (weights - y).T + missing, dtype=np.float64).sum())

    met, missing = both(8192, 0)
    sums, products = (met.T @ met)[np.newaxis], (missing.T @ met)[np.newaxis]
    plain = quantized(source, "IQ4_K", write_covariances(tmp_path / "a.cov", {NAME: (sums, [8192])}))
    cov = write_covariances(tmp_path / "b.cov", {NAME: (sums, [8192])}, products={NAME: products})
    aimed = quantized(source, "IQ4_K", cov)
    assert error(aimed) < 0.5 * error(plain)
    assert np.array_equal(quantized(source, "IQ4_K", cov, n_threads=3), aimed)
    halves = [
        write_covariances(tmp_path / f"{i}.cov", {NAME: (sums / 2, [4096])}, products={NAME: products / 2})
        for i in range(2)
    ]
    ikq.Covariances.merge(halves, tmp_path / "c.cov")
    assert np.array_equal(quantized(source, "IQ4_K", tmp_path / "c.cov"), aimed)
    cross = write_covariances(tmp_path / "d.cov", {NAME: (sums, [8192])}, cross={NAME: 0 * sums})
    with pytest.raises(ikq.FormatError, match="another form"):
        ikq.Covariances.merge([halves[0], cross], tmp_path / "e.cov")
    for wrong, match in (
        (products[:, :-1], f"products of `{NAME}` have"),
        (products.reshape(1, -1)[:, :-1], "out_cross. are not those of 512 columns"),
        (np.full_like(products, np.nan), "what is wanted is NaN"),
    ):
        bad = write_covariances(tmp_path / "bad.cov", {NAME: (sums, [8192])}, products={NAME: wrong})
        with pytest.raises(ikq.FormatError, match=match):
            quantized(source, "IQ4_K", bad)
    bad = write_covariances(
        tmp_path / "bad.cov", {NAME: (sums, [8192])}, cross={NAME: sums}, products={NAME: products}
    )
    with pytest.raises(ikq.FormatError, match="both .* are there"):
        quantized(source, "IQ4_K", bad)


def test_damaged_and_foreign_files(tmp_path: Path, weights: np.ndarray) -> None:
    source = model(tmp_path / "m.gguf", weights)
    x = inputs(K, 1024)
    good = (x.T @ x)[np.newaxis]

    def refused(error: type[Exception], match: str, path: Path, **options: object) -> None:
        with pytest.raises(error, match=match):
            quantized(source, "IQ4_KS", path, **options)

    whole = covariances(tmp_path / "good.cov", x).read_bytes()
    (tmp_path / "cut.cov").write_bytes(whole[: len(whole) // 2])
    refused(ikq.FormatError, "cut.cov", tmp_path / "cut.cov")
    refused(FileNotFoundError, "no.cov", tmp_path / "no.cov")
    other = write_covariances(tmp_path / "other.cov", {NAME: (good, [1024])}, kind="imatrix")
    refused(ikq.FormatError, "another kind", other)
    for value, match in ((np.nan, "a sum is NaN"), (-1.0, "a sum of squares is -1")):
        damaged = good.copy()
        damaged[0, 9, 9] = value
        refused(ikq.FormatError, match, write_covariances(tmp_path / "bad.cov", {NAME: (damaged, [1024])}))
    damaged = good.copy()
    damaged[0, 9, 2] = 1e30
    bad = write_covariances(tmp_path / "bad.cov", {NAME: (damaged, [1024])})
    refused(ikq.FormatError, "blk.0.ffn_down.weight.*is none", bad)
    bad = write_covariances(
        tmp_path / "bad.cov", {NAME: (good, [1024])}, cross={NAME: np.full((1, K, K), np.inf, np.float32)}
    )
    refused(ikq.FormatError, "what is wanted is inf", bad)
    bad = write_covariances(
        tmp_path / "bad.cov", {NAME: (good, [1024])}, cross={NAME: np.zeros((1, K, K - 1), np.float32)}
    )
    refused(ikq.FormatError, "in_cross. are not those of 512 columns", bad)
    narrow = covariances(tmp_path / "narrow.cov", inputs(256, 1024))
    refused(ikq.RefusedError, "256 columns.*has 512 columns", narrow)
    foreign = covariances(tmp_path / "foreign.cov", x, "blk.0.ffn_foreign.weight")
    refused(ikq.RefusedError, "no covariance for any tensor", foreign)


def test_covariances_and_an_imatrix_of_other_inputs(tmp_path: Path, weights: np.ndarray) -> None:
    """Fewer tokens are accepted; what has nothing to do with the imatrix is refused, by its figures."""
    source = model(tmp_path / "m.gguf", weights)
    # columns of their own loudness, and a few tokens that are far louder than all others, as what `ffn_down` reads
    loudness = np.exp(0.6 * np.random.default_rng(1).standard_normal(K))

    def tokens(n: int, seed: int) -> np.ndarray:
        x = inputs(K, n, seed) * loudness
        at = np.random.default_rng(seed).integers(0, K, n // 100)
        x[np.arange(len(at)), at] *= 100
        return x.astype(np.float32)

    def imatrix(x: np.ndarray) -> Path:
        entry = ikq.ActivationEntry(np.square(x, dtype=np.float64).sum(0)[np.newaxis], np.array([len(x)]))
        ikq.ActivationStatistics({NAME: entry}).write(tmp_path / "i.gguf")
        return tmp_path / "i.gguf"

    whole = imatrix(tokens(8192, 0))
    for n in (K // 2, K, 1024):
        quantized(source, "IQ4_KS", covariances(tmp_path / "few.cov", tokens(n, n)), imatrix=whole)
    other = covariances(tmp_path / "other.cov", tokens(1024, 1)[:, ::-1])
    with pytest.raises(ikq.RefusedError) as refused:
        quantized(source, "IQ4_KS", other, imatrix=whole)
    for words in (
        rf"covariances of {tmp_path}/other.cov \(1024 tokens of the input of `{NAME}`\)",
        rf"imatrix {whole} \(8192 tokens\)",
        r"typically \d+\.\d times apart.* correlation of -?0\.\d",
        r"one of both is of another model, or changed",
        r"the same run: `ikq imatrix -m MODEL -f TEXT -o IMATRIX --covariance COVARIANCES`",
    ):
        assert re.search(words, str(refused.value)), words
    # of so few tokens nothing is used
    unused = covariances(tmp_path / "other.cov", tokens(K // 2 - 1, 1)[:, ::-1])
    quantized(source, "IQ4_KS", unused, imatrix=whole)


def test_an_imatrix_of_another_run(tiny_moe: Path, tmp_path: Path, text: str) -> None:
    """Covariances of the model are told from those of another one by its norms, so it must be the imatrix."""
    with ikq.Model.load(tiny_moe, n_ctx=512, n_threads=2) as loaded:
        ids = loaded.tokenize(text)
        with loaded.collect_activations() as collector:
            for at in range(0, 2048, 512):
                loaded.truncate(0)
                loaded.logits(ids[at : at + 512])
        statistics = collector.statistics()
        with loaded.collect_activations(covariance_layers=range(4)) as collector:
            loaded.truncate(0)
            loaded.logits(ids[2048:2560])
        collector.write_covariances(tmp_path / "m.cov")
    options = {"pure": True, "restart": True, "error_feedback": tmp_path / "m.cov"}
    statistics.write(tmp_path / "i.gguf")
    ikq.quantize_file(tiny_moe, tmp_path / "o.gguf", "Q4_0", imatrix=tmp_path / "i.gguf", **options)
    mixed = {
        name: ikq.ActivationEntry(entry.sums[:, ::-1].copy(), entry.counts)
        for name, entry in statistics.items()
    }
    ikq.ActivationStatistics(mixed, n_chunks=4).write(tmp_path / "i.gguf")
    with pytest.raises(
        ikq.RefusedError, match="of a model with this one's norms, so the imatrix is of another model"
    ):
        ikq.quantize_file(tiny_moe, tmp_path / "o.gguf", "Q4_0", imatrix=tmp_path / "i.gguf", **options)


def test_covariances_of_another_model_are_refused(tiny_moe: Path, tmp_path: Path) -> None:
    with ikq.Model.load(tiny_moe, n_ctx=64, n_threads=2) as loaded:
        with loaded.collect_activations(covariance_layers=range(4)) as collector:
            loaded.logits(range(64))
        collector.write_covariances(tmp_path / "m.cov")
    out = tmp_path / "out.gguf"

    def quantize(source: Path) -> None:
        options = {"pure": True, "restart": True, "allow_requantize": True}
        ikq.quantize_file(source, out, "Q4_0", error_feedback=tmp_path / "m.cov", **options)

    quantize(tiny_moe)
    # the same model in another type
    ikq.quantize_file(tiny_moe, tmp_path / "q8.gguf", "Q8_0")
    quantize(tmp_path / "q8.gguf")
    # a model of the same shapes
    other = tmp_path / "other.gguf"
    with ikq.GGUFReader(tiny_moe) as reader, ikq.GGUFWriter(other, reader.metadata) as writer:
        for name, tensor in reader.tensors.items():
            changed = np.array(tensor.dequantize()) * np.float32(1.01)
            writer.add_tensor(name, changed if name == "blk.2.ffn_norm.weight" else tensor)
    with pytest.raises(ikq.RefusedError, match="m.cov are of another model: the norms"):
        quantize(other)
    with ikq.Model.load(other, n_ctx=64, n_threads=2) as loaded:
        with loaded.collect_activations(covariance_layers=range(4)) as collector:
            loaded.logits(range(64))
        collector.write_covariances(tmp_path / "other.cov")
    with pytest.raises(ikq.FormatError, match="another model"):
        ikq.Covariances.merge([tmp_path / "m.cov", tmp_path / "other.cov"], tmp_path / "both.cov")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of many work items, and covariances of its inputs."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(4)
    sites = {}
    with ikq.GGUFWriter(folder / "m.gguf", {"general.architecture": "llama"}) as writer:
        for layer in range(3):
            name = f"blk.{layer}.ffn_down.weight"
            writer.add_tensor(name, rng.standard_normal((3072, K), dtype=np.float32))
            x = inputs(K, 1024, seed=layer)
            sites[name] = ((x.T @ x)[np.newaxis], [1024])
    return folder / "m.gguf", write_covariances(folder / "m.cov", sites)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_begun(journal: Path) -> bool:
    try:
        return any(noted(journal))
    except (FileNotFoundError, AssertionError, struct.error):
        return False


@pytest.mark.parametrize(("type", "effort"), [("IQ4_KS", "normal"), ("IQ2_XXS", "normal"), ("Q4_K", "max")])
def test_threads_and_kills_do_not_show(
    large: tuple[Path, Path], tmp_path: Path, type: str, effort: str
) -> None:
    source, cov = large
    hashes = set()
    for n in (1, 2, 3):
        out = tmp_path / f"{n}.gguf"
        options = {"pure": True, "n_threads": n, "ignore_imatrix_rules": True}
        ikq.quantize_file(source, out, type, error_feedback=cov, effort=effort, **options)
        hashes.add(sha256(out))
    assert len(hashes) == 1
    out = tmp_path / "killed.gguf"
    command = [sys.executable, "-m", "ikq", "quantize", "--pure", "--error-feedback", str(cov)]
    command += ["--effort", effort, "--ignore-imatrix-rules", str(source), str(out), type, "1"]
    for _ in range(20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # something is done
        while process.poll() is None and not is_begun(out.with_name("killed.gguf.journal")):
            time.sleep(0.002)
        process.kill()
        process.wait()
        if not out.exists():
            break
        out.unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resumed:" in done.stdout
    assert "error feedback: 3 of 3 tensors" in done.stdout
    assert {sha256(out)} == hashes


def test_what_is_reused_has_the_same_covariances(large: tuple[Path, Path], tmp_path: Path) -> None:
    source, cov = large
    old, out = tmp_path / "old.gguf", tmp_path / "out.gguf"
    options = {"pure": True, "n_threads": 2}
    ikq.quantize_file(source, old, "Q3_K", error_feedback=cov, **options)

    def reused(covariances: Path | None, **more: object) -> list[str]:
        more = {"error_feedback": covariances, "reuse": old, "restart": True} | options | more
        result = ikq.quantize_file(source, out, "Q3_K", **more)
        return [outcome.how for outcome in result.outcomes]

    assert reused(cov) == ["reused"] * 3
    assert reused(None) == ["encoded"] * 3
    assert reused(cov, effort="max") == ["encoded"] * 3
    assert reused(cov, effort="max", reuse=out.rename(tmp_path / "max.gguf")) == ["reused"] * 3
    # one of three inputs has changed
    sites = {
        name: (site.sums, list(site.counts)) for site in ikq.Covariances(cov) for name, _ in site.tensors
    }
    name = "blk.1.ffn_down.weight"
    sites[name] = (sites[name][0] * np.float32(1.5), sites[name][1])
    changed = write_covariances(tmp_path / "changed.cov", sites)
    assert reused(changed) == ["reused", "encoded", "reused"]
