"""What `--cluster` and `--path-map` take, without a cluster."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster_nodes import TINY, quality_words

import ikq
from ikq import _ikq
from ikq.__main__ import main
from ikq.cluster import chunks, divergence_on_cluster, evaluating, quantizing, worker
from ikq.cluster.connect import check_address
from ikq.cluster.files import tokenizer_of
from ikq.cluster.job import Batch, Failure, Job, travelling
from ikq.cluster.output import rays_words_on_stderr
from ikq.cluster.paths import PathRule, mapped, parse_path_rule


@pytest.mark.parametrize("address", ["", "auto", "10.0.0.1", ":6379", "host:port", "ray://10.0.0.1:10001"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ikq.RefusedError, match="HOST:PORT"):
        check_address(address)


def test_other_machines_need_tls_and_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_USE_TLS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert check_address("local") is None
    assert check_address("127.0.0.1:6379") is None
    assert check_address("[::1]:6379") is None
    assert check_address("localhost:6379") is None
    # a name that only begins like an address of the loopback
    assert check_address("127.0.0.1.example.org:6379") is not None
    both = check_address("10.0.0.1:6379")
    assert both is not None
    assert "RAY_USE_TLS=1" in both
    assert "RAY_AUTH_MODE=token" in both
    monkeypatch.setenv("RAY_USE_TLS", "1")
    token = check_address("10.0.0.1:6379")
    assert token is not None
    assert "RAY_USE_TLS" not in token
    assert "RAY_AUTH_MODE=token" in token
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert check_address("10.0.0.1:6379") is None


def test_path_rules() -> None:
    assert parse_path_rule("b:/data=/mnt/data") == PathRule("b", "/data", "/mnt/data")
    assert parse_path_rule("/data=/mnt/data") == PathRule("*", "/data", "/mnt/data")
    assert parse_path_rule("10.0.0.2:/a b=/c=d") == PathRule("10.0.0.2", "/a b", "/c=d")
    for wrong in ("", "b", "b:/x", "b:x=/y", "/x=y", "=/y", ":/x=/y"):
        with pytest.raises(ikq.RefusedError, match="NODE:/HERE=/THERE"):
            parse_path_rule(wrong)
    rules = [PathRule("b", "/data", "/b"), PathRule("*", "/data", "/all"), PathRule("*", "/data/x", "/never")]
    assert mapped("/data/x/m.gguf", rules, ["a", "10.0.0.1"]) == "/all/x/m.gguf"
    assert mapped("/data/x/m.gguf", rules, ["b"]) == "/b/x/m.gguf"
    assert mapped("/data", rules, ["b"]) == "/b"
    # a name is not a part of a name
    assert mapped("/database/m.gguf", rules, ["b"]) == "/database/m.gguf"


def test_options_travel_with_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "imatrix": "x.dat",
        "recipe": Path("r.txt"),
        "pure": True,
        "split_max_size": "1G",
        "custom_q": ["a=q8_0"],
    }
    assert travelling(given) == {
        "imatrix": str(tmp_path / "x.dat"),
        "recipe": str(tmp_path / "r.txt"),
        "pure": True,
        "custom_q": ["a=q8_0"],
    }


def test_errors_travel_as_what_they_are() -> None:
    missing = FileNotFoundError(2, "No such file or directory", "/x")
    found = Failure.of(missing, "b").exception()
    assert isinstance(found, FileNotFoundError)
    assert found.filename == "/x"
    assert "on node b" in str(found)
    refused = Failure.of(ikq.RefusedError("no"), "b").exception()
    assert type(refused) is ikq.RefusedError
    assert str(refused) == "node b: no"
    # a class that is not ours is not made from a name
    assert type(Failure("SystemExit", ("x",)).exception()) is ikq.errors.IkqError


def looked(
    monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, rule: PathRule, **more: str
) -> Exception | None:
    """What a node `b` says of a run."""
    monkeypatch.setattr(worker, "node_names", lambda: ["b", "10.0.0.2"])
    plan = ikq.plan_quantization(source, out, "Q4_K")
    own = _ikq.PlanWorker(plan._core, isa_name=None, measure_errors=False, clamp=False)
    job = Job("k", str(source), "Q4_K", {}, (rule,), False, False, own.identity, **more)
    worker._opened.clear()
    failure = worker.look(job).failure
    return None if failure is None else failure.exception()


def test_a_node_with_another_source_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, other = tmp_path / "here" / "m.gguf", tmp_path / "there" / "m.gguf"
    for path in (source, other):
        path.parent.mkdir()
        shutil.copy(TINY, path)
    out, rule = tmp_path / "o.gguf", PathRule("10.0.0.2", str(source.parent), str(other.parent))
    # a copy is as good
    assert looked(monkeypatch, source, out, rule) is None
    largest = max(ikq.GGUFReader(source).tensors.values(), key=lambda t: t.raw.size)
    start = source.read_bytes().index(largest.raw.tobytes())
    with other.open("r+b") as file:  # the same header, other weights
        file.seek(start)
        file.write(largest.raw.tobytes()[::-1])
    found = looked(monkeypatch, source, out, rule)
    assert type(found) is ikq.RefusedError
    assert "node b: " in str(found)
    assert f"{other} is not what the driver has" in str(found)
    other.unlink()
    assert isinstance(looked(monkeypatch, source, out, rule), FileNotFoundError)


def test_a_folder_of_the_same_name_is_not_the_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker, "_PROBE_SECONDS", 0.3)
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "probe").touch()
    more = {"partials": (str(here / "o.gguf.part"),), "probe": str(here / "probe")}
    assert looked(monkeypatch, TINY, here / "o.gguf", PathRule("*", "/x", "/y"), **more) is None
    for node in (there, tmp_path / "none"):
        found = looked(monkeypatch, TINY, here / "o.gguf", PathRule("b", str(here), str(node)), **more)
        assert type(found) is ikq.RefusedError
        assert "not the driver's folder" in str(found)


class FakeRay:
    """Two nodes; what the second one's task ends with, and whether the node is still known then."""

    class exceptions:  # noqa: N801 # Ray's name
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    class util:  # noqa: N801 # Ray's name
        class scheduling_strategies:  # noqa: N801 # Ray's name
            NodeAffinitySchedulingStrategy = staticmethod(lambda node, *, soft: node)

    def __init__(self, is_known: bool) -> None:
        self.is_known, self.has_ended = is_known, False

    def nodes(self) -> list[dict[str, object]]:
        facts = {"Resources": {"CPU": 1.0}, "NodeManagerAddress": "127.0.0.1"}
        b_is_there = self.is_known or not self.has_ended
        return [facts | {"NodeID": n, "NodeName": n, "Alive": n == "a" or b_is_there} for n in "ab"]

    def remote(self, **_: object) -> Callable[[object], FakeRay]:
        return lambda _: self

    def options(self, *, scheduling_strategy: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda _: scheduling_strategy)

    def get(self, node: str) -> Batch:
        if node == "b":
            self.has_ended = True
            raise self.exceptions.RayError("lost")
        return Batch(node)


