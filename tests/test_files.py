"""`gguf-split`, `gguf-hash`, `diff`, `validate`, and what is behind them in `ikq.files`."""

import hashlib
import itertools
import json
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ikq
from ikq.__main__ import main
from ikq.files import check_file, compare_files, hash_file, plan_split
from ikq.files.blocks import blocks


def run(capsys, *arguments, code=0):
    assert main([str(a) for a in arguments]) == code
    return capsys.readouterr().out


def small(path, metadata=None, **tensors):
    """A file that holds no model that could run."""
    with ikq.GGUFWriter(path, {"general.architecture": "small", "a.b": 1} | (metadata or {})) as writer:
        for name, data in tensors.items():
            writer.add_tensor(name, data)
    return path


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


METADATA = {
    "text": "Grüße",
    "bytes": b"\xff\xfe",
    "texts": ["a", "bc", ""],
    "numbers": [1, 2, 3],
    "nested": [[1, 2], [3]],
    "empty": ikq.Typed([], "array[string]"),
    "flags": [True, False],
    "double": ikq.Typed(0.5, "float64"),
    "byte": ikq.Typed(7, "uint8"),
    "long": 1 << 40,
}


@given(
    sizes=st.lists(st.integers(1, 40), min_size=0, max_size=12),
    limit=st.one_of(st.integers(1, 4).map(lambda n: ("max_tensors", n)), st.integers(1, 4000).map(lambda n: ("max_bytes", n))),
    first=st.booleans(),
    alignment=st.sampled_from([32, 64, 1024]),
)  # fmt: skip
def test_a_plan_is_what_is_written(tmp_path_factory, sizes, limit, first, alignment):
    folder = tmp_path_factory.mktemp("plan")
    source = folder / "source.gguf"
    with ikq.GGUFWriter(source, METADATA, alignment=alignment) as writer:
        for i, n in enumerate(sizes):
            writer.add_tensor(f"tensor.{i}", floats(n, seed=i))
    with ikq.GGUFReader(source) as model:
        plan = plan_split(model, **dict([limit]), no_tensor_first_split=first)
        kind, n = limit
        options = {f"split_{kind}": n, "no_tensor_first_split": first}
        writer = ikq.GGUFWriter(folder / "set.gguf", model.metadata, **options)
        writer.add_tensors(model.tensors)
        paths = writer.close()
    with ikq.GGUFReader(paths[0]) as written:
        assert [s.nbytes for s in written.shards] == [s.nbytes for s in plan]
        assert [s.n_tensors for s in written.shards] == [len(s.tensors) for s in plan]
        assert [name for s in plan for name in s.tensors] == list(written.tensors)


