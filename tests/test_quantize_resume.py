"""Quantizing that is killed, damaged, refused or repeated: the same bytes in the end, nothing done twice."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from partial_outputs import SLOT, items, noted

import ikq

DATA = Path(__file__).parent / "data"
MODEL = DATA / "tiny-moe-bf16.gguf"
IMATRIX = DATA / "imatrix-plain.dat"
N_THREADS = 2


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "ikq", "quantize", *map(str, words)]


def run(*words: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=300, **kwargs)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model(path: Path, n_experts: int = 4, n_rows: int = 256, n: int = 1024, seed: int = 0) -> Path:
    """Several tensors of several items each."""
    rng = np.random.default_rng(seed)
    with ikq.GGUFWriter(path, {"general.architecture": "llama"}) as writer:
        for name in ("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps"):
            shape = (n_experts, n_rows, n)
            writer.add_tensor(f"blk.0.{name}.weight", rng.standard_normal(shape, dtype=np.float32))
        writer.add_tensor("blk.0.attn_norm.weight", np.ones(n, np.float32))
        writer.add_tensor("output.weight", rng.standard_normal((512, n), dtype=np.float32))
    return path


def interrupted(source: Path, out: Path, n_tensors: int = 2, **options: object) -> None:
    """Leaves a run of these options after some of its tensors."""

    class Enough(Exception):
        pass

    def progress(tensor: ikq.PlannedTensor, seconds: float) -> None:
        nonlocal n_tensors
        n_tensors -= 1
        if n_tensors == 0:
            raise Enough

    with pytest.raises(Enough):
        ikq.quantize_file(source, out, "IQ4_KT", n_threads=1, progress=progress, **options)
    assert not out.exists()
    assert list(out.parent.glob("*.part"))


def test_twelve_kills(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    words = ("--imatrix", IMATRIX, "--pure", MODEL)
    assert run(*words, whole, "IQ4_KT", N_THREADS).returncode == 0
    expected, where = whole.read_bytes(), list(items(whole))
    part, journal = tmp_path / "out.gguf.part", tmp_path / "out.gguf.journal"
    rng = random.Random(6)
    n_kills = n_noted = n_ended = 0
    # the last kill leaves something to go on with
    while n_kills < 12 or n_noted == 0:
        process = subprocess.Popen(
            command(*words, out, "IQ4_KT", N_THREADS), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        before = journal.read_bytes() if journal.exists() else b""
        deadline = time.monotonic() + 60
        # every third is killed whenever it may be, the others while they work
        while n_kills % 3 and time.monotonic() < deadline:
            if journal.exists() and part.exists() and journal.read_bytes() != before:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.15) if n_kills % 3 else rng.uniform(0.0, 0.8))
        process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate()
        if process.returncode == 0:
            assert sha256(out) == hashlib.sha256(expected).hexdigest()
            out.unlink()
            n_noted, n_ended = 0, n_ended + 1
            assert n_ended < 12, "it ends before it can be killed: give it more to do"
            continue
        assert process.returncode == -signal.SIGKILL, stderr
        assert not out.exists(), stderr
        n_kills += 1
        if not journal.exists() or len(journal.read_bytes()) < SLOT:
            continue
        done, now = noted(journal), part.read_bytes() if part.exists() else b""
        assert len(done) == len(where)
        assert len(now) in (0, len(expected))
        # what is noted is there, and no more items were begun and not noted than there are workers
        lost = 0
        for is_noted, item in zip(done, where, strict=True):
            content = now[item.begin : item.end]
            if is_noted:
                assert content == expected[item.begin : item.end], item
            else:
                lost += any(content)
        assert lost <= N_THREADS
        assert sum(done) >= n_noted
        n_noted = sum(done)
    assert 0 < n_noted <= len(where)
    last = run(*words, out, "IQ4_KT", N_THREADS)
    assert last.returncode == 0, last.stderr
    assert f"going on: {n_noted} of {len(where)} items are done\n" in last.stdout
    assert sha256(out) == hashlib.sha256(expected).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "whole.gguf"]


def damage_zeros(part: Path, journal: Path) -> None:
    part.write_bytes(bytes(part.stat().st_size))


def damage_truncate(part: Path, journal: Path) -> None:
    os.truncate(part, part.stat().st_size // 3)


def damage_bit(part: Path, journal: Path) -> None:
    raw = bytearray(part.read_bytes())
    # in the first tensor's data, which was whole
    raw[len(raw) // 8] ^= 4
    part.write_bytes(raw)


def damage_foreign(part: Path, journal: Path) -> None:
    part.write_bytes(np.random.default_rng(1).bytes(part.stat().st_size))


def damage_gone(part: Path, journal: Path) -> None:
    part.unlink()


def damage_journal_bit(part: Path, journal: Path) -> None:
    raw = bytearray(journal.read_bytes())
    raw[SLOT + 9] ^= 1
    journal.write_bytes(raw)


def damage_journal_gone(part: Path, journal: Path) -> None:
    journal.unlink()


def damage_journal_foreign(part: Path, journal: Path) -> None:
    journal.write_bytes(b"ikqjrnl1" + np.random.default_rng(2).bytes(journal.stat().st_size - 8))


def damage_journal_shifted(part: Path, journal: Path) -> None:
    raw = journal.read_bytes()
    journal.write_bytes(raw[:SLOT] + bytes(SLOT) + raw[SLOT:-SLOT])


DAMAGES = {
    # what is found to be noted but not there: None is "nothing is noted"
    damage_zeros: "all",
    damage_truncate: "all",
    damage_bit: "one",
    damage_foreign: "all",
    damage_gone: "all",
    damage_journal_bit: "forgotten",
    damage_journal_gone: "anew",
    damage_journal_foreign: "anew",
    damage_journal_shifted: "anew",
}


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a source and a partial output, and the hash of the whole one."""
    folder = tmp_path_factory.mktemp("halfway")
    source = model(folder / "m.gguf")
    ikq.quantize_file(source, folder / "whole.gguf", "IQ4_KT")
    interrupted(source, folder / "out.gguf")
    return folder, sha256(folder / "whole.gguf")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_leavings_are_seen_and_done_again(tmp_path: Path, halfway, damage) -> None:
    folder, expected = halfway
    for name in ("out.gguf.part", "out.gguf.journal"):
        shutil.copy(folder / name, tmp_path / name)
    part, journal, out = (tmp_path / f"out.gguf{end}" for end in (".part", ".journal", ""))
    n_noted = sum(noted(journal))
    assert n_noted >= 8, "two tensors of four experts"
    damage(part, journal)
    notes: list[str] = []
    result = ikq.quantize_file(folder / "m.gguf", out, "IQ4_KT", on_note=notes.append)
    assert sha256(out) == expected
    found = {
        "all": (0, n_noted),
        "one": (n_noted - 1, 1),
        "forgotten": (n_noted - 1, 0),
        "anew": (0, 0),
    }[DAMAGES[damage]]
    assert (result.n_resumed, result.n_damaged) == found, notes
    assert bool(notes) == (DAMAGES[damage] != "anew")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf"]


def test_the_same_command_goes_on_and_another_does_not(tmp_path: Path, halfway) -> None:
    folder, expected = halfway
    source = folder / "m.gguf"

    def start() -> Path:
        for name in ("out.gguf.part", "out.gguf.journal"):
            shutil.copy(folder / name, tmp_path / name)
        return tmp_path / "out.gguf"

    assert ikq.quantize_file(source, start(), "IQ4_KT", n_threads=3).n_resumed >= 8
    assert sha256(tmp_path / "out.gguf") == expected
    restarted = ikq.quantize_file(source, start(), "IQ4_KT", restart=True)
    assert (restarted.n_resumed, sha256(tmp_path / "out.gguf")) == (0, expected)
    other = ikq.quantize_file(source, start(), "IQ4_KT", output_tensor_type="q8_0")
    assert other.n_resumed == 0
    fresh = tmp_path / "fresh.gguf"
    ikq.quantize_file(source, fresh, "IQ4_KT", output_tensor_type="q8_0")
    assert sha256(tmp_path / "out.gguf") == sha256(fresh)


def test_a_source_that_was_touched_is_looked_at_and_one_that_changed_is_done_again(tmp_path: Path) -> None:
    source, out = model(tmp_path / "m.gguf"), tmp_path / "out.gguf"
    interrupted(source, out)
    n_noted = sum(noted(Path(f"{out}.journal")))
    raw = bytearray(source.read_bytes())
    tensor = ikq.GGUFReader(source).tensors["blk.0.ffn_up_exps.weight"]
    at = raw.index(tensor.raw.tobytes())
    raw[at : at + 4] = np.float32(3.0).tobytes()
    source.write_bytes(raw)
    os.utime(source, ns=(1, 1))
    result = ikq.quantize_file(source, out, "IQ4_KT")
    assert (result.n_resumed, result.n_damaged) == (n_noted - 1, 1)
    ikq.quantize_file(source, tmp_path / "fresh.gguf", "IQ4_KT")
    assert sha256(out) == sha256(tmp_path / "fresh.gguf")


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    source, out = model(tmp_path / "m.gguf"), tmp_path / "out.gguf"
    refused: list[str] = []

    def progress(tensor: ikq.PlannedTensor, seconds: float) -> None:
        if not refused:
            with pytest.raises(ikq.RefusedError, match="another process") as caught:
                ikq.quantize_file(source, out, "IQ4_KT")
            refused.append(str(caught.value))

    ikq.quantize_file(source, out, "IQ4_KT", n_threads=1, progress=progress)
    assert refused
    assert out.exists()


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """A limit on file sizes stands for the disk: it comes down in the middle of the run."""
    source, out = model(tmp_path / "m.gguf"), tmp_path / "out.gguf"
    script = """
import resource, signal, sys
import ikq
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
notes = []
def progress(tensor, seconds):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
try:
    ikq.quantize_file(sys.argv[1], sys.argv[2], "IQ4_KT", n_threads=1, progress=progress, on_note=notes.append)
except OSError as e:
    print(e, notes)
"""
    full = subprocess.run(
        [sys.executable, "-c", script, str(source), str(out)], capture_output=True, text=True, timeout=300
    )
    assert full.returncode == 0, full.stderr
    assert re.search(r"out\.gguf.* \d+ bytes.*out\.gguf\.part", full.stdout), full.stdout
    assert not out.exists()
    n_noted = sum(noted(Path(f"{out}.journal")))
    assert n_noted > 0
    result = ikq.quantize_file(source, out, "IQ4_KT")
    assert (result.n_resumed, result.n_damaged) == (n_noted, 0)
    ikq.quantize_file(source, tmp_path / "whole.gguf", "IQ4_KT")
    assert sha256(out) == sha256(tmp_path / "whole.gguf")


