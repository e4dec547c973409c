"""`ikq recipe` and `ikq quantize --recipe` as a user meets them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import ikq
from ikq import _ikq
from ikq.cli import build_parser, run_command
from ikq.recipes.budget import parse_bytes
from ikq.recipes.files import read_recipe
from ikq.recipes.problem import DEFAULT_TYPES, parse_types
from ikq.recipes.recipe import open_problem

DATA = Path(__file__).resolve().parents[1] / "data"
MODEL, IMATRIX = DATA / "tiny-moe-bf16.gguf", DATA / "imatrix-plain.dat"
FEW = ("--types", "q8_0,iq4_k,iq3_k,iq2_k")


def recipe(*words: object) -> int:
    return run_command(["recipe", str(MODEL), "--imatrix", str(IMATRIX), *map(str, words)])


def test_from_budget_to_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page, table = (tmp_path / name for name in ("r.txt", "p.html", "t.csv"))
    words = ["--bpw", 4, *FEW, "--fix", "attn_v=iq4_k", "-o", file, "--explain", "--pareto", page]
    assert recipe(*words, "--write-sensitivity", table) == 0
    printed = capsys.readouterr().out
    size = int(printed.split("size: ")[1].split()[0])
    assert "predicted KL divergence" in printed
    assert "from the best mix" in printed
    assert sum(line.startswith("blk.") for line in printed.splitlines()) == 28
    text = file.read_text()
    assert "# quantize: ikq quantize --recipe r.txt" in text
    assert "# run: ikq run -m" in text
    out = tmp_path / "o.gguf"
    assert (
        run_command(["quantize", "--recipe", str(file), "--imatrix", str(IMATRIX), str(MODEL), str(out), "2"])
        == 0
    )
    assert out.stat().st_size == size
    with ikq.GGUFReader(out) as reader:
        tensors = list(reader.tensors.values())
        assert {str(t.type) for t in tensors} <= {"Q8_0", "IQ4_K", "IQ3_K", "IQ2_K", "F32", "BF16"}
        assert {str(t.type) for t in tensors if t.name and "attn_v" in t.name} == {"IQ4_K"}
        bits = 8 * sum(t.nbytes for t in tensors) / sum(t.size for t in tensors)
    assert 3.99 < bits <= 4
    # the file is what --tensor-type-file takes
    plan = ikq.plan_quantization(MODEL, out, "COPY", tensor_type_file=file, imatrix=IMATRIX)
    assert {t.name: str(t.to_type) for t in plan.tensors} == {t.name: str(t.type) for t in tensors}
    # what was predicted, given as measured, gives the same recipe
    again = tmp_path / "again.txt"
    assert recipe("--bpw", 4, *FEW, "--fix", "attn_v=iq4_k", "--sensitivity", table, "-o", again) == 0
    assert read_recipe(again) == read_recipe(file)
    _Page().feed(page.read_text())


def commands(file: Path) -> list[str]:
    """The commands in a recipe's comments, with the words of the first that `run_command` takes."""
    found = file.read_text().split("# quantize: ikq ")[1].splitlines()[0]
    return shlex.split(found)


