"""What `--cluster` and `--path-map` take, without a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ikq
from ikq.cluster.connect import check_address
from ikq.cluster.job import Failure, travelling
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
def test_refusals(words: list[str], says: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ikq", "quantize", *words, "m.gguf", str(tmp_path / "o.gguf"), "Q8_0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []
