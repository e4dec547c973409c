"""Reports of quantizations: records and their sums, the table, JSON, the page."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import ikq
from ikq.cli import run_command
from ikq.quantizing.pipeline import TensorOutcome
from ikq.quantizing.report import Report, make_report, report_kind, table_lines, write_report
from ikq.quantizing.report.table import WIDTH

DATA = Path(__file__).parent / "data"
MODEL = DATA / "tiny-moe-bf16.gguf"


def result(plan: ikq.QuantizePlan, *, measured: bool = True) -> ikq.QuantizeResult:
    """As a run would give it: the n-th tensor has an error of n %, its experts 1 % more each."""
    outcomes = []
    for i, t in enumerate(plan.tensors, 1):
        if t.copied:
            outcomes.append(TensorOutcome("copied", 0.25, None, None, None, None, None, False))
            continue
        experts = tuple((i + n) / 100 for n in range(t.shape[0])) if len(t.shape) == 3 else None
        if not measured:
            outcomes.append(TensorOutcome("encoded", 0.5, None, None, None, None, None, False))
        else:
            outcomes.append(TensorOutcome("encoded", 0.5, i / 200, i / 100, i / 101, 0.99, experts, False))
    return ikq.QuantizeResult(plan, (plan.destination,), 2.0, outcomes=tuple(outcomes))


@pytest.fixture(scope="module")
def plan() -> ikq.QuantizePlan:
    return ikq.plan_quantization(
        MODEL, "out.gguf", "IQ4_KS", imatrix=DATA / "imatrix-fused-default.dat", custom_q="attn_q=q6_k",
        token_embedding_type="q5_k", allow_missing=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(plan: ikq.QuantizePlan) -> Report:
    return make_report(
        result(plan), command=["ikq", "quantize"], options={"pure": False, "custom_q": "a=q8_0"}
    )


def small_plan(folder: Path, names: dict[str, tuple[int, ...]], type_name: str = "Q4_K") -> ikq.QuantizePlan:
    path = folder / "small.gguf"
    with ikq.GGUFWriter(path, {"general.architecture": "llama"}) as writer:
        for name, shape in names.items():
            writer.add_tensor(name, np.zeros(shape, np.float32))
    return ikq.plan_quantization(path, folder / "out.gguf", type_name)


def test_sums_are_those_of_the_tensors(plan: ikq.QuantizePlan, report: Report) -> None:
    n_bytes = sum(t.bytes_out for t in plan.tensors)
    assert sum(t.bytes for t in report.tensors) == report.total.bytes == n_bytes < report.file_bytes
    for groups in (report.by_type, report.by_kind):
        assert sum(g.bytes for g in groups) == n_bytes
        assert sum(g.n_tensors for g in groups) == len(plan.tensors) == report.total.n_tensors
        assert sum(g.n_weights for g in groups) == sum(math.prod(t.shape) for t in plan.tensors)
        assert sum(g.seconds or 0 for g in groups) == sum(t.seconds or 0 for t in report.tensors)
        assert [g.bytes for g in groups] == sorted((g.bytes for g in groups), reverse=True)
    assert report.bytes_in == sum(t.bytes_in for t in plan.tensors)
    assert report.total.bits_per_weight == 8 * n_bytes / report.total.n_weights


def test_errors_of_a_group_are_means_over_weights_and_the_worst(report: Report) -> None:
    group = next(g for g in report.by_type if g.name == "q8_0")
    part = [t for t in report.tensors if t.to_type == "q8_0"]
    weights = np.array([t.n_weights for t in part], float)
    errors = np.array([t.weighted_error for t in part], float)
    assert group.weighted_error == pytest.approx((weights * errors).sum() / weights.sum(), rel=1e-12)
    assert group.worst_error == errors.max()
    assert group.worst == part[errors.argmax()].name
    copied = next(g for g in report.by_type if g.name == "f32")
    assert (copied.weighted_error, copied.worst_error, copied.worst) == (None, None, None)


def test_what_a_record_says(report: Report) -> None:
    tensors = {t.name: t for t in report.tensors}
    q = tensors["blk.2.attn_q.weight"]
    assert (q.kind, q.layer, q.to_type, q.decided_by, q.imatrix) == (
        "attn_q",
        2,
        "q6_k",
        "custom rule",
        "own",
    )
    gate = tensors["blk.1.ffn_gate_exps.weight"]
    assert (gate.imatrix, gate.imatrix_entry) == ("borrowed", "blk.1.ffn_up_exps.weight")
    assert gate.worst_expert == (7, max(gate.expert_errors))
    embedding = tensors["token_embd.weight"]
    assert (embedding.kind, embedding.layer, embedding.decided_by) == ("token_embd", None, "option")
    assert tensors["output.weight"].imatrix == "missing"
    assert tensors["output.weight"].decided_by == "rule"
    assert tensors["blk.0.ffn_up_exps.weight"].decided_by == "base type"
    router = tensors["blk.0.ffn_gate_inp.weight"]
    assert (router.how, router.decided_by, router.imatrix, router.snr_db) == (
        "copied",
        "kept",
        "not used",
        None,
    )
    # 20 dB are a factor of ten
    assert q.snr_db == pytest.approx(-20 * math.log10(q.error))
    assert report.options == {"custom_q": "a=q8_0"}
    assert report.coverage.missing == ("output.weight",)


def test_a_fallback_says_what_was_wanted(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, {"token_embd.weight": (8, 256), "blk.0.ffn_up.weight": (8, 96)})
    report = make_report(plan)
    t = report.tensors[1]
    assert (t.decided_by, t.wanted, t.to_type) == ("fallback", "q4_k", "q5_0")
    line = next(line for line in table_lines(report) if "blk.0.ffn_up.weight" in line)
    assert "q5_0, not q4_k" in line
    assert "96" in line


def test_the_table_fits_and_names_the_worst(report: Report, tmp_path: Path) -> None:
    lines = table_lines(report)
    assert max(map(len, lines)) <= WIDTH == 110
    at = lines.index("largest errors:")
    shown = [float(line.split()[0]) for line in lines[at + 1 : at + 6]]
    measured = sorted(
        (t.weighted_error for t in report.tensors if t.weighted_error is not None), reverse=True
    )
    assert shown == pytest.approx(measured[:5], abs=5e-6)
    names = {f"blk.0.{'long_' * 30}{i}.weight": (4, 32) for i in range(40)}
    crowded = table_lines(make_report(small_plan(tmp_path, names)))
    assert max(map(len, crowded)) <= WIDTH
    assert len(crowded) < 60
    assert any("more kinds: 16 tensors" in line for line in crowded)


def test_what_was_not_measured_has_no_columns(plan: ikq.QuantizePlan) -> None:
    unmeasured = make_report(result(plan, measured=False))
    assert not unmeasured.is_measured
    text = "\n".join(table_lines(unmeasured))
    assert "error" not in text
    assert "seconds" in text
    before = make_report(plan)
    assert "seconds" not in "\n".join(table_lines(before))
    assert {t.how for t in before.tensors} == {"planned"}


def test_json(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["format"], found["version"]) == ("ikq-quantize-report", 1)
    assert sum(t["bytes"] for t in found["tensors"]) == found["total"]["bytes"] == report.total.bytes
    for t, record in zip(found["tensors"], report.tensors, strict=True):
        assert (t["name"], tuple(t["shape"]), t["how"]) == (record.name, record.shape, record.how)
        assert t["weighted_error"] == record.weighted_error
    assert found["versions"]["ikq"] == ikq.__version__
    assert found["command"] == ["ikq", "quantize"]


def test_json_has_no_nan(plan: ikq.QuantizePlan, tmp_path: Path) -> None:
    done = result(plan)
    wrong = TensorOutcome("encoded", 1.0, math.inf, math.nan, math.nan, math.nan, None, False)
    done = ikq.QuantizeResult(plan, done.files, 1.0, outcomes=(wrong, *done.outcomes[1:]))
    report = make_report(done)
    for name in ("r.json", "r.html"):
        write_report(report, tmp_path / name)
    found = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert (found["tensors"][0]["error"], found["tensors"][0]["weighted_error"]) == (None, None)


class Page(HTMLParser):
    """Checks that tags are closed in order; counts them and keeps the attributes."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(t == tag for t, _ in self.seen)


def test_the_page_stands_alone(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert page.count("svg") == 3
    # a line for each kind of matrix that was encoded in several layers
    kinds = {t.kind for t in report.tensors if t.layer is not None and t.weighted_error}
    assert page.count("polyline") == len(kinds) == 7
    # headings, and a row for each tensor, kind and type
    assert page.count("tr") == 3 + len(report.tensors) + len(report.by_kind) + len(report.by_type)
    assert not {t for t, _ in page.seen} & {"link", "img", "iframe", "object", "embed", "a"}
    assert not [a for _, a in page.seen if {"src", "href", "xlink:href"} & a.keys()]
    assert not re.search(r"url\(|@import|https?:", text)
    policy = next(a["content"] for _, a in page.seen if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_points_of_the_plot_are_where_the_errors_are(report: Report, tmp_path: Path) -> None:
    """On a logarithmic axis equal ratios are equal distances."""
    write_report(report, tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    lines = [a["points"] for t, a in page.seen if t == "polyline"]
    corners = [tuple(map(float, p.split(","))) for line in lines for p in line.split()]
    kinds = [g.name for g in report.by_kind]
    shown = [
        t for k in kinds for t in sorted((t for t in report.tensors if t.kind == k), key=lambda t: t.layer or 0)
        if t.layer is not None and t.weighted_error
    ]  # fmt: skip
    assert len(corners) == len(shown)
    y = np.array([c[1] for c in corners])
    logs = np.log([t.weighted_error for t in shown])
    slope, start = np.polyfit(logs, y, 1)
    assert slope < 0
    # coordinates are written with one decimal
    np.testing.assert_allclose(slope * logs + start, y, atol=0.11)
    x = {t.layer: c[0] for t, c in zip(shown, corners, strict=True)}
    assert sorted(x.values()) == [x[i] for i in range(4)]


def test_names_from_a_file_are_text(tmp_path: Path) -> None:
    name = "blk.0.<script>alert(1)</script>&\"'.weight"
    write_report(make_report(small_plan(tmp_path, {name: (8, 256)})), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert Page(text).count("script") == 1
    assert "&lt;script&gt;alert(1)" in text


def test_files_appear_whole_and_have_an_ending(report: Report, tmp_path: Path) -> None:
    assert [report_kind(n) for n in ("a.json", "b.HTML", "c.htm")] == ["json", "html", "html"]
    with pytest.raises(ikq.RefusedError, match=r"\.json or \.html"):
        write_report(report, tmp_path / "r.txt")
    (tmp_path / "r.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(report, tmp_path / "r.json")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def quantize(*words: object) -> int:
    return run_command(["quantize", *map(str, words)])


def test_the_command_writes_reports_and_ends_with_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.gguf", tmp_path / "r.html"
    assert quantize("--pure", MODEL, out, "Q4_0", "--report", page, "--report") == 0
    text = capsys.readouterr().out
    beside = tmp_path / "out.report.json"
    assert f"report: {page}\nreport: {beside}\n" in text
    # what scripts look for is still at the end
    assert re.search(r"\nmodel size = .*\nquant size = .*\n(.*\n)*quantize time = ", text)
    assert re.search(r"\nffn_down_exps +4 +4\.5000 ", text)
    found = json.loads(beside.read_text())
    with ikq.GGUFReader(out) as model:
        assert {t["name"]: t["bytes"] for t in found["tensors"]} == {
            n: t.nbytes for n, t in model.tensors.items()
        }
    assert found["file_bytes"] == out.stat().st_size
    assert found["command"][:3] == ["ikq", "quantize", "--pure"]
    assert (found["options"]["type"], found["options"]["pure"]) == ("Q4_0", True)
    assert found["files"] == [str(out)]
    assert Page(page.read_text()).count("table") == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [("r.txt", r"\.json or \.html"), ("no/r.json", "no folder"), ("out.json", "another file")],
)
def test_reports_that_cannot_be_written_are_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert quantize(MODEL, tmp_path / "out.json", "Q4_0", "--report", tmp_path / name) == 2
    assert re.search(words, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_reports_what_it_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize("--dry-run", MODEL, tmp_path / "out.gguf", "Q4_0", "--report", tmp_path / "r.json") == 0
    assert "nothing was written" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())
    assert {t["how"] for t in found["tensors"]} == {"planned"}
    assert found["seconds"] is None
    assert found["total"]["bytes"] < found["file_bytes"]


def test_measured_errors_are_those_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decoded with numpy beside the source, weighted by the means that the imatrix has."""
    out, imatrix = tmp_path / "out.gguf", DATA / "imatrix-fused-default.dat"
    assert quantize("--allow-missing", "--imatrix", imatrix, MODEL, out, "IQ3_K", "--report") == 0
    assert "largest errors:" in capsys.readouterr().out
    found = {t["name"]: t for t in json.loads((tmp_path / "out.report.json").read_text())["tensors"]}
    statistics = ikq.Imatrix(imatrix)
    with ikq.GGUFReader(MODEL) as source, ikq.GGUFReader(out) as model:
        for name, record in found.items():
            if record["how"] == "copied":
                assert record["weighted_error"] is None
                continue
            x = source.tensors[name].dequantize().astype(np.float64)
            d = x - model.tensors[name].dequantize()
            error = math.sqrt((d * d).sum() / (x * x).sum())
            # sums of as many floats in another order
            assert record["error"] == pytest.approx(error, rel=1e-5)
            assert record["snr_db"] == pytest.approx(-20 * math.log10(error), abs=1e-3)
            if record["imatrix_entry"] is None:
                assert record["weighted_error"] == record["error"]
                continue
            # sums and means weigh columns alike
            w = statistics[record["imatrix_entry"]].values.astype(np.float64)
            w = w.reshape((*x.shape[:-2], 1, x.shape[-1]))
            experts = np.sqrt((w * d * d).sum((-2, -1)) / (w * x * x).sum((-2, -1)))
            if x.ndim == 3:
                # weights of the fit have a ten-thousandth of their mean added
                np.testing.assert_allclose(record["expert_errors"], experts, rtol=1e-3)
                assert record["worst_expert"][0] == experts.argmax()
            else:
                assert record["weighted_error"] == pytest.approx(float(experts), rel=1e-3)