def test_the_command_in_the_recipe_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a split set, of a quantized source, and with an imatrix that lacks tensors."""
    monkeypatch.chdir(tmp_path)
    with (
        ikq.GGUFReader(MODEL) as reader,
        ikq.GGUFWriter("s.gguf", reader.metadata, split_max_tensors=20) as w,
    ):
        for name, tensor in reader.tensors.items():
            w.add_tensor(name, tensor)
    ikq.quantize_file(MODEL, "q.gguf", "Q6_K", imatrix=IMATRIX)
    statistics = ikq.Imatrix(IMATRIX)
    entries = [
        (name, np.asarray(statistics[name].values, np.float64).reshape(1, -1), np.ones(1, np.float32))
        for name in statistics
        if "attn" in name
    ]
    _ikq.write_statistics(
        "half.gguf", "gguf", entries, datasets=[], n_chunks=1, chunk_size=512, all_experts=False
    )
    for source, imatrix, options, said in (
        ("s-00002-of-00003.gguf", IMATRIX, [], "size"),
        ("q.gguf", IMATRIX, ["--allow-requantize"], "the source is quantized"),
        (MODEL, "half.gguf", [], "the imatrix is incomplete"),
    ):
        words = ["recipe", str(source), "--imatrix", str(imatrix), "--bpw", "4", *FEW, *options]
        assert run_command([*words, "-o", "r.txt"]) == 0
        printed = capsys.readouterr().out
        assert said in printed
        found = commands(Path("r.txt"))
        assert run_command(found) == 0
        out = Path(found[-2])
        assert out.stat().st_size == int(printed.split("size: ")[1].split()[0])
        assert "-of-" not in out.name


def test_the_command_that_runs_it_has_the_cache_that_was_planned(tmp_path: Path) -> None:
    file = tmp_path / "r.txt"

    def words(verb: str = "run") -> list[str]:
        return shlex.split(file.read_text().split(f"# {verb}: ikq {verb} -m ")[1].splitlines()[0])[1:]

    assert recipe("--ram", "26M", "-c", 1024, "-ctk", "q8_0", "-ub", 256, *FEW, "-o", file) == 0
    assert words() == ["-c", "1024", "-ctk", "q8_0", "-ub", "256"]
    assert words("serve") == words("bench") == words()
    assert recipe("--size", "5M", *FEW, "-o", file) == 0
    assert words() == []


def test_services_and_benches_take_the_placement_that_was_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.txt"
    # experts do not fit into the second memory, attention does
    assert (
        recipe("--ram", "13M", "--vram", "8M", "-c", 512, "-ctk", "q8_0", "-ub", 128, *FEW, "-o", file) == 0
    )
    line = next(x for x in file.read_text().splitlines() if x.startswith("# bench: "))
    words = shlex.split(line)[2:]
    assert {"-ngl", "--n-cpu-moe"} <= set(words)
    words[words.index("-m") + 1] = str(MODEL)
    capsys.readouterr()
    # a second CPU device stands for the other memory
    short = ["-dev", "CPU,CPU1", "-p", 8, "-n", 2, "-r", 1, "-w", 0, "-t", 1, "-o", "json"]
    assert run_command([*words[1:], *map(str, short)]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [r["test"] for r in rows] == ["pp8", "tg2"]
    assert "no GPU" not in err
    assert all(r["n_cpu_moe"] == int(words[words.index("--n-cpu-moe") + 1]) for r in rows)
    serve = next(x for x in file.read_text().splitlines() if x.startswith("# serve: "))
    args = build_parser().parse_args(shlex.split(serve)[3:])
    assert args.n_gpu_layers == int(words[words.index("-ngl") + 1])
    assert args.ctx_size == 512


class _Page(HTMLParser):
    """A page that loads nothing."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"link", "img", "iframe"}
        assert not {"src", "href"} & {name for name, _ in attrs}


def test_standard_output_is_the_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert recipe("--size", "5M", *FEW, "--explain") == 0
    printed = capsys.readouterr()
    file = tmp_path / "r.txt"
    file.write_text(printed.out)
    assert len(read_recipe(file)) > 5
    assert "one bit more buys" in printed.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "1M"], "the smallest file with these types has"),
        (["--bpw", "0.5"], "the smallest file with these types has"),
        (["--ram", "1M"], "smallest mix"),
        (["--ram", "100K", "--vram", "100K", "-c", "512"], "smallest mix"),
        ([], "one of --size"),
        (["--size", "5M", "--bpw", "4"], "one of --size"),
        (["--size", "5M", "--vram", "1G"], "--ram"),
        (["--size", "5M", "--types", ""], "no type to choose from"),
        (["--size", "5M", "--fix", "nothing=q8_0"], "no tensor"),
        (["--size", "5M", "--fix", "ffn=iq2_k", "--fix", "ffn_down=q8_0"], "earlier rules"),
        (["--size", "5M", "--probe", "10"], "-f TEXT"),
        (["--size", "5M", "--probe", "3", "-f", "TABLE"], "4 runs or more"),
        (["--size", "5M", "--probe", "4", "-f", "TABLE", "--chunks", "0"], "--chunks 0"),
        (["--size", "5M", "-o", "no/such/folder/r.txt"], "no folder"),
        (["--size", "5M", "--pareto", "no/such/folder/p.html"], "no folder"),
        (["--size", "5M", "--write-sensitivity", "no/such/folder/t.csv"], "no folder"),
        (["--size", "5M", "--sensitivity", "TABLE"], "blk.9.attn_q.weight"),
        (["--ram", "5M", "--vram", "5M", "--min-tg", "1"], "--vram-bandwidth"),
    ],
)
def test_refusals(words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("tensor,type,value\nblk.9.attn_q.weight,q8_0,0.1\n")
    few = () if "--types" in words else FEW
    assert recipe(*[str(table) if w == "TABLE" else w for w in words], *few) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_an_ubatch_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        recipe("--size", "5M", "-ub", "0", *FEW)
    assert e.value.code == 2
    assert "0: expected 1 or more" in capsys.readouterr().err


def test_no_input_is_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, statistics, table = (tmp_path / name for name in ("m.gguf", "i.dat", "t.csv"))
    model.write_bytes(MODEL.read_bytes())
    statistics.write_bytes(IMATRIX.read_bytes())
    table.write_text("tensor,type,value\nblk.0.attn_q.weight,q8_0,0.1\n")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF and more")
    (tmp_path / "link.txt").symlink_to(statistics)
    before = {p: p.read_bytes() for p in (model, statistics, table, other)}
    words = [str(model), "--imatrix", str(statistics), "--sensitivity", str(table), "--size", "5M", *FEW]
    for option in ("-o", "--pareto", "--write-sensitivity"):
        for file, said in (
            (model, "the model"),
            (statistics, "--imatrix"),
            (tmp_path / "link.txt", "--imatrix"),
            (table, "--sensitivity"),
            (other, "is a GGUF file"),
            (tmp_path, "is a folder"),
        ):
            assert run_command(["recipe", *words, option, str(file)]) == 2
            assert f"{option} {file}" in (err := capsys.readouterr().err)
            assert said in err
    same = str(tmp_path / "new")
    assert run_command(["recipe", *words, "-o", same, "--pareto", same]) == 2
    assert "the file of -o" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in before} == before


