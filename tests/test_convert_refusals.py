"""What `ikq convert` refuses, by name: folders of other models than the engine runs, and damaged ones."""

import json

import numpy as np
import pytest
from checkpoint_folders import (
    make_folder,
    write_safetensors,
)
from model_files import reader
from test_convert import SHORT, folders

import ikq
from ikq.__main__ import main
from ikq._ikq import Engine
from ikq.checkpoint.describe import describe
from ikq.checkpoint.opening import Checkpoint
from ikq.errors import FormatError, RefusedError, UnsupportedError
from ikq.models import model_spec

__all__ = ["folders"]  # a fixture


def test_merged_experts_of_no_number(tmp_path):
    def change(tensors, config):
        for name in [n for n in tensors if ".mlp.experts." in n]:
            del tensors[name]
        for i in range(config["num_hidden_layers"]):
            for part in ("gate_up", "down"):
                tensors[f"model.layers.{i}.mlp.experts.{part}_proj"] = "BF16", np.zeros((2, 4, 4), np.uint16)
        for key in ("num_experts", "num_local_experts"):
            config.pop(key, None)

    folder = make_folder(tmp_path / "hf", SHORT["qwen3moe"], change=change)
    with pytest.raises(FormatError, match="`num_experts` is missing or 0"):
        Checkpoint(folder)


WINDOW = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        (
            "gpt-oss",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "`layer_types` do not alternate",
        ),
        ("gpt-oss", {"swiglu_limit": 6.0}, "`swiglu_limit` is 6.0"),
        ("gpt-oss", {"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
        ("gemma3", {"hidden_activation": "silu"}, "`hidden_activation` is 'silu'"),
        ("mixtral", {"sliding_window": 64}, "`sliding_window` of 64 positions is not applied"),
        ("qwen2", WINDOW, "`sliding_window` of 64 positions is not applied"),
        ("qwen3moe", WINDOW, "`sliding_window` of 64 positions is not applied"),
        (
            "qwen3",
            {"quantization_config": {"quant_method": "compressed-tensors", "transform_config": {"R1": {}}}},
            "`transform_config`",
        ),
    ],
)
def test_other_models_than_are_run(tmp_path, name, values, says):
    folder = make_folder(tmp_path / "hf", SHORT[name], change=lambda tensors, config: config.update(values))
    with pytest.raises(UnsupportedError, match=says):
        Checkpoint(folder)


def test_windows_that_change_nothing(tmp_path):
    """Windows that are switched off, begin behind the last layer or are as long as the context."""
    for i, (name, values) in enumerate(
        [
            ("qwen2", WINDOW | {"use_sliding_window": False}),
            ("qwen2", WINDOW | {"max_window_layers": 28}),
            ("mixtral", {"sliding_window": 1024}),
            ("llama", {"sliding_window": 64}),
        ]
    ):
        Checkpoint(make_folder(tmp_path / str(i), SHORT[name], change=lambda t, c, v=values: c.update(v)))


@pytest.mark.parametrize(
    ("mscale", "every", "good"), [(1.0, 0.707, False), (None, 1.0, True), (2.0, None, False)]
)
def test_two_mscales(tmp_path, mscale, every, good):
    def change(tensors, config):
        own = {"mscale": mscale, "mscale_all_dim": every}
        config["rope_parameters"] = config["rope_parameters"] | own

    folder = make_folder(tmp_path / "hf", SHORT["deepseek3"], change=change)
    if good:
        Checkpoint(folder)
        return
    with pytest.raises(UnsupportedError, match="`mscale` is"):
        Checkpoint(folder)


def test_checkpoints_are_not_run(folders):
    checkpoint = Checkpoint(folders("qwen3"))
    spec = model_spec(reader(SHORT["qwen3"])).to_json()
    with pytest.raises(UnsupportedError, match="convert it first"):
        Engine.plan(
            checkpoint.model(),
            spec,
            n_ctx=64,
            n_ubatch=8,
            cache_type_k="f16",
            cache_type_v="f16",
            cache_rotation=False,
            swa_full=False,
            fused_up_gate=True,
            fused_moe=True,
            merge_up_gate_experts=False,
            devices=["cpu"],
            n_gpu_layers=0,
            tensor_split=[],
            override_tensor=[],
            cpu_moe=False,
            n_cpu_moe=0,
            kv_offload=True,
        )


