"""GGUF files: reading what others write, writing what others read."""

import errno
import math
import os
import resource
import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as gguf_dequantize
from golden import TYPES, names, same_floats, vectors

import ikq
from ikq import GGUFReader, GGUFWriter, Metadata, QTensor, Typed
from ikq import QuantType as T

# ---- files by the reference programs

TYPE_COUNTS = {
    "tiny-moe-iq4-ks.gguf": {T.IQ4_KS: 17, T.Q8_0: 8, T.Q5_K: 4, T.Q6_K: 1, T.F32: 21},
    "tiny-moe-iq3-k-r4.gguf": {T.IQ3_K_R4: 16, T.IQ3_K: 1, T.Q8_0: 8, T.Q5_K: 5, T.F32: 21},
    "tiny-moe-iq2-kt.gguf": {T.IQ2_KT: 10, T.IQ3_K: 3, T.IQ4_K: 4, T.Q4_K: 8, T.Q5_K: 5, T.F32: 21},
    "tiny-moe-q8-0-00001-of-00003.gguf": {T.Q8_0: 30, T.F32: 21},
}
# relative error against the BF16 source over all tensors: a misread block is off by 1 or more
LOSS = {T.F32: 0, T.Q8_0: 0.01, T.Q6_K: 0.03, T.Q5_K: 0.06, T.Q4_K: 0.1, T.IQ4_K: 0.1, T.IQ4_KS: 0.12}
LOSS |= {T.IQ3_K: 0.25, T.IQ3_K_R4: 0.25, T.IQ2_KT: 0.45}


@pytest.mark.parametrize("file", sorted(TYPE_COUNTS))
def test_samples_are_read_listed_and_decoded(samples, tiny_moe, file):
    with GGUFReader(samples / file) as model, GGUFReader(tiny_moe) as source:
        assert len(model.tensors) == 51
        assert set(model.tensors) == set(source.tensors)
        counts = {}
        for name, t in model.tensors.items():
            counts[t.type] = counts.get(t.type, 0) + 1
            x, y = source.tensors[name].dequantize(), t.dequantize()
            assert y.shape == x.shape
            loss = np.sqrt(((y - x) ** 2).sum(dtype=np.float64) / (x**2).sum(dtype=np.float64))
            assert loss <= LOSS[t.type], f"{name} ({t.type}): {loss}"
        assert counts == TYPE_COUNTS[file]
        assert model.metadata["general.architecture"] == "qwen3moe"


def test_any_shard_opens_the_split_set(samples):
    paths = [samples / f"tiny-moe-q8-0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    models = [GGUFReader(p) for p in paths]
    assert [s.n_tensors for s in models[0].shards] == [20, 20, 11]
    assert [s.path for s in models[2].shards] == paths
    assert models[0].nbytes == sum(p.stat().st_size for p in paths)
    for model in models[1:]:
        assert list(model.tensors) == list(models[0].tensors)
        assert dict(model.metadata) == dict(models[0].metadata)
    # each shard alone, by the other package
    alone = {t.name: t for p in paths for t in gguf.GGUFReader(p).tensors}
    assert len(alone) == 51
    for name, t in models[1].tensors.items():
        assert t.type == alone[name].tensor_type
        assert np.array_equal(t.raw.reshape(-1), alone[name].data.view(np.uint8).reshape(-1))


def test_a_split_set_equals_the_whole(samples, tmp_path):
    model = GGUFReader(samples / "tiny-moe-q8-0-00001-of-00003.gguf")
    with GGUFWriter(tmp_path / "whole.gguf", model.metadata) as writer:
        writer.add_tensors(model.tensors)
    for split in ({"split_max_tensors": 7}, {"split_max_bytes": 1_500_000}):
        writer = GGUFWriter(tmp_path / "part.gguf", model.metadata, **split)
        writer.add_tensors(model.tensors)
        paths = writer.close()
        assert len(paths) > 3
        assert paths[0].name == f"part-00001-of-{len(paths):05}.gguf"
        part, whole = GGUFReader(paths[-1]), GGUFReader(tmp_path / "whole.gguf")
        assert list(part.tensors) == list(whole.tensors) == list(model.tensors)
        for name in whole.tensors:
            assert part.tensors[name].equals(whole.tensors[name])
            assert whole.tensors[name].equals(model.tensors[name])
        for path in paths:
            path.unlink()


def test_the_interleaved_sample_repacks_both_ways(samples):
    model = GGUFReader(samples / "tiny-moe-iq3-k-r4.gguf")
    checked = 0
    for t in model.tensors.values():
        if t.type is T.IQ3_K_R4:
            plain = ikq.repack(t.raw, t.type, "IQ3_K")
            assert np.array_equal(ikq.repack(plain, "IQ3_K", t.type), t.raw)
            assert same_floats(ikq.dequantize(plain, "IQ3_K"), t.dequantize())
            checked += 1
    assert checked == 16


def test_metadata_agrees_with_the_gguf_package(tiny_moe):
    model, other = GGUFReader(tiny_moe), gguf.GGUFReader(tiny_moe)
    fields = {k: f for k, f in other.fields.items() if not k.startswith("GGUF.")}
    assert list(model.metadata) == list(fields)
    for key, field in fields.items():
        ours, theirs = model.metadata[key], field.contents()
        if isinstance(ours, list) and ours and isinstance(ours[0], bytes):
            theirs = [bytes(field.parts[i]) for i in field.data]  # strings that are not UTF-8
        assert ours == theirs, key
        name = model.metadata.type_of(key)
        assert name.startswith("array[") == (field.types[0] == gguf.GGUFValueType.ARRAY)
        assert name.removeprefix("array[").removesuffix("]") == field.types[-1].name.lower()


# ---- both ways with the gguf package

OTHER_READS = [
    n
    for n in names()
    if T(n).id in gguf.GGMLQuantizationType._value2member_map_
    and gguf.GGMLQuantizationType(T(n).id) in gguf.GGML_QUANT_SIZES
    and n not in ("i2_s", "q8_k_r8", "q8_kv")
]


def other_decodes(data, type_id):
    """What the gguf package makes of the bytes; None where it has no decoder."""
    try:
        with np.errstate(all="ignore"):
            return gguf_dequantize(data, gguf.GGMLQuantizationType(type_id))
    except NotImplementedError:
        return None


def test_the_gguf_package_decodes_most_plain_types():
    decoded = {
        n for n in OTHER_READS if other_decodes(vectors(n).get("gauss.q", _ternary(n)), T(n).id) is not None
    }
    assert {"q4_0", "q6_k", "iq3_s", "iq4_xs", "iq1_m", "tq1_0", "mxfp4", "bf16"} <= decoded
    assert len(decoded) >= 23


def _ternary(name):
    return vectors(name).get("ternary.q", vectors(name).get("gauss.q_im"))


@pytest.mark.parametrize("name", OTHER_READS)
def test_ikq_writes_the_gguf_package_reads(name, tmp_path):
    path, t = tmp_path / "m.gguf", T(name)
    stored = {k: q for k, q in vectors(name).items() if k.split(".")[1] in ("q", "q_im")}
    with GGUFWriter(path, {"general.architecture": "llama"}) as writer:
        for key, q in stored.items():
            n = vectors(name)[key.replace(".q", ".dq")].shape[-1]
            writer.add_tensor(key, QTensor(q, t, (len(q), n)))
    for tensor in gguf.GGUFReader(path).tensors:
        q = stored[tensor.name]
        assert tensor.tensor_type == t.id
        assert np.array_equal(tensor.data.view(np.uint8).reshape(q.shape), q)
        theirs = other_decodes(tensor.data, t.id)
        if theirs is not None:
            assert same_floats(ikq.dequantize(q, t), np.asarray(theirs, np.float32).reshape(len(q), -1))


@pytest.mark.parametrize("name", OTHER_READS)
def test_the_gguf_package_writes_ikq_reads(name, tmp_path):
    path, t = tmp_path / "m.gguf", T(name)
    stored = {k: q for k, q in vectors(name).items() if k.split(".")[1] in ("q", "q_im")}
    writer = gguf.GGUFWriter(path, "llama")
    for key, q in stored.items():
        writer.add_tensor(key, q, raw_dtype=gguf.GGMLQuantizationType(t.id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = GGUFReader(path)
    assert model.metadata["general.architecture"] == "llama"
    for key, tensor in model.tensors.items():
        assert tensor.type is t
        assert np.array_equal(tensor.raw, stored[key])


@pytest.mark.parametrize("t", [t for t in T if t.can_encode])
def test_what_ikq_encodes_the_gguf_package_decodes(t, tmp_path):
    x = np.random.default_rng(7).standard_normal((2, 16, 512), dtype=np.float32)
    path = tmp_path / "m.gguf"
    tensor = QTensor.quantize(x, t)
    with GGUFWriter(path) as writer:
        writer.add_tensor("w", tensor)
    if t.id not in gguf.GGMLQuantizationType._value2member_map_ or (
        gguf.GGMLQuantizationType(t.id) not in gguf.GGML_QUANT_SIZES
    ):
        assert GGUFReader(path).tensors["w"].equals(tensor)
        return
    (theirs,) = gguf.GGUFReader(path).tensors
    assert list(theirs.shape) == [512, 16, 2]
    y = other_decodes(theirs.data, t.id)
    if t is T.Q1_0_G128 and y is None:
        pytest.skip("this version of the gguf package has no decoder for Q1_0")
    assert y is not None, f"the gguf package cannot decode {t}"
    assert same_floats(np.asarray(y, np.float32).reshape(x.shape), tensor.dequantize())


def test_every_stored_type_survives_a_file(tmp_path):
    path, tensors = tmp_path / "m.gguf", {}
    for name in names():
        t, z = T(name), vectors(name)
        key = next(k for k in z if k.split(".")[1] in ("q", "q_im"))
        shape = z[key.replace(".q", ".dq")].shape
        tensors[name] = QTensor(z[key], t, shape)
    with GGUFWriter(path) as writer:
        writer.add_tensors(tensors)
    model = GGUFReader(path)
    assert list(model.tensors) == list(tensors)
    for name, t in model.tensors.items():
        assert t.equals(tensors[name])
        assert t.type.id == TYPES[name]["id"]
        assert same_floats(t.dequantize(), tensors[name].dequantize())


# ---- metadata

VALUES = {
    "a.uint8": Typed(255, "uint8"),
    "a.int8": Typed(-128, "int8"),
    "a.uint16": Typed(65535, "uint16"),
    "a.int16": Typed(-32768, "int16"),
    "a.uint32": Typed(2**32 - 1, "uint32"),
    "a.int32": Typed(-(2**31), "int32"),
    "a.uint64": Typed(2**64 - 1, "uint64"),
    "a.int64": Typed(-(2**63), "int64"),
    "a.float32": Typed(1.5, "float32"),
    "a.float64": Typed(0.1, "float64"),
    "a.bool": Typed(True, "bool"),
    "a.string": Typed("grüße", "string"),
    "a.bytes": Typed(b"\xff\xfe", "string"),
    "b.ints": Typed([1, 2, 3], "array[uint8]"),
    "b.floats": Typed([0.5, -2.0], "array[float64]"),
    "b.bools": Typed([True, False], "array[bool]"),
    "b.strings": Typed(["a", "", "ü"], "array[string]"),
    "b.empty": Typed([], "array[int32]"),
    "b.nested": Typed([[1, 2], [3]], "array[array[int16]]"),
}


def test_every_metadata_type_survives_a_file(tmp_path):
    path = tmp_path / "m.gguf"
    with GGUFWriter(path, VALUES) as writer:
        assert len(writer.metadata) == len(VALUES)
    model = GGUFReader(path)
    assert list(model.metadata) == list(VALUES)
    for key, (value, type_name) in VALUES.items():
        assert model.metadata[key] == value
        assert model.metadata.type_of(key) == type_name
    other = gguf.GGUFReader(path)
    assert other.get_field("a.float64").contents() == 0.1
    assert other.get_field("b.strings").contents() == ["a", "", "ü"]


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (True, "bool"),
        ("x", "string"),
        (b"\xff", "string"),
        (1.5, "float32"),
        (7, "uint32"),
        (-7, "int32"),
        (2**32, "uint64"),
        (-(2**31) - 1, "int64"),
        ([1, 2**40], "array[uint64]"),
        ([1, -1], "array[int32]"),
        ([1, 1.5], "array[float32]"),
        ((True, False), "array[bool]"),
        ([["a"], ["b", "c"]], "array[array[string]]"),
        (np.float64(0.1), "float64"),
        (np.int8(-3), "int8"),
        (np.bool_(True), "bool"),
        (np.arange(3, dtype=np.uint16), "array[uint16]"),
        (np.zeros(2, np.float16), "array[float32]"),
        (np.array(["a", "b"]), "array[string]"),
    ],
)
def test_types_are_inferred(value, type_name):
    m = Metadata({"k": value})
    assert m.type_of("k") == type_name
    plain = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    assert m["k"] == (list(plain) if isinstance(plain, tuple) else plain)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no metadata type holds None"),
        ([], "the type of an empty array is unknown"),
        ([1, "a"], "no metadata type holds"),
        ([True, 1], "no metadata type holds"),
        (2**64, "no metadata type holds"),
        ([-1, 2**63], "no metadata type holds"),
        (np.zeros((2, 2)), "one axis, not 2"),
        (np.zeros(2, np.complex64), "unknown value type `array.complex64.`"),
        (Typed(256, "uint8"), "the value is no uint8"),
        (Typed("a", "int32"), "the value is no int32"),
        (Typed([1, "a"], "array[int32]"), "the value is no array"),
        (Typed(1, "uint128"), "unknown value type `uint128`; use uint8, "),
    ],
)
def test_values_that_no_type_holds(value, message):
    with pytest.raises(ikq.FormatError, match=f"key `k`: .*{message}"):
        Metadata({"k": value})


