"""Safetensors files and folders that are damaged, hostile or incomplete: named errors, and nothing allocated for them."""

import json
import os
import struct
import time
import tracemalloc

import numpy as np
import pytest
from checkpoint_folders import make_folder, write_safetensors, write_shards
from model_files import NAMES

from ikq.checkpoint.opening import Checkpoint
from ikq.checkpoint.safetensors import SafetensorsFile, Shards, _is_deeper
from ikq.errors import FormatError, IkqError, UnsupportedError

TENSORS = {
    "a.weight": ("BF16", np.arange(12, dtype=np.uint16).reshape(3, 4)),
    "b": ("F32", np.arange(5, dtype=np.float32)),
    "c": ("U8", np.arange(7, dtype=np.uint8)),
    "none": ("F16", np.zeros((0, 3), np.float16)),
}


def with_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_views(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS, {"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert list(file.tensors) == list(TENSORS)
    assert file.metadata == {"format": "pt"}
    for name, (dtype, array) in TENSORS.items():
        t = file.tensors[name]
        assert (t.dtype, t.shape) == (dtype, array.shape)
        assert t.raw().tobytes() == array.tobytes()
        assert not t.raw().flags.writeable
        assert not t.raw().flags.owndata
    before = file.tensors["b"].raw()
    file.release(0, file.nbytes)
    assert before.tobytes() == TENSORS["b"][1].tobytes()


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"", b"", "is not JSON"),
        (b"[1]", b"", "no JSON object"),
        (b"{" * 100_000, b"", "nested deeper"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, b"", "nested deeper"),
        (b'{"a":' + b"9" * 5000 + b"}", b"", "larger than any size"),
        (b'{"a": NaN}', b"", "NaN is no number"),
        (b'{"a": {}, "a": {}}', b"", "`a` appears twice"),
        (b'{"\xff": {}}', b"", "is not JSON"),
        ({"a": 5}, b"", "must have dtype, shape"),
        ({"a": {"dtype": "U8", "shape": [4]}}, bytes(4), "must have dtype, shape"),
        ({"a": entry(dtype="F4")}, bytes(4), "unknown dtype 'F4'"),
        ({"a": entry(dtype=["U8"])}, bytes(4), "unknown dtype"),
        ({"a": entry(shape=[-4])}, bytes(4), "no list of at most"),
        ({"a": entry(shape=[4.0])}, bytes(4), "no list of at most"),
        ({"a": entry(shape=[True, 4])}, bytes(4), "no list of at most"),
        ({"a": entry(shape=[1] * 9 + [4])}, bytes(4), "no list of at most"),
        ({"a": entry(shape=[2**62, 2**62], offsets=[0, 4])}, bytes(4), "4 bytes for the shape"),
        ({"a": entry(offsets=[0, 4, 4])}, bytes(4), "not two numbers"),
        ({"a": entry(offsets=[4, 0])}, bytes(4), "are not in the 4 bytes"),
        ({"a": entry(offsets=[0, 8], shape=[8])}, bytes(4), "the download or copy may be incomplete"),
        (
            {"a": entry(), "b": entry()},
            bytes(4),
            "begins at byte 0 of the data, where the one before it ends at 4",
        ),
        ({"a": entry(offsets=[2, 6])}, bytes(6), "begins at byte 2"),
        ({"a": entry()}, bytes(9), "end at byte 4 of the data, which has 9"),
        ({"__metadata__": {"a": 1}}, b"", "not an object of texts"),
    ],
)
def test_headers_that_cannot_be_meant(tmp_path, header, data, says):
    path = with_header(tmp_path / "x.safetensors", header, data)
    with pytest.raises(FormatError, match=says) as e:
        SafetensorsFile(path)
    assert str(e.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"abc", "has 8 bytes at least"),
        (struct.pack("<Q", 2**63) + b"{}", "more than 100000000"),
        (struct.pack("<Q", 99_000_000) + b"{}", "and 2 are left in the file"),
    ],
)
def test_files_that_are_none(tmp_path, content, says):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=says):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_not_a_regular_file(tmp_path):
    with pytest.raises(FormatError, match="not a regular file"):
        SafetensorsFile(tmp_path)


# Mutants: all 10,000 of each where this is set, with every allocation traced

DEEP = os.environ.get("IKQ_MUTANTS") == "all"


def mutants(rng, original, n):
    """Bytes changed, cut, repeated and exchanged, mostly in the header."""
    head = 8 + struct.unpack("<Q", original[:8])[0]
    for _ in range(n):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, min(len(data), head + 4)))
            match int(rng.integers(0, 6)):
                case 0:
                    data[at] = int(rng.integers(0, 256))
                case 1:
                    del data[at : at + int(rng.integers(1, 9))]
                case 2:
                    data[at:at] = bytes(rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8))
                case 3:
                    data[at:at] = data[at : at + int(rng.integers(1, 40))]
                case 4:
                    del data[int(rng.integers(0, len(data))) :]
                case _:
                    digits = [i for i, b in enumerate(data[:head]) if 48 <= b < 58]
                    if digits:
                        data[digits[int(rng.integers(0, len(digits)))]] = int(rng.integers(48, 58))
            if not data:
                break
        yield bytes(data)