def test_a_disk_that_is_too_small_is_known_before_the_first_byte(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", mount], capture_output=True
    ).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        done = run(MODEL, mount / "o.gguf", "Q8_0")
        assert done.returncode == 1
        assert re.search(
            r"no space left for .*o\.gguf: \d{7,} bytes are needed .*\d+ are free", done.stderr
        ), done.stderr
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize("spoil", [False, True])
def test_a_run_that_ended_while_it_put_files_in_place(tmp_path: Path, spoil: bool) -> None:
    source, out = model(tmp_path / "m.gguf"), tmp_path / "out.gguf"
    first, second, third = (tmp_path / f"out-0000{i}-of-00003.gguf" for i in (1, 2, 3))

    def progress(tensor: ikq.PlannedTensor, seconds: float) -> None:
        # shards are renamed from the last to the first: this one cannot be replaced
        first.mkdir(exist_ok=True)

    with pytest.raises(OSError, match="out-00001-of-00003"):
        ikq.quantize_file(source, out, "IQ4_KT", split_max_tensors=2, n_threads=1, progress=progress)
    first.rmdir()
    assert [p.name for p in sorted(tmp_path.glob("*.part"))] == [f"{first.name}.part"]
    if spoil:
        raw = bytearray(second.read_bytes())
        raw[-100] ^= 1
        second.write_bytes(raw)
    before = {p: p.stat().st_ino for p in (second, third)}
    result = ikq.quantize_file(source, out, "IQ4_KT", split_max_tensors=2)
    assert (second.stat().st_ino == before[second]) == (not spoil)
    assert third.stat().st_ino == before[third]
    assert (result.n_damaged > 0) == spoil
    ikq.quantize_file(source, tmp_path / "fresh.gguf", "IQ4_KT", split_max_tensors=2)
    for path in (first, second, third):
        assert sha256(path) == sha256(tmp_path / path.name.replace("out", "fresh"))


def test_reuse_recomputes_only_what_a_rule_changes(tmp_path: Path) -> None:
    n = 100
    rng = np.random.default_rng(4)
    source = tmp_path / "m.gguf"
    with ikq.GGUFWriter(source, {"general.architecture": "llama"}) as writer:
        for i in range(n):
            writer.add_tensor(f"blk.{i}.ffn_up.weight", rng.standard_normal((16, 256), dtype=np.float32))
    rules = [rf"blk\.{i}\.=q4_k" for i in range(n)]
    old, new, fresh = (tmp_path / f"{name}.gguf" for name in ("old", "new", "fresh"))
    ikq.quantize_file(source, old, "Q5_K", tensor_type=rules)
    rules[37] = r"blk\.37\.=q6_k"
    result = ikq.quantize_file(source, new, "Q5_K", tensor_type=rules, reuse=old)
    how = {t.name: o.how for t, o in zip(result.plan.tensors, result.outcomes, strict=True)}
    assert [name for name, h in how.items() if h != "reused"] == ["blk.37.ffn_up.weight"]
    ikq.quantize_file(source, fresh, "Q5_K", tensor_type=rules)
    assert sha256(new) == sha256(fresh)

    # a tensor of the source that changed, one of the old file that is damaged, statistics
    raw = bytearray(old.read_bytes())
    damaged = ikq.GGUFReader(old).tensors["blk.5.ffn_up.weight"].raw.tobytes()
    raw[raw.index(damaged) + 10] ^= 1
    old.write_bytes(raw)
    raw = bytearray(source.read_bytes())
    changed = ikq.GGUFReader(source).tensors["blk.6.ffn_up.weight"].raw.tobytes()
    raw[raw.index(changed) : raw.index(changed) + 4] = np.float32(1.0).tobytes()
    source.write_bytes(raw)
    result = ikq.quantize_file(source, new, "Q5_K", tensor_type=rules, reuse=old)
    encoded = [
        t.name for t, o in zip(result.plan.tensors, result.outcomes, strict=True) if o.how == "encoded"
    ]
    assert encoded == ["blk.5.ffn_up.weight", "blk.6.ffn_up.weight", "blk.37.ffn_up.weight"]
    ikq.quantize_file(source, fresh, "Q5_K", tensor_type=rules)
    assert sha256(new) == sha256(fresh)


def test_reuse_knows_the_imatrix_and_split_sets(tmp_path: Path) -> None:
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    ikq.quantize_file(MODEL, old, "IQ4_KS", split_max_tensors=9)
    shard = tmp_path / "old-00002-of-00006.gguf"
    same = ikq.quantize_file(MODEL, new, "IQ4_KS", reuse=shard)
    encoded = [t.name for t, o in zip(same.plan.tensors, same.outcomes, strict=True) if o.how == "encoded"]
    assert encoded == []
    ikq.quantize_file(MODEL, tmp_path / "fresh.gguf", "IQ4_KS")
    assert sha256(new) == sha256(tmp_path / "fresh.gguf")
    other = ikq.quantize_file(MODEL, new, "IQ4_KS", imatrix=IMATRIX, reuse=shard)
    reused = [
        t
        for t, o in zip(other.plan.tensors, other.outcomes, strict=True)
        if o.how == "reused" and not t.copied
    ]
    assert reused, "some tensors look at no statistics"
    assert all(t.imatrix is None for t in reused)