def test_refusals(folders, tmp_path, capsys):
    folder = folders("qwen3moe")
    with pytest.raises(RefusedError, match="--repack is for GGUF files"):
        ikq.plan_quantization(folder, tmp_path / "x.gguf", "COPY", repack=True)
    with pytest.raises(RefusedError, match="cannot become 'q4'"):
        ikq.plan_conversion(folder, tmp_path / "x.gguf", "q4")
    assert main(["quantize", "--sequential", "-f", "x", str(folder), str(tmp_path / "x.gguf"), "Q4_K"]) == 2
    assert "ikq convert makes one" in capsys.readouterr().err


def test_nan_is_named(tmp_path):
    """As from a GGUF file: tensor, expert, row and column."""

    def change(tensors, config):
        name = "model.layers.1.mlp.experts.3.up_proj.weight"
        bits = tensors[name][1].copy()
        bits[11, 200] = 0x7FC0
        tensors[name] = "BF16", bits

    folder = make_folder(tmp_path / "hf", SHORT["qwen3moe"], change=change)
    with pytest.raises(
        FormatError, match=r"`blk.1.ffn_up_exps.weight` holds NaN \(expert 3, row 11, column 200\)"
    ):
        ikq.quantize_file(folder, tmp_path / "x.gguf", "IQ4_KS")


def test_a_file_that_shrinks(tmp_path):
    """What is found in the middle of a run is an error by name, not a crash."""
    folder = make_folder(tmp_path / "hf", SHORT["qwen2"], n_shards=1)
    checkpoint = Checkpoint(folder)
    weights = folder / "model.safetensors"
    write_safetensors(tmp_path / "small.safetensors", {"a": ("U8", np.zeros(9, np.uint8))})
    (tmp_path / "small.safetensors").replace(weights)
    with pytest.raises(OSError, match="became shorter"):
        checkpoint.model()


def test_texts_of_config_are_not_trusted(tmp_path):
    """Mutants of config.json: an error of ikq or a conversion, no other exception."""
    folder = make_folder(tmp_path / "hf", SHORT["deepseek3"], n_shards=1)
    original = json.loads((folder / "config.json").read_text())
    rng = np.random.default_rng(4)
    values = [None, -1, 0, 1, 3, 2**31, 1e400, "x", [], {}, True, [1, 2], 0.5]
    outcomes = set()
    for key in original:
        for value in rng.permutation(len(values))[:2]:
            (folder / "config.json").write_text(json.dumps(original | {key: values[value]}))
            try:
                Checkpoint(folder)
            except (ikq.IkqError, FileNotFoundError):
                outcomes.add("refused")
            else:
                outcomes.add("opened")
    assert outcomes == {"refused", "opened"}


def test_what_is_no_folder_of_a_checkpoint(tmp_path, capsys):
    """Names of the Hub, GGUF files, folders without a configuration or with files of PyTorch only."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "empty").mkdir()
    torch = make_folder(tmp_path / "torch", "qwen3/qwen3-bf16")
    for path in torch.glob("*.safetensors*"):
        path.unlink()
    (torch / "pytorch_model.bin").write_bytes(b"")
    for name, message in (
        ("Qwen/Qwen3-0.6B", "no such folder (what is on the Hub has to be downloaded first: `hf download`)"),
        ("a.gguf", "a file, not the folder of a checkpoint with config.json"),
        ("empty", "a directory without config.json: no checkpoint"),
        (
            "torch",
            "no safetensors file in this folder; pytorch_model.bin is not read, only *.safetensors are",
        ),
    ):
        assert main(["convert", str(tmp_path / name), str(tmp_path / "x.gguf")]) == 1
        assert f"{name}: {message}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ("---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("---\nlicense:\n- mit\n---\n", None),
        ("# Model\nlicense: mit\n", None),
        ("---\nlicense_name: x\n---\nlicense: mit\n", None),
        ("---\nlicense: mit\n", None),
    ],
)
def test_the_licence_of_the_model_card(tmp_path, card, licence):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert describe(tmp_path, []).get("general.license") == licence
    assert "general.license" not in describe(tmp_path / "none", [])