def test_a_node_that_died_just_now_is_left_out() -> None:
    """Ray names nodes for some seconds after their death; one that lives and does not answer is an error."""
    job, notes = Job("k", "m.gguf", "Q4_K", {}, (), False, False, 0), list[str]()
    quantizing._look(FakeRay(is_known=False), job, notes.append)
    assert notes == ["cluster: node b has died"]
    with pytest.raises(ikq.errors.IkqError, match="node b cannot work: lost"):
        quantizing._look(FakeRay(is_known=True), job, notes.append)


@pytest.mark.parametrize("wrong", ["m.gguf", "b.kld"])
def test_a_node_with_another_model_or_base_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    """Files of the same size of which one byte differs; copies are as good."""
    monkeypatch.setattr(chunks, "node_names", lambda: ["b", "10.0.0.2"])
    words = quality_words(tmp_path, "file")
    model, base = words[2], words[4]
    there = tmp_path / "there"
    there.mkdir()
    for name in ("m.gguf", "b.kld"):
        shutil.copy(tmp_path / name, there / name)
    openers: list[chunks.Opener] = []

    def kept(opener: chunks.Opener, first: int, n: int, address: str, **_: object) -> Iterator[object]:
        openers.append(opener)
        return iter(())

    monkeypatch.setattr(evaluating, "chunk_values", kept)
    rules = [PathRule("10.0.0.2", str(tmp_path), str(there))]
    assert list(divergence_on_cluster(model, base, "local", path_map=rules)) == []
    assert chunks.Runner(openers[0]).run(0).failure is None
    with (there / wrong).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    failure = chunks.Runner(openers[0]).run(0).failure
    assert failure is not None
    with pytest.raises(ikq.RefusedError, match=f"node b: {there / wrong} is not what the driver has"):
        raise failure.exception()