def test_reuse_of_a_file_without_hashes_is_refused(tmp_path: Path) -> None:
    done = run("--reuse", MODEL, MODEL, tmp_path / "o.gguf", "Q8_0")
    assert done.returncode == 2
    assert "does not say what its tensors were made from" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_partial_requant_keeps_what_is_right_and_nothing_else(tmp_path: Path) -> None:
    source, out = model(tmp_path / "m.gguf"), tmp_path / "out.gguf"
    words = ("--split-max-tensors", 1, source, out, "Q4_K")
    assert run(*words).returncode == 0
    shards = sorted(tmp_path.glob("out-*.gguf"))
    expected = {p.name: p.read_bytes() for p in shards}
    assert len(shards) == 5
    before = {p: p.stat().st_ino for p in shards}
    shards[0].write_bytes(bytes(shards[0].stat().st_size))  # zeros, as the reference accepts
    os.truncate(shards[1], 1000)
    raw = bytearray(shards[2].read_bytes())
    raw[-50] ^= 16
    shards[2].write_bytes(raw)
    shards[4].unlink()
    done = run("--partial-requant", *words)
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in sorted(tmp_path.glob("out-*.gguf"))} == expected
    stayed = [p for p in shards if p.stat().st_ino == before[p]]
    assert stayed == [shards[3]]
    assert re.search(r"out-00004-of-00005\.gguf stays", done.stdout)
    assert re.search(r"out-00001-of-00005\.gguf is done again: .*GGUF", done.stdout)
    assert re.search(r"out-00003-of-00005\.gguf is done again: 1 of its 1 tensors", done.stdout)
    # another type: a shard that has it stays no more
    done = run("--partial-requant", "--ffn-up-type", "q5_k", *words)
    assert done.returncode == 0, done.stderr
    assert ikq.GGUFReader(shards[0]).tensors["blk.0.ffn_up_exps.weight"].type == ikq.QuantType.Q5_K


@pytest.mark.parametrize("n_experts", [8, 64, 512])
def test_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path, n_experts: int) -> None:
    source = model(tmp_path / "m.gguf", n_experts=n_experts, n_rows=32, n=256)
    hashes = set()
    for n_threads in (1, 2, 3, 7, 13, 47):
        out = tmp_path / f"{n_threads}.gguf"
        ikq.quantize_file(source, out, "IQ4_K", n_threads=n_threads)
        hashes.add(sha256(out))
    assert len(hashes) == 1


def test_memory_is_bounded_by_what_is_given(tmp_path: Path) -> None:
    """A tensor eight times as large as `max_ram`: the peak is below that and what the process has without work."""
    max_ram = 32 << 20
    n_experts, n_rows, n = 16, 4096, 2048
    x = np.random.default_rng(0).standard_normal((n_rows, n), dtype=np.float32).astype(np.float16)
    source = tmp_path / "m.gguf"
    with ikq.GGUFWriter(source, {"general.architecture": "llama"}) as writer:
        writer.add_tensor("blk.0.ffn_up_exps.weight", np.broadcast_to(x, (n_experts, n_rows, n)).copy())
    assert n_experts * n_rows * n * 2 == 8 * max_ram
    words = ["--max-ram", "32M", source, tmp_path / "o.gguf", "Q4_0"]
    # the peak of the process itself: what the system counts for children begins with their parent's
    script = """
import re, sys
from ikq.__main__ import main
code = main(sys.argv[1:])
print("peak", int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
sys.exit(code)
"""

    def peak(n_threads: int) -> int:
        arguments = [sys.executable, "-c", script, "quantize", *map(str, words), str(n_threads)]
        ran = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return int(re.search(r"peak (\d+)", ran.stdout)[1])

    assert peak(16) <= max_ram + 200_000_000
    # and the prediction of a dry run is right
    dry = run("--dry-run", *words, 2)
    predicted = int(re.search(r"peak memory = (\d+) MiB", dry.stdout)[1]) << 20
    assert predicted == pytest.approx(peak(2), rel=0.1)


