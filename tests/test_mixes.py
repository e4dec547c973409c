"""Named mixes: every decision of the reference's quantizer for synthetic models, and ikq's own rules.

`data/mix_decisions.json.gz` holds what ik_llama.cpp's tool answered under `--dry-run`: 14 models, 80 names of
TYPE, with and without an imatrix. Here the same models are written as headers without data, and planned.
"""

import gzip
import json
import struct
from functools import cache
from pathlib import Path

import gguf
import pytest

import ikq

GOLDEN = Path(__file__).parent / "data" / "mix_decisions.json.gz"


@cache
def golden():
    return json.loads(gzip.decompress(GOLDEN.read_bytes()))


N_MODELS = 14


def write_model(path, m, types=gguf.GGMLQuantizationType.F16):
    """The model of the golden file: metadata, directory, and a hole where the data would be."""
    writer = gguf.GGUFWriter(path, m["arch"])
    writer.add_block_count(m["layers"])
    writer.add_head_count(m["heads"])
    writer.add_head_count_kv(m["kv_heads"])
    writer.add_embedding_length(m["embedding"])
    writer.add_feed_forward_length(m["feed_forward"])
    writer.add_vocab_size(m["vocab"])
    if m["experts"]:
        writer.add_expert_count(m["experts"])
        writer.add_expert_used_count(m["experts_used"])
    n_bytes = 0
    for name, ne in m["tensors"]:
        # the router and vectors are F32, as converters write them
        f32 = len(ne) == 1 or "ffn_gate_inp" in name
        size = 4 if f32 else 2
        for n in ne:
            size *= n
        kind = gguf.GGMLQuantizationType.F32 if f32 else types
        writer.add_tensor_info(
            name, list(reversed(ne)), "float32" if f32 else "float16", size, raw_dtype=kind
        )
        n_bytes += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as f:
        f.truncate(-(-path.stat().st_size // 32) * 32 + n_bytes)
    return path


def write_imatrix(path, m):
    """An entry of ones for every tensor."""
    entries = [(name.encode(), ne) for name, ne in m["tensors"]]
    with path.open("wb") as f:
        f.write(struct.pack("<i", len(entries)))
        for name, ne in entries:
            n = ne[0] * (ne[2] if len(ne) > 2 else 1)
            f.write(struct.pack("<i", len(name)) + name + struct.pack("<ii", 1, n))
            f.write(struct.pack("<f", 1.0) * n)
    return path


@pytest.fixture(scope="module", params=range(N_MODELS))
def model(request, tmp_path_factory):
    m = golden()["models"][request.param]
    folder = tmp_path_factory.mktemp("mix")
    return m, write_model(folder / "m.gguf", m), write_imatrix(folder / "m.dat", m)


def decided(plan):
    return {t.name: t.to_type.name.lower() for t in plan.tensors if not t.copied}


def test_the_golden_file_is_whole():
    assert len(golden()["models"]) == N_MODELS
    n = sum(
        len(members)
        for m in golden()["models"]
        for setting in m["decisions"].values()
        for decisions in setting.values()
        if decisions
        for members in decisions.values()
    )
    assert n == 289_386


@pytest.mark.parametrize("setting", ["without_imatrix", "with_imatrix"])
def test_every_decision_of_the_reference(model, setting):
    m, path, imatrix = model
    names = [name for name, _ in m["tensors"]]
    wrong = {}
    for ftype, decisions in m["decisions"][setting].items():
        plan = ikq.plan_quantization(
            path,
            None,
            ftype,
            imatrix=ikq.Imatrix(imatrix) if setting == "with_imatrix" else None,
            ignore_imatrix_rules=True,
        )
        if decisions is None:
            # the reference's encoder of these types aborts on such rows; ikq falls back
            assert ftype in ("IQ1_BN", "IQ2_BN", "IQ2_BN_R4")
            assert any(t.fallback_from is not None for t in plan.tensors)
            continue
        expected = {names[i]: t.lower() for t, members in decisions.items() for i in members}
        found = decided(plan)
        for name in expected.keys() | found.keys():
            if expected.get(name) != found.get(name):
                wrong[ftype, name] = (found.get(name), expected.get(name))
    assert not wrong, f"{len(wrong)} of them, such as {list(wrong.items())[:5]} (found, expected)"