def test_mutants_of_headers(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {"format": "pt"})
    original = path.read_bytes()
    rng = np.random.default_rng(7)
    n_opened = 0
    tracemalloc.start()
    end = time.monotonic() + 10
    n = 0
    for n, data in enumerate(mutants(rng, original, 10_000), 1):
        path.write_bytes(data)
        if n <= 1000 or DEEP:
            tracemalloc.reset_peak()
        else:
            tracemalloc.stop()  # which makes everything slow
        try:
            file = SafetensorsFile(path)
        except FormatError:
            pass
        else:
            n_opened += 1
            for t in file.tensors.values():
                assert t.offset + t.nbytes <= len(data)
                assert len(t.raw()) == t.nbytes
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        if n > 1000 and not DEEP and time.monotonic() > end:
            break
    assert 0 < n_opened < n / 2


def test_mutants_of_an_index(tmp_path):
    write_shards(tmp_path, TENSORS, 2)
    index = tmp_path / "model.safetensors.index.json"
    original = index.read_bytes()
    rng = np.random.default_rng(8)

    def opened():
        """How it ends, and the bytes that were allocated at most."""
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        outcome = None
        try:
            Shards(tmp_path)
        except (FormatError, FileNotFoundError) as e:
            outcome = type(e)
        return outcome, tracemalloc.get_traced_memory()[1] - before

    outcomes = set()
    tracemalloc.start()
    n_mutants, n_traced = (10_000, 10_000) if DEEP else (1500, 200)
    for n, data in enumerate(mutants(rng, struct.pack("<Q", len(original)) + original, n_mutants)):
        index.write_bytes(data[8:])
        if n == n_traced:
            tracemalloc.stop()
        outcome, n_bytes = opened()
        outcomes.add(outcome)
        # other threads of this process allocate too, but hardly twice
        assert n_bytes < 1 << 20 or opened()[1] < 1 << 20
    tracemalloc.stop()
    assert outcomes == {FormatError, FileNotFoundError, None}


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        (b"", 0),
        (b"[[]]", 2),
        (b'["]"', 1),
        (rb'{"a\"[[": [1]}', 2),
        (rb'{"a\\": [1], "[[": {}}', 2),
        (rb'{"a\\\"[[[": [1]}', 2),
        (b'["' + b"[" * 3_000_000 + b'", [[]]]', 3),
        (b" " * ((1 << 20) - 1) + b'"[[[" [[', 2),
    ],
)
def test_depth_of_brackets(text, depth):
    for most in range(depth + 2):
        assert _is_deeper(text, most) == (depth > most), most


def test_strings_without_an_end_take_linear_time():
    """2 MB of quotes with a backslash would take hours where each is tried as a beginning."""
    before = time.monotonic()
    for text in (b'["' + rb"\"" * 1_000_000, b'["' + rb"\\" * 1_000_000, b'["' + b"a" * 2_000_000):
        assert _is_deeper(text, 0)
        assert not _is_deeper(text, 1)
    assert time.monotonic() - before < 5


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    ],
)
def test_pipes_and_devices_are_not_read(tmp_path, name):
    folder = make_folder(tmp_path / "hf", "qwen3/qwen3-bf16")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match=f"{name} is not a regular file"):
        Checkpoint(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(FormatError, match=f"{name} is not a regular file"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("qwen3moe", "num_local_experts", 10**8),
        ("qwen3moe", "head_dim", 2 * 10**9),
        ("qwen3moe", "num_hidden_layers", 10**9),
        ("llama", "num_attention_heads", 10**9),
        ("llama", "head_dim", 8000),
        ("gpt-oss", "intermediate_size", 2 * 10**9),
        ("gpt-oss", "num_local_experts", 2**31 - 1),
        ("deepseek3", "num_attention_heads", 10**9),
        ("qwen3next", "linear_num_value_heads", 10**9),
        ("qwen3next", "linear_value_head_dim", 4096),
    ],
)
def test_numbers_that_no_tensor_justifies(tmp_path, name, key, value):
    """Nothing of their size is allocated."""
    suffix = next(n for n in NAMES if n.startswith(f"{name}/"))
    folder = make_folder(tmp_path / "hf", suffix)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    before = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            Checkpoint(folder)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - before < 20


# Folders


def test_shards(tmp_path):
    write_shards(tmp_path, TENSORS, 3)
    shards = Shards(tmp_path)
    assert sorted(shards) == sorted(TENSORS)
    assert len(shards.files) == 3
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shard is missing") as e:
        Shards(tmp_path)
    assert e.value.filename.endswith("model-00002-of-00003.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update({"d": "model-00001-of-00002.safetensors"}), "`d` should be in .*no file has it"),
        (lambda m: m.update({"b": m["a.weight"]}), "`b` should be in .* but it is in"),
        (lambda m: m.update({"b": "../x.safetensors"}), "no name of a safetensors file"),
        (lambda m: m.update({"b": 5}), "no name of a safetensors file"),
        (lambda m: m.update({"b": "x.bin"}), "no name of a safetensors file"),
        (lambda m: m.clear(), "`weight_map` is missing"),
    ],
)
def test_wrong_index(tmp_path, change, says):
    write_shards(tmp_path, TENSORS, 2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match=says):
        Shards(tmp_path)