def test_a_tensor_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ikq.RefusedError, match=r"blk\.0\.ffn_up_exps\.weight.*I2_S.*max-ram"):
        ikq.quantize_file(
            model(tmp_path / "m.gguf"), tmp_path / "o.gguf", "Q8_0", ffn_up_type="i2_s", max_ram="4M"
        )
    assert not (tmp_path / "o.gguf.part").exists()


def test_errors_are_those_of_the_decoded_result(tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    interrupted(MODEL, out, n_tensors=20, imatrix=IMATRIX)
    result = ikq.quantize_file(MODEL, out, "IQ4_KT", imatrix=IMATRIX, measure_errors=True)
    assert result.n_resumed > 0, "what is resumed is measured too"
    source, written, imatrix = ikq.GGUFReader(MODEL), ikq.GGUFReader(out), ikq.Imatrix(IMATRIX)
    n_measured = 0
    for t, o in zip(result.plan.tensors, result.outcomes, strict=True):
        assert o.how == ("copied" if t.copied else "encoded")
        assert o.seconds > 0
        assert (o.error is None) == t.copied
        if t.copied:
            continue
        n_measured += 1
        x = source.tensors[t.name].dequantize().astype(np.float64)
        y = written.tensors[t.name].dequantize().astype(np.float64)
        w = np.ones(x.shape[-1])
        if t.imatrix is not None:
            values = imatrix[t.imatrix].values.astype(np.float64)
            w = values.reshape(-1, 1, x.shape[-1]) if x.ndim == 3 else values.reshape(-1)
        assert o.error == pytest.approx(np.sqrt(((x - y) ** 2).sum() / (x**2).sum()), rel=1e-5)
        weighted = np.sqrt((w * (x - y) ** 2).sum() / (w * x**2).sum())
        assert o.weighted_error == pytest.approx(weighted, rel=1e-5)
        if x.ndim == 3:
            each = np.sqrt((w * (x - y) ** 2).sum(axis=(1, 2)) / (w * x**2).sum(axis=(1, 2)))
            assert o.expert_errors == pytest.approx(tuple(each), rel=1e-5)
    assert n_measured == 30


@pytest.mark.parametrize("split", [{}, {"split_max_tensors": 2}])
def test_what_is_kept_is_named_and_nothing_else(tmp_path: Path, split: dict[str, int]) -> None:
    source, out = model(tmp_path / "m.gguf"), tmp_path / "out.gguf"
    (tmp_path / "out-other.gguf.part").write_text("of another output")
    notes: list[str] = []

    def progress(tensor: ikq.PlannedTensor, seconds: float) -> None:
        raise OSError("enough")

    with pytest.raises(OSError, match="enough"):
        ikq.quantize_file(
            source, out, "IQ4_KT", n_threads=1, progress=progress, on_note=notes.append, **split
        )
    first = "out-00001-of-00003.gguf.part and 2 more:" if split else "out.gguf.part:"
    (note,) = notes
    assert f"/{first} the same command goes on" in note


def test_partial_files_of_another_split_are_named(tmp_path: Path) -> None:
    source, out = model(tmp_path / "m.gguf"), tmp_path / "out.gguf"
    interrupted(source, out, split_max_tensors=2)
    notes: list[str] = []
    ikq.quantize_file(source, out, "Q8_0", on_note=notes.append)
    (note,) = notes
    assert "another split" in note
    assert re.findall(r"out-\d{5}-of-00003\.gguf\.part", note) == [
        f"out-0000{i}-of-00003.gguf.part" for i in (1, 2, 3)
    ]
    ikq.quantize_file(source, tmp_path / "fresh.gguf", "Q8_0", on_note=notes.append)
    assert len(notes) == 1
