"""Recipe files and tables of sensitivities: what is read, what is written, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ikq
from ikq.errors import FormatError, RefusedError
from ikq.recipes.files import applicable_rules, read_recipe, recipe_type
from ikq.recipes.problem import DEFAULT_TYPES, parse_types
from ikq.recipes.recipe import measure_costs, open_problem
from ikq.recipes.rules import recipe_rules
from ikq.recipes.sensitivity import _likeness, coefficients
from ikq.recipes.tables import read_sensitivities, write_sensitivities

TEXT = "# a recipe\n\n# type: Q4_K\n^blk\\.0\\.=Q8_0  # first\nattn_q=iq4_ks, attn_k = q6_K,\n^x{1,2}$=q5_k\n"
RULES = ["^blk\\.0\\.=q8_0", "attn_q=iq4_ks", "attn_k=q6_k", "^x{1,2}$=q5_k"]


@pytest.mark.parametrize(
    "raw",
    [
        TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode(),
        TEXT.encode("utf-16"),
        TEXT.rstrip("\n").encode(),
    ],
)
def test_files_of_any_system(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "r.txt"
    file.write_bytes(raw)
    assert read_recipe(file) == RULES
    assert recipe_type(file) == "Q4_K"


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("a=q8_0\nb=q9_9\n", FormatError, "line 2"),
        ("a\n", FormatError, "line 1"),
        ("=q8_0\n", FormatError, "line 1"),
        ("# nothing\n", RefusedError, "no rule"),
        ("", RefusedError, "no rule"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    file = tmp_path / "r.txt"
    file.write_text(text)
    with pytest.raises(error, match=said):
        read_recipe(file)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "r.txt"
    file.write_bytes(b"\x80\x81\x00")
    with pytest.raises(FormatError, match="UTF-8"):
        read_recipe(file)


def test_rules_for_all_layers_of_a_type_and_back() -> None:
    types = {
        "token_embd.weight": ikq.QuantType.Q6_K,
        **{f"blk.{i}.attn_q.weight": ikq.QuantType.IQ4_K for i in range(12)},
        "blk.1.ffn_down_exps.weight": ikq.QuantType.Q4_K,
        "blk.11.ffn_down_exps.weight": ikq.QuantType.Q8_0,
        "blk.2.odd+name.bias": ikq.QuantType.F16,
        "unknown": 4711,
    }
    rules = recipe_rules(types)
    assert rules == [
        "^token_embd\\.weight$=q6_k",
        "^blk\\.2\\.odd\\+name\\.bias$=f16",
        "^blk\\.(0|1|2|3|4|5|6|7|8|9|10|11)\\.attn_q\\.weight$=iq4_k",
        "^blk\\.1\\.ffn_down_exps\\.weight$=q4_k",
        "^blk\\.11\\.ffn_down_exps\\.weight$=q8_0",
    ]


def test_rules_for_norms_do_not_count() -> None:
    kept = ["output_norm.weight", "blk.0.ffn_gate_inp.weight"]
    rules = ["^output_norm=f32", "ffn_gate_inp=F32", "ffn_norm=f32", "output_norm=q8_0"]
    assert applicable_rules(rules, kept, ["output.weight"]) == ["ffn_norm=f32", "output_norm=q8_0"]
    # a rule that fits another tensor too is meant for that
    assert applicable_rules(["blk\\.0\\.=f32"], kept, ["blk.0.attn_q.weight"]) == ["blk\\.0\\.=f32"]


def test_rules_for_norms_and_matrices_hold_for_matrices(tmp_path: Path, tiny_moe: Path) -> None:
    file = tmp_path / "floats.txt"
    file.write_text("# type: Q4_K\nblk\\.0\\.=bf16\n")
    plan = ikq.plan_quantization(tiny_moe, tmp_path / "o.gguf", "Q4_K", recipe=file)
    types = {t.name: t.to_type for t in plan.tensors}
    assert types["blk.0.attn_v.weight"] == types["blk.0.ffn_down_exps.weight"] == ikq.QuantType.BF16
    assert types["blk.1.attn_q.weight"] == ikq.QuantType.Q4_K


def test_recipes_of_others_quantize(tmp_path: Path, tiny_moe: Path) -> None:
    file = tmp_path / "others.txt"
    file.write_bytes(
        b"\xef\xbb\xbf## Head\r\n^output_norm\\.weight$=f32\r\n^token_embd\\.weight$=q8_0\r\n^output\\.weight$=q6_k\r\n"
        b"^blk\\.[0-3]\\.attn_(norm|q_norm|k_norm)\\.weight$=f32\r\n^blk\\.([0-2]|3)\\.ffn_gate_inp\\.weight$=f32\r\n"
        b"^blk\\.[0-3]\\.attn_(q|k|v|output)\\.weight$=q8_0\r\n^blk\\.[0-3]\\.ffn_(up|gate|down)_exps\\.weight$=iq4_ks\r\n"
    )
    plan = ikq.plan_quantization(tiny_moe, tmp_path / "o.gguf", "IQ4_KS", recipe=file)
    types = {t.name: str(t.to_type) for t in plan.tensors}
    assert types["output.weight"] == "Q6_K"
    assert types["blk.2.attn_v.weight"] == "Q8_0"
    assert types["blk.3.ffn_down_exps.weight"] == "IQ4_KS"
    assert types["output_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == "F32"
    file.write_text("nothing_has_this_name=q8_0\n")
    with pytest.raises((RefusedError, FormatError), match="nothing_has_this_name"):
        ikq.plan_quantization(tiny_moe, tmp_path / "o.gguf", "IQ4_KS", recipe=file)


def test_tables_go_there_and_back(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    write_sensitivities(file, {("a.weight", "Q4_K"): 0.0125, ("b, c", "IQ4_K"): 1e-7})
    found = read_sensitivities(file)
    assert found == {("a.weight", ikq.QuantType.Q4_K): 0.0125, ("b, c", ikq.QuantType.IQ4_K): 1e-7}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_others(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "t.csv"
    rows = [["name", "qtype", "loss"], ["a", "q4_k", "0.5"], ["a", "", "2"], ["b", "*", "3e-2"]]
    file.write_bytes("\r\n".join(separator.join(r) for r in rows).encode())
    assert read_sensitivities(file) == {("a", ikq.QuantType.Q4_K): 0.5, ("a", None): 2.0, ("b", None): 0.03}


def test_tables_with_a_column_per_tensor(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("QTYPE,a.weight,b.weight,output.weight\niq1_m_r4,0.0054,,0.144\nq4_k,1e-4,2e-4,\n")
    assert read_sensitivities(file) == {
        ("a.weight", ikq.QuantType.IQ1_M_R4): 0.0054,
        ("output.weight", ikq.QuantType.IQ1_M_R4): 0.144,
        ("a.weight", ikq.QuantType.Q4_K): 1e-4,
        ("b.weight", ikq.QuantType.Q4_K): 2e-4,
    }
    file.write_text("QTYPE,a.weight\nq4_k,1,2\n")
    with pytest.raises(FormatError, match="line 2: 3 cells below 2 names"):
        read_sensitivities(file)


def test_tokens_that_are_alike_move_together() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.lognormal(0, 0.5, 512)
    # a hidden state takes one direction of many from what likely tokens differ in
    rows = rng.standard_normal((1024, 512))
    assert _likeness(rows, inputs) == pytest.approx(1, abs=0.05)
    # rows that differ in two directions: likely tokens are at one end of one of them
    plane = rng.standard_normal((1024, 2)) @ rng.standard_normal((2, 512))
    assert 0.2 < _likeness(plane, inputs) < 0.8
    # likely tokens are then no more alike for what all differ in besides, as far as it is little
    assert _likeness(plane + 0.1 * rows, inputs) == pytest.approx(_likeness(plane, inputs), abs=0.1)
    # what all rows have in common makes no difference to anything
    assert _likeness(rows + 3.0, inputs) == pytest.approx(_likeness(rows, inputs))
    assert _likeness(np.ones((8, 512)), inputs) == 1


def test_a_table_of_one_type_gives_coefficients(tmp_path: Path, tiny_moe: Path) -> None:
    problem = open_problem(
        tiny_moe, tiny_moe.with_name("imatrix-plain.dat"), types=parse_types("q8_0,iq1_m,q4_k")
    )
    names = [t.name for t in problem.tensors]
    table = {(name, ikq.QuantType.IQ1_M_R4): 0.01 * (i + 1) for i, name in enumerate(names) if i % 2}
    costs = measure_costs(problem, sensitivities=table)
    ratios = []
    predicted = coefficients(problem)
    for i, t in enumerate(problem.tensors):
        k = t.types.index(ikq.QuantType.IQ1_M)
        if i % 2:
            assert costs.divergence[i, k] == table[t.name, ikq.QuantType.IQ1_M_R4]
            assert costs.coefficients[t.name] == pytest.approx(
                costs.divergence[i, k] / costs.errors.relative[i, k]
            )
        else:
            ratios.append(costs.coefficients[t.name] / predicted[t.name])
    # the others are as predicted, on the table's scale
    assert max(ratios) == pytest.approx(min(ratios))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a,q4_k", "line 2: expected tensor, type, value"),
        ("a,q4_k,x", "line 2: a: 'x' is no divergence"),
        ("a,q4_k,-1", "line 2: a: '-1' is no divergence"),
        ("a,q4_k,nan", "'nan'"),
        ("a,q4_k,inf", "'inf'"),
        ("a,q4_k,1e308", "'1e308' is no divergence, a number from 0 to 1e\\+06"),
        ("a,q4_k,1_0", "'1_0'"),
        ("a,q4_k,", "''"),
        ('a,q4_k,"0,25"', "; write 0.25"),
        ("a,none,1", "line 2: a: unknown type `none`"),
        ("b,q4_k,1\na,q4_k,0.5\na,Q4_K,0.25", "line 4: a has 0.25 for Q4_K, and 0.5 in line 3; remove one"),
        ("a,,1\na,*,2", "line 3: a has 2 for all types, and 1 in line 2"),
        ('"a,q4_k,1', "line 2: unexpected end"),
        ("a" * 200_000 + ",q4_k,1", "line 2: field larger"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, lines: str, said: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(f"tensor,type,value\n{lines}\n")
    with pytest.raises(FormatError, match=rf"t\.csv, .*{said}"):
        read_sensitivities(file)


@pytest.mark.parametrize(
    "text",
    [
        "# mine\ntensor;type;value\na;q4_k;0.5\n",
        "\n\ntensor,type,value\n\na,q4_k,0.5\n",
        "QTYPE;a\nq4_k;0.5\n",
        "\ufeffQTYPE\ta\r\nq4_k\t0.5",
        "a,q4_k,0.5\na,q4_k,0.50\n",
    ],
)
def test_tables_in_other_forms(tmp_path: Path, text: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(text, encoding="utf-8", newline="")
    assert read_sensitivities(file) == {("a", ikq.QuantType.Q4_K): 0.5}


def test_lists_of_types() -> None:
    assert parse_types("q4_k, IQ4_KS") == (ikq.QuantType.Q4_K, ikq.QuantType.IQ4_KS)
    assert {t.family for t in parse_types("k,trellis")} == {"k", "trellis"}
    assert all("llama.cpp" in t.known_to for t in parse_types("llama.cpp"))
    assert set(DEFAULT_TYPES) - set(parse_types("-trellis,-q4_0")) == {
        *(t for t in DEFAULT_TYPES if t.family == "trellis"),
        ikq.QuantType.Q4_0,
    }
    for text in ("", " , ", "q4_k,-q4_k"):
        with pytest.raises(RefusedError, match="no type to choose from"):
            parse_types(text)
    with pytest.raises(FormatError, match="q4_kk"):
        parse_types("q4_kk")