def test_a_tensor_in_two_files(tmp_path):
    for name in ("a", "b"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"x": TENSORS["b"]})
    with pytest.raises(FormatError, match="`x` is in two files"):
        Shards(tmp_path)


def test_adapters_and_hidden_files_are_left_out(tmp_path):
    for name in ("weights", "adapter_model", "._weights"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"x": TENSORS["b"]})
    assert [f.path.name for f in Shards(tmp_path).files] == ["weights.safetensors"]


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no safetensors file"):
        Shards(tmp_path)


# Folders whose files are good and do not fit together


def broken(tmp_path, name, change):
    return make_folder(tmp_path / "hf", name, change=change)


def drop(part):
    def change(tensors, config):
        tensors.pop(next(n for n in tensors if part in n))

    return change


def shape(part, extents):
    def change(tensors, config):
        name = next(n for n in tensors if part in n)
        tensors[name] = "BF16", np.zeros(extents, np.uint16)

    return change


def untied(tensors, config):
    tensors.pop("lm_head.weight", None)
    config["tie_word_embeddings"] = False


def set_config(**values):
    return lambda tensors, config: config.update(values)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (drop("layers.1.self_attn.k_proj"), FormatError, "layers.1.self_attn.k_proj.weight` is missing"),
        (drop("embed_tokens"), FormatError, "embed_tokens.weight` is missing"),
        (drop("experts.7.down_proj"), FormatError, "experts.7.down_proj.weight` is missing"),
        (
            set_config(hidden_size=128),
            FormatError,
            r"has the shape \[512, 256\], \[512, 128\] by config.json",
        ),
        (set_config(num_key_value_heads=4), FormatError, r"k_proj.weight` has the shape \[128, 256\]"),
        (set_config(num_local_experts=9), UnsupportedError, "6 tensors have no place .*experts.9"),
        (set_config(num_hidden_layers=3), FormatError, "layers.2.input_layernorm.weight` is missing"),
        (set_config(num_hidden_layers="2"), FormatError, "`num_hidden_layers` is '2'"),
        (set_config(rms_norm_eps=None), FormatError, "`rms_norm_eps` is missing"),
        (
            set_config(architectures=["BertModel"]),
            UnsupportedError,
            "checkpoints of BertModel are not converted",
        ),
        (set_config(architectures=None), FormatError, "`architectures` is None"),
        (set_config(rope_parameters={"rope_type": "longrope"}), UnsupportedError, "'longrope' is not known"),
        (
            set_config(quantization_config={"quant_method": "magic"}),
            UnsupportedError,
            "method 'magic' is not known",
        ),
        (set_config(moe_intermediate_size=999), FormatError, "expert_feed_forward_length` is 999"),
        (shape("layers.1.input_layernorm", (128,)), FormatError, "blk.1.attn_norm.weight"),
        (shape("layers.1.mlp.gate.weight", (4, 256)), FormatError, "blk.1.ffn_gate_inp.weight"),
        (untied, FormatError, "`lm_head.weight` is missing"),
        (set_config(rope_parameters={"rope_type": "dynamic"}), UnsupportedError, "'dynamic' is not known"),
        (set_config(rope_parameters={"rope_type": "llama3"}), UnsupportedError, "'llama3' is not known"),
        (
            set_config(rope_parameters={"rope_type": "proportional"}),
            UnsupportedError,
            "'proportional' is not",
        ),
        (set_config(quantization_config=7), FormatError, "`quantization_config` is 7"),
    ],
)
def test_folders_that_do_not_fit_together(tmp_path, change, error, says):
    folder = broken(tmp_path, "qwen3moe/qwen3moe-bf16", change)
    before = sorted(folder.iterdir())
    with pytest.raises(error, match=says):
        Checkpoint(folder)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", "[]", "config.json is no JSON object"),
        ("tokenizer.json", '{"version": "1.0"}', "of kind None"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "vocabulary or the merges are missing"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 99999999}, "merges": []}}', "no number"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 9999999}, "merges": []}}', "ids go up to"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": ["a"]}}', "'a' is not two tokens"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "the vocabulary is missing"),
        ("tokenizer.json", '{"model": {"type": "WordLevel"}}', "of kind 'WordLevel'"),
    ],
)
def test_damaged_texts(tmp_path, file, content, says):
    folder = make_folder(tmp_path / "hf", "qwen3/qwen3-bf16")
    (folder / file).write_text(content)
    with pytest.raises(IkqError, match=says):
        Checkpoint(folder)


def test_no_tokenizer(tmp_path):
    folder = make_folder(tmp_path / "hf", "qwen3/qwen3-bf16")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        Checkpoint(folder)
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"vocab.json: tokenizers of this form"):
        Checkpoint(folder)
