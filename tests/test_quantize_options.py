"""Options of `quantize` that decide types, statistics and metadata, as a user gives them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ikq
from ikq.__main__ import main
from ikq.errors import FormatError, RefusedError

DATA = Path(__file__).parent / "data"
MODEL = DATA / "tiny-moe-bf16.gguf"
IMATRIX = DATA / "imatrix-plain.dat"


def ikq_command(*args: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "ikq", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def plan(type: str, **options: object) -> dict[str, ikq.PlannedTensor]:
    made = ikq.plan_quantization(MODEL, None, type, **options)  # type: ignore[arg-type]
    return {t.name: t for t in made.tensors}


def types(type: str, **options: object) -> dict[str, str]:
    return {name: t.to_type.name for name, t in plan(type, **options).items() if not t.copied}


@pytest.mark.parametrize("type", ["Q4_0", "IQ2_KS", "IQ2_KT", "IQ1_S_R4", "Q4_K_M", "BF16", "COPY"])
@pytest.mark.parametrize("pure", [False, True])
def test_role_options_hold_under_every_type(type: str, pure: bool) -> None:
    given = {
        "attn_q_type": "Q5_0",
        "attn_k_type": "Q5_1",
        "attn_v_type": "Q6_0",
        "attn_output_type": "Q4_1",
        "ffn_gate_type": "IQ4_NL",
        "ffn_up_type": "Q8_0",
        "ffn_down_type": "Q6_K",
    }
    found = types(type, pure=pure, ignore_imatrix_rules=True, **given)
    for option, expected in given.items():
        role = option.removesuffix("_type")
        of_role = {name: t for name, t in found.items() if role in name and "norm" not in name}
        assert set(of_role.values()) == {expected}, option


def test_a_role_option_is_the_reason() -> None:
    t = plan("Q4_K_M", ffn_down_type="q8_0")["blk.0.ffn_down_exps.weight"]
    assert (t.to_type, t.reason) == (ikq.QuantType.Q8_0, "--ffn-down-type")


def test_fused_qkv_has_its_own_option(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    with ikq.GGUFWriter(model, {"general.architecture": "llama"}) as writer:
        writer.add_tensor("blk.0.attn_qkv.weight", np.ones((8, 256), np.float32))
    for option, expected in (("attn_qkv_type", "Q8_0"), ("attn_q_type", "Q4_0")):
        made = ikq.plan_quantization(model, None, "Q4_0", **{option: "q8_0"})  # type: ignore[arg-type]
        assert made.tensors[0].to_type.name == expected, option


def test_rules_stand_in_order_of_precedence(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.txt"
    recipe.write_text("# my recipe\nattn_q=q5_0, attn_k=q5_0  # small\n\nblk\\.[0-1]{1,2}\\.ffn_up=q6_k\n")
    found = types(
        "Q4_0",
        attn_q_type="q8_0",
        custom_q="attn_q=q5_1",
        tensor_type=["attn_k=q4_1", "blk\\.3{1,2}\\.attn_v=q6_0"],
        tensor_type_file=recipe,
        output_tensor_type="q5_k",
    )
    assert found["blk.2.attn_q.weight"] == "Q5_1"
    assert found["blk.2.attn_k.weight"] == "Q4_1"
    assert found["blk.3.attn_v.weight"] == "Q6_0"
    assert found["blk.1.ffn_up_exps.weight"] == "Q6_K"
    assert found["blk.2.ffn_up_exps.weight"] == "Q4_0"
    assert found["output.weight"] == "Q5_K"


def test_a_faulty_recipe_names_file_and_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.txt"
    recipe.write_text("attn_q=q5_0\nattn_k=q9_9\n")
    done = ikq_command("quantize", "--dry-run", "--tensor-type-file", recipe, MODEL, "Q4_0")
    assert done.returncode == 2
    assert f"{recipe}, line 2" in done.stderr
    assert "q9_9" in done.stderr
    missing = ikq_command("quantize", "--dry-run", "--tensor-type-file", tmp_path / "none", MODEL, "Q4_0")
    assert missing.returncode == 1
    assert "none" in missing.stderr


def test_leave_output_tensor_and_copy() -> None:
    assert plan("Q4_0", leave_output_tensor=True)["output.weight"].reason == "--leave-output-tensor"
    assert types("COPY") == {}
    assert types("COPY", custom_q="attn_q=q8_0").keys() == {f"blk.{i}.attn_q.weight" for i in range(4)}


def test_copy_keeps_bytes_and_file_type(tmp_path: Path) -> None:
    ikq.quantize_file(MODEL, tmp_path / "copy.gguf", "COPY")
    a, b = ikq.GGUFReader(MODEL), ikq.GGUFReader(tmp_path / "copy.gguf")
    assert a.metadata.get("general.file_type") == b.metadata.get("general.file_type")
    assert all(np.array_equal(t.raw, b.tensors[name].raw) for name, t in a.tensors.items())


def test_the_extra_output_matrix(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ikq.quantize_file(
        MODEL, out, "Q8_0", extra_output_tensor="q4_0", leave_output_tensor=True, imatrix=IMATRIX
    )
    tensors = ikq.GGUFReader(out).tensors
    names = list(tensors)
    assert names[names.index("output.weight") + 1] == "output_extra.weight"
    extra = tensors["output_extra.weight"]
    assert extra.type == ikq.QuantType.Q4_0
    source = ikq.GGUFReader(MODEL).tensors["output.weight"]
    weights = ikq.Imatrix(IMATRIX)["output.weight"].values[0]
    expected = ikq.quantize(source.dequantize(), "Q4_0", weights)
    assert np.array_equal(extra.raw.reshape(-1), expected.reshape(-1))
    # not where it would be no smaller
    assert "output_extra.weight" not in plan("Q8_0", extra_output_tensor="bf16")


def test_override_kv(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = ikq_command(
        "quantize",
        *("--override-kv", "general.name=str:my=name:x"),
        *("--override-kv", "new.key=int:-3"),
        *("--override-kv", "qwen3moe.rope.freq_base=float:5e5"),
        *("--override-kv", "new.flag=bool:true"),
        *(MODEL, out, "Q8_0"),
    )
    assert done.returncode == 0, done.stderr
    metadata = ikq.GGUFReader(out).metadata
    assert metadata["general.name"] == "my=name:x"
    assert metadata["new.key"] == -3
    assert metadata["qwen3moe.rope.freq_base"] == 5e5
    assert metadata["new.flag"] is True
    # the rules see the change: without experts there is no rule for attn_k
    assert types("Q4_0")["blk.0.attn_k.weight"] == "Q8_0"
    assert types("Q4_0", override_kv={"qwen3moe.expert_count": 0})["blk.0.attn_k.weight"] == "Q4_0"


@pytest.mark.parametrize("text", ["k", "k=7", "k=u8:7", "k=int:seven", "k=bool:1"])
def test_a_faulty_override_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="--override-kv"):
        plan("Q4_0", override_kv=[text])


def test_selected_statistics() -> None:
    used = lambda **options: {n for n, t in plan("Q4_0", imatrix=IMATRIX, **options).items() if t.imatrix}  # noqa: E731
    everything = used()
    assert used(include_weights=["attn_q", "output"]) == {
        n for n in everything if "attn_q" in n or "output" in n
    }
    assert used(exclude_weights=["ffn_down"]) == {n for n in everything if "ffn_down" not in n}
    with pytest.raises(RefusedError, match="--include-weights atn_q"):
        used(include_weights=["atn_q"])
    with pytest.raises(RefusedError, match="together"):
        used(include_weights=["attn_q"], exclude_weights=["attn_k"])


def test_hidden_imatrix(tmp_path: Path) -> None:
    ikq.quantize_file(MODEL, tmp_path / "out.gguf", "Q4_0", imatrix=IMATRIX, hide_imatrix=True)
    metadata = ikq.GGUFReader(tmp_path / "out.gguf").metadata
    shown = {k: v for k, v in metadata.items() if k.startswith("quantize.imatrix")}
    assert shown["quantize.imatrix.file"] == "top_secret"
    assert set(shown.values()) == {"top_secret", 0}


def test_requantizing_needs_leave_and_takes_any_type(tmp_path: Path) -> None:
    source = tmp_path / "mxfp4.gguf"
    ikq.quantize_file(MODEL, source, "MXFP4")
    with pytest.raises(RefusedError, match="--allow-requantize"):
        ikq.quantize_file(source, tmp_path / "x.gguf", "Q8_0")
    ikq.quantize_file(source, tmp_path / "x.gguf", "Q8_0", allow_requantize=True)
    a = ikq.GGUFReader(source).tensors["blk.0.ffn_up_exps.weight"].dequantize()
    b = ikq.GGUFReader(tmp_path / "x.gguf").tensors["blk.0.ffn_up_exps.weight"].dequantize()
    assert np.sqrt(((a - b) ** 2).mean() / (a**2).mean()) < 0.01


def test_q2_k_s_needs_statistics_and_q2_k_does_not() -> None:
    assert types("Q2_K")
    with pytest.raises(ikq.MissingImatrixError, match="Q2_K"):
        plan("Q2_K_S")


def test_types_name_their_mix() -> None:
    found = ikq.plan_quantization(MODEL, None, ikq.QuantType.IQ2_S, ignore_imatrix_rules=True)
    assert found.destination.name == "ggml-model-IQ2_M.gguf"
    with pytest.raises(RefusedError, match="I2_S"):
        ikq.plan_quantization(MODEL, None, ikq.QuantType.I2_S)


def test_unknown_keywords_and_types_are_refused() -> None:
    with pytest.raises(TypeError, match="atn_q_type"):
        plan("Q4_0", atn_q_type="q8_0")
    with pytest.raises(FormatError, match="q9_0"):
        plan("Q4_0", attn_q_type="q9_0")


def test_a_run_takes_its_own_keywords_only(tmp_path: Path) -> None:
    made = ikq.plan_quantization(MODEL, tmp_path / "out.gguf", "Q8_0")
    for name in ("restrat", "pure"):
        with pytest.raises(TypeError, match=f"unknown option '{name}'.*RunOptions"):
            made.run(**{name: True})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="restrat"):
        ikq.quantize_file(MODEL, tmp_path / "out.gguf", "Q8_0", restrat=True)  # type: ignore[call-arg]
    assert not list(tmp_path.iterdir())


def test_gates_unlike_ups_are_noted() -> None:
    done = ikq_command("quantize", "--dry-run", "--ffn-up-type", "q5_k", MODEL, "Q4_K_S")
    assert done.returncode == 0, done.stderr
    assert "4 layers have experts' gate and up matrices of different types" in done.stdout
    assert "different types" not in ikq_command("quantize", "--dry-run", MODEL, "Q4_K_S").stdout


def test_weights_that_are_not_ternary_are_warned_about(tmp_path: Path) -> None:
    ternary = np.random.default_rng(0).integers(-1, 2, (8, 256)).astype(np.float32) * 0.5
    model = tmp_path / "m.gguf"
    with ikq.GGUFWriter(model, {"general.architecture": "llama"}) as writer:
        writer.add_tensor("a.weight", ternary)
        writer.add_tensor("b.weight", ternary + np.linspace(0, 1, 256, dtype=np.float32))
    for t in ("TQ2_0", "IQ2_BN_R4", "I2_S"):
        done = ikq_command("quantize", "--custom-q", f"weight={t}", model, tmp_path / f"{t}.gguf", "COPY")
        assert done.returncode == 0, done.stderr
        assert "1 tensors got ternary types, but their weights are not ternary: b.weight" in done.stdout, t
        back = ikq.GGUFReader(tmp_path / f"{t}.gguf").tensors["a.weight"].dequantize()
        assert np.array_equal(back, ternary), t
    assert "not ternary" not in ikq_command("quantize", model, tmp_path / "q8.gguf", "Q8_0").stdout
    with pytest.warns(ikq.NotTernaryWarning, match="IQ1_BN"):
        ikq.quantize(ternary + 0.1, "IQ1_BN")


def test_symmetric_q4_0_has_no_lowest_level(tmp_path: Path) -> None:
    """Levels -7 to 7, searched: not worse than the largest value on 7, which the option means elsewhere."""
    for options, lowest in (({}, 0), ({"symmetric_q40": True}, 1)):
        ikq.quantize_file(MODEL, tmp_path / "out.gguf", "Q4_0", pure=True, **options)
        t = ikq.GGUFReader(tmp_path / "out.gguf").tensors["blk.0.attn_q.weight"]
        assert ikq.unpack(t.raw, "Q4_0")["q"].min() == lowest
    x = ikq.GGUFReader(MODEL).tensors["blk.0.attn_q.weight"].dequantize().reshape(-1, 32)
    d = np.abs(x).max(axis=1, keepdims=True) / 7
    rounded = np.clip(np.round(x / np.where(d > 0, d, 1)), -7, 7) * d
    found = t.dequantize().reshape(-1, 32)
    assert ((found - x) ** 2).sum() < ((rounded - x) ** 2).sum()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("attn_k=q8_0\n# c\n(attn_v=q8_0\n", "line 3: custom rule `(attn_v=q8_0`: unclosed group"),
        ("attn_k=q8_0\n\nzzz=Q8_0,attn_v=q8_0\n", "line 3: custom rule `zzz=q8_0` matches no tensor"),
        ("attn_k=q8_0\na[#b]=q8_0\n", r"what follows # is a comment; in an expression write \x23"),
        ("attn_k=q8_0\nattn_v=q9_9\n", "line 2: "),
    ],
)
def test_messages_about_rules_name_file_and_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rules.txt"
    file.write_text(text)
    for option in ("--tensor-type-file", "--recipe"):
        assert main(["quantize", "--dry-run", option, str(file), str(MODEL), "o.gguf", "Q4_K"]) == 2
        err = capsys.readouterr().err
        assert f"{file}, line " in err
        assert said in err
        assert err.count("\n") == 1
        assert "parse error" not in err


def test_messages_about_rules_name_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--tensor-type", "(=q8_0"], "--tensor-type: custom rule `(=q8_0`: unclosed group"),
        (["--custom-q", "attn_v=q8_0,zzz=q4_k"], "--custom-q: custom rule `zzz=q4_k` matches no tensor"),
        (["--tensor-type", "attn_v=q9_9"], "--tensor-type attn_v=q9_9: unknown type"),
        (["--custom-q", "attn_k=q8_0,attn_v=q9_9"], "--custom-q attn_v=q9_9: unknown type"),
        (["--attn-q-type", "q9_9"], "--attn-q-type: unknown type"),
        (["--output-tensor-type", "q9_9"], "--output-tensor-type: unknown type"),
    ):
        assert main(["quantize", "--dry-run", *words, str(MODEL), "o.gguf", "Q4_K"]) == 2
        assert said in capsys.readouterr().err


def test_a_sign_of_comments_in_an_expression(tmp_path: Path) -> None:
    file = tmp_path / "rules.txt"
    file.write_text("attn_v[\\x23.]=q8_0\n")
    for option in ("tensor_type_file", "recipe"):
        found = ikq.plan_quantization(MODEL, None, "Q4_K", **{option: file})  # type: ignore[arg-type]
        assert {t.name: t.to_type for t in found.tensors}["blk.0.attn_v.weight"] == ikq.QuantType.Q8_0