def test_a_recipe_without_a_type_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_moe: Path
) -> None:
    file = tmp_path / "r.txt"
    for text, said in (
        ("attn_v=q8_0\n", "# type: NAME"),
        ("# type: FOO\nattn_v=q8_0\n", "`# type: FOO` is no TYPE"),
    ):
        file.write_text(text)
        words = ["quantize", "--dry-run", "--recipe", str(file), str(tiny_moe), str(tmp_path / "o.gguf")]
        assert run_command(words) == 2
        err = capsys.readouterr().err
        assert said in err
        assert str(file) in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fix", "attn_q=iqk"], "more than one type"),
        (["--fix", "attn_q=nothing"], "--fix 'attn_q=nothing': unknown type"),
        (["--fix", "(=q8_0"], "--fix '(=q8_0': '(' is no regular expression"),
        (["--fix", "attn_q"], "--fix 'attn_q': expected REGEX=TYPE"),
        (["--types", "nothing"], "unknown type"),
        (["--fix", " =q8_0"], "expected REGEX=TYPE"),
        (["--types=-"], "a type is missing behind -"),
        (["--types=--"], "unknown type `-`"),
    ],
)
def test_options_that_cannot_be_read(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe("--size", "5M", *words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "smallest file" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--probe", "4", "-f", str(IMATRIX)], "UTF-8"),
        (["--imatrix", str(MODEL)], "not an importance matrix"),
    ],
)
def test_what_makes_no_sense(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe("--size", "5M", *words) == 1
    assert said in capsys.readouterr().err


def test_the_smallest_size_that_is_named_is_possible(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert recipe("--size", "1M", *FEW) == 2
    least = int(capsys.readouterr().err.split(" has ")[1].split()[0])
    assert recipe("--size", least - 1, *FEW) == 2
    assert recipe("--size", least, *FEW, "-o", tmp_path / "r.txt") == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "1M"],
        ["--size", "9M", "--types", ""],
        ["--size", "9M", "--fix", "nothing=q8_0"],
        ["--size", "9M", "--sensitivity", "TABLE"],
    ],
)
def test_refusals_name_the_smallest_size(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("tensor,type,value\nblk.9.attn_q.weight,q8_0,0.1\n")
    types = [] if "--types" in words else FEW
    assert recipe(*[str(table) if w == "TABLE" else w for w in words], *types) == 2
    least = int(capsys.readouterr().err.split("the smallest file with these types has ")[1].split()[0])
    everything = open_problem(MODEL, IMATRIX, types=parse_types(FEW[1]) if types else DEFAULT_TYPES)
    assert least == everything.least_bytes


def test_no_statistics_is_a_refusal() -> None:
    words = [sys.executable, "-m", "ikq", "recipe", str(MODEL), "--bpw", "4", *FEW]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--imatrix" in done.stderr


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("240G", 240 * 10**9),
        ("3.5g", 3_500_000_000),
        ("11GiB", 11 * 2**30),
        ("500", 500),
        ("2kb", 2000),
        ("4e6", 4_000_000),
    ],
)
def test_sizes(text: str, n: int) -> None:
    assert parse_bytes(text) == n


@pytest.mark.parametrize("text", ["", "G", "0", "-1G", "1iB", "1X", "1.5.5G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


def test_ternary_types_have_errors_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Types that store a matrix as a whole, and weights that are not ternary: nothing is said but the result."""
    file = tmp_path / "r.txt"
    assert recipe("--size", "6M", "--types=i2_s,tq2_0,q4_0", "--fix", "attn_v=i2_s", "-o", str(file)) == 0
    assert capsys.readouterr().err == ""
    assert "attn_v\\.weight$=i2_s" in file.read_text()


def test_a_list_of_rules_is_no_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe("--size", "5M", "--fix", "attn_v=q6_k,attn_k=q5_k") == 2
    assert "a list takes a --fix for each rule" in capsys.readouterr().err


def test_a_folder_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (str(tmp_path), ".", ""):
        assert run_command(["recipe", folder, "--imatrix", str(IMATRIX), "--size", "5M"]) == 2
        assert "is a folder, and recipes are for GGUF files" in capsys.readouterr().err


def test_a_recipe_for_a_pipe(tmp_path: Path) -> None:
    """What is not a file is written to, and never replaced: `-o /dev/null` and `-o /dev/stdout` are such."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert recipe("--size", "6M", "--types=q4_0,q8_0", "-o", pipe) == 0
    reader.join(60)
    assert read[0].startswith("# ikq recipe for tiny-moe-bf16.gguf\n")
    assert pipe.is_fifo()