def test_metadata_is_a_mapping():
    m = Metadata({"a": 1, "b": "x"})
    m["a"] = 2
    assert (list(m), dict(m), len(m), "a" in m, 3 in m) == (["a", "b"], {"a": 2, "b": "x"}, 2, True, False)
    other = m.copy()
    del other["a"]
    assert "a" in m
    for key in ("a", "c"):
        with pytest.raises(KeyError):
            del other[key]
        with pytest.raises(KeyError):
            other[key]
        with pytest.raises(KeyError):
            other.type_of(key)


def test_unchanged_metadata_is_written_byte_for_byte(tiny_moe, tmp_path):
    path = tmp_path / "copy.gguf"
    model = GGUFReader(tiny_moe)
    with GGUFWriter(path, model.metadata) as writer:
        writer.add_tensors(model.tensors)
    assert path.read_bytes() == tiny_moe.read_bytes()
    model.metadata["general.name"] = "other"  # the reader's copy, not its file
    assert path.read_bytes() == tiny_moe.read_bytes()


# ---- tensors


def test_tensors_are_views_of_the_file_and_outlive_the_reader(tiny_moe):
    with GGUFReader(tiny_moe) as model:
        t = model.tensors["token_embd.weight"]
        again = model.tensors["token_embd.weight"]
        assert np.shares_memory(t.raw, again.raw)
        assert repr(model).endswith("51 tensors)")
        with pytest.raises(KeyError):
            model.tensors["nothing"]
    assert len(model.tensors) == 0
    del model, again
    assert math.isfinite(float(t.dequantize().sum()))
    with pytest.raises(ValueError, match="read-only|WRITEABLE"):
        t.raw.flags.writeable = True