@pytest.mark.parametrize(
    "options", [{}, {"max_bytes": 1, "max_tensors": 1}, {"max_tensors": 0}, {"max_bytes": -1}]
)
def test_plans_that_make_no_sense(tmp_path, options):
    with ikq.GGUFReader(small(tmp_path / "a.gguf")) as model, pytest.raises(ikq.RefusedError):
        plan_split(model, **options)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--split-max-tensors", "20"],
        ["--split-max-size", "5M", "--no-tensor-first-split"],
        ["--split", "--split-max-size", "1M"],
    ],
)
def test_split_and_merge(tiny_moe, tmp_path, capsys, options):
    planned = run(capsys, "gguf-split", *options, "--dry-run", tiny_moe, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    out = run(capsys, "split", *options, tiny_moe, tmp_path / "set.gguf")
    assert out.splitlines()[:-1] == planned.splitlines()[:-1]
    paths = sorted(tmp_path.iterdir())
    assert out.splitlines()[0] == f"n_split: {len(paths)}"
    for line, path in zip(out.splitlines()[1:], paths, strict=False):
        assert f"({path.stat().st_size} bytes)" in line
    if "--no-tensor-first-split" in options:
        assert "n_tensors = 0" in out.splitlines()[1]
    merged = tmp_path / "merged.gguf"
    assert "nothing was written" in run(capsys, "gguf-split", "--merge", paths[-1], merged, "--dry-run")
    assert not merged.exists()
    run(capsys, "merge", paths[-1], merged)
    assert merged.read_bytes() == tiny_moe.read_bytes()
    # the set's data are those of the file
    with ikq.GGUFReader(tiny_moe) as a, ikq.GGUFReader(paths[0]) as b:
        assert list(hash_file(a, ["uuid", "sha1"])) == list(hash_file(b, ["uuid", "sha1"]))


def test_merging_is_complete_or_not_at_all(tiny_moe, tmp_path, capsys):
    run(capsys, "gguf-split", "--split-max-tensors", "20", tiny_moe, tmp_path / "set")
    paths = sorted(tmp_path.iterdir())
    merged = tmp_path / "merged.gguf"
    merged.write_bytes(b"old")
    assert main(["merge", str(paths[0]), str(merged)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    cut = paths[1].read_bytes()
    paths[1].write_bytes(cut[:-1000])
    assert main(["merge", "--overwrite", str(paths[0]), str(merged)]) == 1
    paths[1].unlink()
    assert main(["merge", "--overwrite", str(paths[0]), str(merged)]) == 1
    assert str(paths[1]) in capsys.readouterr().err
    assert merged.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3
    paths[1].write_bytes(cut)
    run(capsys, "merge", "--overwrite", paths[0], merged)
    assert merged.read_bytes() == tiny_moe.read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--merge", "IN", "new"],
        ["--merge", "--split-max-size", "1G", "IN", "new"],
        ["--merge", "--no-tensor-first-split", "IN", "new"],
    ],
)
def test_what_split_refuses(arguments, tiny_moe, tmp_path, capsys):
    words = {"IN": str(tiny_moe), "new": str(tmp_path / "new")}
    assert main(["gguf-split", *(words.get(a, a) for a in arguments)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_files_of_no_tensors_are_refused(tiny_moe, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        main(["gguf-split", "--split-max-tensors", "0", str(tiny_moe), str(tmp_path / "new")])
    assert e.value.code == 2
    assert "--split-max-tensors: 0: expected 1 or more" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sets_of_the_reference(samples, tmp_path, capsys):
    run(capsys, "merge", samples / "tiny-moe-q8-0-00002-of-00003.gguf", tmp_path / "q8.gguf")
    with ikq.GGUFReader(tmp_path / "q8.gguf") as model:
        assert len(model.tensors) == 51
        assert "split.count" not in model.metadata
    # at most 20 tensors in a file, as the reference made it
    run(capsys, "split", "--split-max-tensors", "20", tmp_path / "q8.gguf", tmp_path / "q8")
    for path in tmp_path.glob("q8-*"):
        other = samples / path.name.replace("q8", "tiny-moe-q8-0", 1)
        assert path.stat().st_size == other.stat().st_size
        assert main(["diff", str(path), str(other)]) == 0


def test_hashes(tmp_path, capsys):
    tensors = {"a": floats(7), "b": ikq.QTensor.quantize(floats(3, 64), "IQ4_NL")}
    path = small(tmp_path / "m.gguf", **tensors)
    data = [tensors["a"].tobytes(), tensors["b"].raw.tobytes()]
    out = run(capsys, "gguf-hash", "--all", "--uuid", path).splitlines()
    whole = b"".join(data)
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "en.wikipedia.org/wiki/Llama.cpp")
    # what version 5 means, for bytes
    digest = bytearray(hashlib.sha1(namespace.bytes + whole).digest()[:16])
    digest[6] = digest[6] & 15 | 0x50
    digest[8] = digest[8] & 63 | 0x80
    assert [line.split(maxsplit=2) for line in out] == [
        ["sha256", hashlib.sha256(data[0]).hexdigest(), f"{path}:a"],
        ["sha1", hashlib.sha1(data[0]).hexdigest(), f"{path}:a"],
        ["sha256", hashlib.sha256(data[1]).hexdigest(), f"{path}:b"],
        ["sha1", hashlib.sha1(data[1]).hexdigest(), f"{path}:b"],
        ["sha256", hashlib.sha256(whole).hexdigest(), str(path)],
        ["sha1", hashlib.sha1(whole).hexdigest(), str(path)],
        ["uuid", str(uuid.UUID(bytes=bytes(digest))), str(path)],
    ]
    assert run(capsys, "gguf-hash", path).splitlines() == [out[0], out[2], out[4]]
    assert run(capsys, "gguf-hash", "--no-layer", path).splitlines() == [out[4]]


def test_manifests(tmp_path, capsys):
    path = small(tmp_path / "m.gguf", a=floats(7), b=floats(8))
    manifest = tmp_path / "manifest"
    text = run(capsys, "gguf-hash", "--all", path)
    # another folder, and a kind that is not computed here
    manifest.write_text(
        text.replace(str(tmp_path), "C:/m.gguf.d") + "xxh64     f66e9cd66a4396a0  m.gguf:a\n\n"
    )
    out = run(capsys, "gguf-hash", "--check", manifest, path)
    assert [x.split()[0] for x in out.splitlines()[:3]] == ["sha256"] * 3
    assert out.count("  -  Ok\n") == 3
    assert out.endswith("- Success\n")
    assert run(capsys, "gguf-hash", "-c", manifest, "--all", path).count("  -  Ok\n") == 6
    small(path, a=floats(7), b=floats(8, seed=1), c=floats(2))
    out = run(capsys, "gguf-hash", "--check", manifest, path, code=1).splitlines()
    assert [(x.split()[2].rpartition(":")[2], x.split("  -  ")[1]) for x in out[:3]] == [
        ("a", "Ok"),
        ("b", "Mismatch"),
        ("c", "Not Found"),
    ]
    assert out[3].endswith("m.gguf  -  Mismatch")
    assert out[-1].endswith("- Failure")
    small(path, a=floats(7))
    assert "m.gguf:b  -  Missing" in run(capsys, "gguf-hash", "--check", manifest, path, code=1)
    for bad, why in (
        ("sha256 12", "line 1"),
        ("md5  12  m.gguf", "line 1"),
        ("xxh64  12  m.gguf", "no hash"),
        ("sha1  12  other.gguf", "says nothing"),
        ("sha1  12  am.gguf:a", "says nothing"),
        ("", "no hash"),
    ):
        manifest.write_text(bad)
        assert main(["gguf-hash", "-c", str(manifest), str(path)]) == 1
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("type_name", "shape"),
    [
        *itertools.product(["F32", "BF16", "Q4_0_R8", "IQ2_K_R4", "I2_S"], [(32, 256), (3, 16, 256)]),
        # a vector has no groups of rows
        *itertools.product(["F32", "BF16"], [(256,)]),
    ],
)
@pytest.mark.parametrize("together", [1, 3, 32])
def test_blocks(type_name, shape, together, monkeypatch):
    monkeypatch.setattr("ikq.files.blocks._ELEMENTS", 3000)
    tensor = ikq.QTensor.quantize(np.sign(floats(*shape)), type_name)
    found = np.full(shape, np.nan, np.float32)
    for start, values in blocks(tensor, together=together):
        assert len(start) == len(shape)
        place = found[start[:-2]] if len(shape) > 1 else found[np.newaxis]
        row = start[-2] if len(shape) > 1 else 0
        place[row : row + len(values)] = values
    assert np.array_equal(found, tensor.dequantize())
    if type_name == "BF16" and len(shape) > 1:
        assert max(len(values) for _, values in blocks(tensor)) == 11
        assert {len(values) for _, values in blocks(tensor, together=6)} <= {6, shape[-2] % 6}


@pytest.mark.parametrize(
    "pair", list(itertools.combinations(["F32", "IQ2_K_R4", "Q8_KV_R8", "BF16_R16", "I2_S"], 2))
)
def test_types_that_store_rows_differently_are_compared(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("ikq.files.blocks._ELEMENTS", 3000)
    x = np.sign(floats(2, 48, 256))
    a, b = (ikq.QTensor.quantize(x, t) for t in pair)
    paths = [small(tmp_path / f"{i}.gguf", x=t) for i, t in enumerate((a, b))]
    with ikq.GGUFReader(paths[0]) as first, ikq.GGUFReader(paths[1]) as second:
        (found,) = compare_files(first, second).tensors
    p, q = (t.dequantize().astype(np.float64) for t in (a, b))
    assert found.relative_error == pytest.approx(np.sqrt(((p - q) ** 2).sum() / (p**2).sum()))
    assert found.largest == np.abs(p - q).max()


def test_differences(tmp_path, capsys):
    x, q = floats(16, 256), ikq.QTensor.quantize(floats(16, 256), "Q8_0")
    y = x.copy()
    y[3, 5] += 2
    nan = np.array([np.nan, np.inf, 1], np.float32)
    a = small(
        tmp_path / "a.gguf",
        {"gone": 1, "same": [1.5], "kind": 3, "list": list(range(100)), "nan": float("nan")},
        same=x, value=x, type=x, shape=x, only_a=x, infinite=nan,
    )  # fmt: skip
    b = small(
        tmp_path / "b.gguf",
        {"new": "n", "same": [1.5], "kind": ikq.Typed(3, "uint64"), "list": [*range(99), 7], "nan": float("nan")},
        same=x, value=y, type=q, shape=x[:8], only_b=x, infinite=nan + np.float32([0, 0, 1]),
    )  # fmt: skip
    out = run(capsys, "diff", a, b, code=1)
    norm = np.sqrt((x.astype(np.float64) ** 2).sum())
    for line in (
        "- gone = 1",
        "+ new = 'n'",
        "! kind: 'uint32 3' -> 'uint64 3'",
        "! list: 1 elements differ, the first is [99]: 99 -> 7",
        "- tensor only_a",
        "+ tensor only_b",
        f"! tensor value: relative error {2 / norm:.4g}, largest difference 2",
        "! tensor shape: 256 x 16 -> 256 x 8",
        "1 tensors are the same, 4 differ, 1 only in the first, 1 only in the second",
    ):
        assert line in out.splitlines()
    assert "same" not in out.split("tensors are the same")[0]
    assert "! tensor type: f32 -> q8_0, relative error 0.00" in out
    found = json.loads(run(capsys, "diff", a, b, "--json", code=1))
    assert not found["is_same"]
    assert found["changed"]["list"][1][-1] == 7
    by_name = {t["name"]: t for t in found["tensors"]}
    error = np.sqrt(((x - q.dequantize()).astype(np.float64) ** 2).sum()) / norm
    assert by_name["type"]["relative_error"] == pytest.approx(error)
    assert by_name["shape"]["relative_error"] is None
    # what is infinite in both is the same; beside infinity the difference is nothing
    assert by_name["infinite"]["largest"] == 1
    assert "values not compared: not asked for" in run(capsys, "diff", a, b, "--no-values", code=1)
    assert run(capsys, "diff", a, a) == ""
    assert json.loads(run(capsys, "diff", a, a, "--json"))["is_same"]


def test_order_counts_and_keys_can_be_ignored(tmp_path, capsys):
    a = small(tmp_path / "a.gguf", {"k": 1}, x=floats(4), y=floats(5))
    b = small(tmp_path / "b.gguf", {"k": 2}, y=floats(5), x=floats(4))
    assert "another order" in run(capsys, "diff", a, b, code=1)
    c = small(tmp_path / "c.gguf", {"k": 2}, x=floats(4), y=floats(5))
    run(capsys, "diff", a, c, code=1)
    assert run(capsys, "diff", a, c, "--ignore-key", "k") == ""


def test_errors_of_diff_are_2(tiny_moe, tmp_path, capsys):
    (tmp_path / "no.gguf").write_bytes(b"no")
    for other in ("no.gguf", "missing.gguf"):
        assert main(["diff", str(tiny_moe), str(tmp_path / other)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")


def test_a_sound_file(tiny_moe, capsys):
    out = run(capsys, "validate", "-vq", tiny_moe).splitlines()
    assert out[1:] == [
        "architecture: qwen3moe, runs in ikq",
        "tokenizer: gpt2 (qwen2), 4096 tokens",
        "types: 30 BF16, 21 F32",
        "all types are known to: ik_llama.cpp, llama.cpp",
        "values: 51 tensors looked at, 0 not finite",
        "fine",
    ]
    found = json.loads(run(capsys, "validate", tiny_moe, "--json"))
    assert found["is_fine"]
    assert found["n_scanned"] == 0


def test_where_values_are_not_finite(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ikq.files.blocks._ELEMENTS", 1000)
    vector, matrix, experts = floats(300), floats(40, 256), floats(3, 40, 256)
    vector[7] = -np.inf
    matrix[13, 5] = matrix[20, 0] = np.nan
    experts[2, 30, 255] = np.inf
    path = small(
        tmp_path / "m.gguf", vector=vector, matrix=matrix, experts=experts, fine=floats(4),
        bf16=ikq.QTensor((floats(2, 32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), "BF16", (2, 32)),
    )  # fmt: skip
    data = bytearray(ikq.quantize(floats(4, 32), "Q8_0").tobytes())
    data[34 * 3 : 34 * 3 + 2] = np.float16(np.nan).tobytes()
    scaled = small(tmp_path / "q.gguf", q=ikq.QTensor(bytes(data), "Q8_0", (4, 32)))
    assert "fine" in run(capsys, "validate", path)
    out = run(capsys, "validate", "-vq", path, code=1).splitlines()
    assert [line for line in out if line.startswith("problem")] == [
        "problem: tensor `vector`: 1 values are not finite, the first is -inf at column 7",
        "problem: tensor `matrix`: 2 values are not finite, the first is nan at row 13, column 5",
        "problem: tensor `experts`: 1 values are not finite, the first is inf at expert 2, row 30, column 255",
    ]
    assert out[-1] == "3 problems"
    found = check_file(scaled, values=True).not_finite
    assert [(f.count, f.place, f.value) for f in found] == [(32, (3, 0), "nan")]


def test_files_that_are_not_sound(tiny_moe, tmp_path, capsys):
    path = tmp_path / "m.gguf"
    data = tiny_moe.read_bytes()
    for damaged in (b"", data[:100], data[:-5000], b"GGUX" + data[4:]):
        path.write_bytes(damaged)
        out = run(capsys, "validate", path, code=1)
        assert out.startswith("problem: ")
        assert out.endswith("1 problems\n")
    assert main(["validate", str(tmp_path / "missing.gguf")]) == 1
    with ikq.GGUFReader(tiny_moe) as model:
        tensors = {k: v for k, v in model.tensors.items() if k != "blk.1.attn_q.weight"}
        metadata = model.metadata.copy()
    with ikq.GGUFWriter(path, metadata) as writer:
        writer.add_tensors(tensors)
    assert "attn_q" in run(capsys, "validate", path, code=1)
    metadata["tokenizer.ggml.token_type"] = [1, 2, 3]
    with ikq.GGUFWriter(path, metadata) as writer:
        writer.add_tensors(tensors)
    assert "tokenizer: damaged" in run(capsys, "validate", path, code=1)


def test_files_that_ikq_does_not_run(tmp_path, capsys):
    """No problem of the file."""
    path = small(tmp_path / "m.gguf", x=ikq.QTensor.quantize(floats(8, 256), "IQ4_KS_R4"))
    out = run(capsys, "validate", path)
    assert "architecture: small, does not run in ikq: " in out
    assert "all types are known to: ik_llama.cpp\n" in out
    other = small(tmp_path / "o.gguf", {"general.type": "imatrix"}, x=floats(3))
    assert "it holds no model" in run(capsys, "validate", other)


def test_unknown_types(tmp_path, capsys):
    """They are listed, copied and compared by their bytes."""
    path = small(tmp_path / "m.gguf", a=floats(32), b=floats(32))
    data = bytearray(path.read_bytes())
    with ikq.GGUFReader(path) as model:
        assert model.tensors["b"].nbytes == 128
    at = data.index(b"\x01\x00\x00\x00\x00\x00\x00\x00b") + 9 + 4 + 8
    assert data[at : at + 4] == bytes(4)
    data[at : at + 4] = (9999).to_bytes(4, "little")
    path.write_bytes(data)
    out = run(capsys, "validate", "-vq", path, code=1)
    assert "problem: tensor `b` has type 9999, which ikq does not know" in out
    assert "all types are known to: no program" in out
    assert "not looked at, their type cannot be decoded: b" in out
    data[-1] ^= 1
    (tmp_path / "n.gguf").write_bytes(data)
    with ikq.GGUFReader(path) as a, ikq.GGUFReader(tmp_path / "n.gguf") as b:
        (found,) = compare_files(a, b).tensors
    assert found.types == ("unknown type 9999",) * 2
    assert "does not know" in found.why_not
    run(capsys, "split", "--split-max-tensors", "1", path, tmp_path / "set")
    run(capsys, "merge", tmp_path / "set-00001-of-00002.gguf", tmp_path / "merged.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == path.read_bytes()


def test_files_are_compared_with_what_ikq_wrote(tiny_moe, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    ikq.quantize_file(tiny_moe, out, "IQ4_KS", custom_q="attn_v=i2_s,ffn_down=q4_0_r8")
    assert "bytes: 51 of 51 tensors are as ikq wrote them" in run(capsys, "validate", "-vq", out)
    raw = bytearray(out.read_bytes())
    content = ikq.GGUFReader(out).tensors["blk.2.ffn_up_exps.weight"].raw.tobytes()
    raw[raw.index(content) + len(content) - 1] ^= 1
    out.write_bytes(raw)
    report = check_file(out, values=True)
    assert (report.n_hashed, report.changed) == (51, ("blk.2.ffn_up_exps.weight",))
    text = run(capsys, "validate", "-vq", out, code=1)
    assert "bytes: 50 of 51 tensors" in text
    assert "`blk.2.ffn_up_exps.weight` has other bytes than ikq wrote" in text
    assert check_file(tiny_moe, values=True).n_hashed == 0
    # a set has them file by file
    ikq.quantize_file(tiny_moe, tmp_path / "s.gguf", "Q8_0", split_max_tensors=20)
    report = check_file(tmp_path / "s-00001-of-00003.gguf", values=True)
    assert (report.n_hashed, report.changed) == (51, ())