def test_no_window_is_nothing_to_measure(tmp_path: Path) -> None:
    words = quality_words(tmp_path, "file")
    with pytest.raises(ikq.RefusedError, match="0 windows"):
        next(divergence_on_cluster(words[2], words[4], "local", chunks=0))


def test_tokenizers_heed_what_overrides_metadata() -> None:
    """As those of loaded models do; else a cluster would cut a text otherwise than one machine."""
    for value in (True, False):
        overrides = {"tokenizer.ggml.add_bos_token": value, "tokenizer.ggml.bos_token_id": 7}
        with ikq.Model.load(TINY, n_ctx=64, override_kv=overrides) as model:
            found = tokenizer_of(TINY, overrides)
            assert found.add_bos is model.tokenizer.add_bos is value
            assert found.bos == model.tokenizer.bos == 7


def test_words_of_ray_are_not_in_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Its threads print what they have to say about nodes that die on standard output."""
    before = sys.stdout
    with rays_words_on_stderr():
        for name in ("ray_listen_error_messages", "worker-1"):
            thread = threading.Thread(target=print, args=(name,), name=name)
            thread.start()
            thread.join()
        sys.stdout.write("figures\n")
        assert sys.stdout.isatty() is before.isatty()
    assert sys.stdout is before
    found = capsys.readouterr()
    assert found.out == "worker-1\nfigures\n"
    assert found.err == "ray_listen_error_messages\n"


def test_work_of_another_plan_is_not_taken(tmp_path: Path) -> None:
    """A run whose outside sends what others made of another type, damaged bytes, and then the right ones."""
    plan = ikq.plan_quantization(TINY, tmp_path / "o.gguf", "Q4_K")
    right = _ikq.PlanWorker(plan._core, isa_name=None, measure_errors=False, clamp=False)
    other = ikq.plan_quantization(TINY, tmp_path / "x.gguf", "Q4_0")
    wrong = _ikq.PlanWorker(other._core, isa_name=None, measure_errors=False, clamp=False)

    class Outside:
        def __init__(self, make: Callable[[int], tuple[bytes, bytes]]) -> None:
            self.make, self.numbers = make, list[int]()

        def begin(self, numbers: list[int]) -> None:
            self.numbers = numbers

        def next(self) -> list[tuple[int, bytes, bytes | None]]:
            # the last one first, and one of them twice
            return [(n, *self.make(n)) for n in (self.numbers[-1], *reversed(self.numbers))]

    def damaged(number: int) -> tuple[bytes, bytes]:
        record, made = right.unit(number)
        return record, made[:-1] + bytes([made[-1] ^ 1])

    with pytest.raises(ikq.FormatError, match="another plan, source or version"):
        plan.run(_outside=Outside(wrong.unit))
    with pytest.raises(ikq.FormatError, match="bytes are damaged"):
        plan.run(_outside=Outside(damaged))
    assert not (tmp_path / "o.gguf").exists()
    plan.run(_outside=Outside(right.unit))
    ikq.quantize_file(TINY, tmp_path / "alone.gguf", "Q4_K")
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cluster", "auto"], "HOST:PORT"),
        (["--path-map", "/a=/b"], "is for --cluster"),
        (["--shared-output"], "is for --cluster"),
        (["--cluster", "local", "--path-map", "a=b"], "NODE:/HERE=/THERE"),
        (["--cluster", "local", "--sequential", "-f", "x"], "works on one machine"),
    ],
)
def test_refusals(words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", *words, "m.gguf", str(tmp_path / "o.gguf"), "Q8_0"]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["perplexity", "-f", "t.txt", "--cluster", "auto"], "HOST:PORT"),
        (["perplexity", "-f", "t.txt", "--path-map", "/a=/b"], "is for --cluster"),
        (["perplexity", "-f", "t.txt", "--cluster", "local", "--kl-divergence-base", "b"], "one machine"),
        (["kld", "--write", "-f", "t.txt", "--cluster", "local", "--kl-divergence-base", "b"], "one machine"),
        (["kld", "--cluster", "auto", "--kl-divergence-base", "b"], "HOST:PORT"),
    ],
)
def test_refusals_where_quality_is_measured(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "-m", str(TINY)]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