def test_reading_maps_and_does_not_copy(tiny_moe):
    """Listing a file must not read its tensors, nor count them as memory of the process."""
    code = f"""
import ikq, resource
def rss(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = rss()
model = ikq.GGUFReader({str(tiny_moe)!r})
tensors = list(model.tensors.values())
print(rss() - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert grown < tiny_moe.stat().st_size // 4


def test_arrays_are_stored_as_they_are(tmp_path):
    path = tmp_path / "m.gguf"
    arrays = {
        d: np.arange(6).reshape(2, 3).astype(d)
        for d in ("float32", "float16", "float64", "int8", "int16", "int32", "int64", ">f4")
    }
    with GGUFWriter(path) as writer:
        for name, a in arrays.items():
            writer.add_tensor(name, a)
    model = GGUFReader(path)
    for name, a in arrays.items():
        t = model.tensors[name]
        assert t.shape == (2, 3)
        assert np.array_equal(t.raw.reshape(-1).view(a.dtype.newbyteorder("<")), a.reshape(-1))
        assert np.array_equal(t.dequantize(), a.astype(np.float32))
    with pytest.raises(ikq.FormatError, match="arrays of complex64 cannot be stored"):
        GGUFWriter(path).add_tensor("c", np.zeros(3, np.complex64))


def test_unknown_types_are_listed_copied_and_not_decoded(tmp_path):
    path, odd = tmp_path / "m.gguf", tmp_path / "odd.gguf"
    with GGUFWriter(path) as writer:
        writer.add_tensor("known", np.zeros((2, 32), np.float32))
        writer.add_tensor("strange", QTensor(bytes(68), "Q8_0", (2, 32)))
    data = path.read_bytes()
    at = data.index(b"strange") + len(b"strange") + 4 + 16
    assert data[at : at + 4] == (8).to_bytes(4, "little")
    odd.write_bytes(data[:at] + (999).to_bytes(4, "little") + data[at + 4 :])
    model = GGUFReader(odd)
    t = model.tensors["strange"]
    assert (t.type, t.shape) == (999, (2, 32))
    assert "999" in repr(t)
    with pytest.raises(ikq.UnsupportedError, match="`strange` has type 999, which ikq does not know"):
        t.dequantize()
    with pytest.raises(ikq.UnsupportedError, match="cannot be cut"):
        t[0]
    with GGUFWriter(path) as writer:
        writer.add_tensors(model.tensors)
    assert GGUFReader(path).tensors["strange"].equals(t)


# ---- writing


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(tmp_path, alignment):
    path = tmp_path / "m.gguf"
    with GGUFWriter(path, alignment=alignment) as writer:
        writer.add_tensor("a", np.ones(3, np.float32))
        writer.add_tensor("b", np.ones(5, np.float32))
    model, other = GGUFReader(path), gguf.GGUFReader(path)
    assert model.shards[0].alignment == alignment
    assert model.metadata["general.alignment"] == alignment
    assert all(t.data_offset % alignment == 0 for t in other.tensors)
    assert np.array_equal(model.tensors["b"].dequantize(), np.ones(5, np.float32))


def test_nothing_is_left_after_an_exception(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"precious")

    def fail():
        with GGUFWriter(path) as writer:
            writer.add_tensor("a", np.ones(3, np.float32))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_a_file_can_be_written_over_the_one_being_read(tiny_moe, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_moe.read_bytes())
    model = GGUFReader(path)
    with GGUFWriter(path, model.metadata) as writer:
        writer.add_tensors(reversed(list(model.tensors.items())))
    again = GGUFReader(path)
    assert list(again.tensors) == list(model.tensors)[::-1]
    assert all(again.tensors[n].equals(t) for n, t in model.tensors.items())


def test_a_writer_ends_once(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf")
    assert writer.close() == (tmp_path / "m.gguf",)
    with pytest.raises(ikq.IkqError, match="closed"):
        writer.close()
    with pytest.raises(ikq.IkqError, match="closed"):
        writer.add_tensor("a", np.ones(3, np.float32))
    with GGUFWriter(tmp_path / "n.gguf") as writer:
        writer.close()
    assert len(GGUFReader(tmp_path / "n.gguf").tensors) == 0


def test_wrong_plans_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    x = np.ones((2, 2), np.float32)
    writer = GGUFWriter(path)
    writer.add_tensor("a", x)
    with pytest.raises(ikq.FormatError, match="`a` is added twice"):
        writer.add_tensor("a", x)
    for options in ({"alignment": 24}, {"alignment": 4}, {"split_max_tensors": 0}):
        with pytest.raises(ikq.FormatError):
            GGUFWriter(path, **options).close()
    with pytest.raises(ikq.ShapeError, match="not by both"):
        GGUFWriter(path, split_max_bytes=10, split_max_tensors=1).close()
    assert [p.name for p in tmp_path.iterdir()] == []


# ---- the operating system's errors keep their kind


def test_missing_files_and_directories(tmp_path):
    missing = tmp_path / "nö.gguf"
    with pytest.raises(FileNotFoundError) as e:
        GGUFReader(missing)
    assert e.value.filename == str(missing)
    assert e.value.errno == errno.ENOENT
    with pytest.raises(IsADirectoryError) as e:
        GGUFReader(tmp_path)
    assert e.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError) as e:
        GGUFWriter(tmp_path / "no" / "m.gguf").close()
    with pytest.raises(IsADirectoryError):
        GGUFWriter(tmp_path).close()
    assert [p.name for p in tmp_path.iterdir()] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    with pytest.raises(PermissionError):
        GGUFReader(path)


def test_damaged_files_are_named(tiny_moe, tmp_path):
    path = tmp_path / "m.gguf"
    whole = tiny_moe.read_bytes()
    for content, message in [
        (b"", "is empty"),
        (b"GG", "ends at byte 2"),
        (b"nonsense" * 100, "magic|GGUF"),
        (whole[:1000], "cannot be in this file"),
        (whole[:-1000], "do not fit a file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ikq.FormatError, match=message) as e:
            GGUFReader(path)
        assert str(path) in str(e.value)


def test_a_missing_shard_is_named(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", split_max_tensors=1)
    writer.add_tensor("a", np.ones(3, np.float32))
    writer.add_tensor("b", np.ones(3, np.float32))
    first, second = writer.close()
    second.unlink()
    with pytest.raises(FileNotFoundError, match="shard 2 of 2 is missing") as e:
        GGUFReader(first)
    assert e.value.errno == errno.ENOENT


def test_a_file_size_limit(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"precious")
    writer = GGUFWriter(path)
    writer.add_tensor("a", np.ones((1024, 1024), np.float32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="file size limit") as e:
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert e.value.errno == errno.EFBIG
    assert e.value.filename == str(path)
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
