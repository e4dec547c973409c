"""Keys, origins, several models, logs, and how servers end and begin again."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from model_files import path
from serving import GREEDY, TINY, ask, engine, pieces, serving

import ikq
from ikq.serve.folder import find_models
from ikq.serve.security import client_of, read_keys
from ikq.serve.settings import Settings
from ikq.serve.starting import check_start
from ikq.speculation.options import Speculation

PROMPT = {"prompt": "import os\n" * 60, "max_tokens": 4, **GREEDY}


def test_keys(tmp_path):
    with serving(api_keys=("first", "second")) as server:
        for path_ in ("/v1/completions", "/v1/messages", "/tokenize"):
            status, reply = server.ask(path_, {})
            assert status == 401, path_
            assert "key" in reply["error"]["message"]
        for headers in (
            {"authorization": "Bearer third"},
            {"authorization": "Bearer "},
            {"authorization": "Basic first"},
            {"x-api-key": "firs"},
        ):
            assert server.ask("/v1/models", headers=headers)[0] == 401
        assert server.ask("/props")[0] == 401
        assert server.ask("/metrics")[0] == 401
        for headers in ({"authorization": "Bearer second"}, {"x-api-key": "first"}):
            assert server.ask("/v1/models", headers=headers)[0] == 200
        # what says nothing needs none
        assert server.ask("/health")[0] == 200
    with serving(api_keys=("schlüssel", "κλειδί")) as server:
        for key in ("schlüssel".encode(), "schlüssel".encode("latin-1"), "κλειδί".encode()):
            assert server.ask("/v1/models", headers={"authorization": b"Bearer " + key})[0] == 200
        assert server.ask("/v1/models", headers={"x-api-key": b"schl\xc3ssel"})[0] == 401
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n  two \n")
    assert read_keys(file) == ["one", "two"]


def test_origins():
    import httpx

    origin = {"origin": "https://a.example"}
    asks = {**origin, "access-control-request-method": "POST"}
    with serving(cors_origins=("https://a.example",)) as server, httpx.Client(base_url=server.url) as client:
        found = client.options("/v1/chat/completions", headers=asks)
        assert found.headers["access-control-allow-origin"] == "https://a.example"
        other = client.options("/v1/chat/completions", headers={**asks, "origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        found = client.get("/health", headers=origin)
        assert found.headers["access-control-allow-origin"] == "https://a.example"
    with serving() as server, httpx.Client(base_url=server.url) as client:
        assert "access-control-allow-origin" not in client.get("/health", headers=origin).headers


EVIL = {"origin": "https://evil.example", "content-type": "text/plain"}


def test_pages_of_other_origins_may_not_ask():
    body = {"prompt": "import", "max_tokens": 1}
    with serving() as server:
        for path_ in ("/v1/completions", "/slots/0?action=erase", "/nothing"):
            status, reply = server.ask(path_, body, headers=EVIL)
            assert status == 403, path_
            assert "--cors" in reply["error"]["message"]
        assert server.ask("/v1/messages", body, headers=EVIL)[1]["error"]["type"] == "permission_error"
        host = server.url.split("//")[1]
        for headers in (
            {"origin": server.url},
            # a proxy in front of the server
            {**EVIL, "host": "evil.local", "origin": "https://evil.local"},
            {**EVIL, "host": host, "x-forwarded-host": "evil.example"},
            {**EVIL, "host": host, "sec-fetch-site": "same-origin"},
        ):
            assert server.ask("/v1/completions", body, headers=headers)[0] == 200, headers
        for origin in ("null", "http://127.0.0.1", "https://[", ""):
            assert server.ask("/v1/completions", body, headers={"origin": origin})[0] == 403, origin
    with serving(cors_origins=("https://evil.example",)) as server:
        assert server.ask("/v1/completions", body, headers=EVIL)[0] == 200
        assert server.ask("/v1/completions", body, headers={"origin": "https://b.example"})[0] == 403
    with serving(cors_origins=("*",)) as server:
        assert server.ask("/v1/completions", body, headers=EVIL)[0] == 200


def test_names_that_lead_to_a_server_without_keys():
    with serving(cors_origins=("https://a.example",)) as server:
        for name in ("localhost:8080", "127.0.0.1", "[::1]:80", "LOCALHOST.", "host.docker.internal:1", "box",
                     "a.example"):  # fmt: skip
            assert server.ask("/props", headers={"host": name})[0] == 200, name
        for name in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080"):
            status, reply = server.ask("/props", headers={"host": name})
            assert status == 403, name
            assert "--cors" in reply["error"]["message"]
    with serving(api_keys=("k",)) as server:
        assert server.ask("/health", headers={"host": "chat.example"})[0] == 200


def test_keys_that_nobody_gave_out_name_no_client():
    request = SimpleNamespace(headers={"authorization": "Bearer x"}, client=SimpleNamespace(host="10.0.0.1"))
    assert client_of(request, ()) == "10.0.0.1"
    assert client_of(request, ("y",)) == "10.0.0.1"
    assert client_of(request, ("x",)).startswith("key-")


@pytest.fixture
def folder(tmp_path):
    """A folder of two models, one of them in a folder of its own."""
    (tmp_path / "inner").mkdir()
    shutil.copy(TINY, tmp_path / "tiny.gguf")
    shutil.copy(path("qwen3/qwen3-bf16"), tmp_path / "inner" / "qwen3.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    return tmp_path


def test_models_of_a_folder(folder):
    with serving(folder, n_ctx=256, models_max=1) as server:
        _, found = server.ask("/v1/models")
        assert [m["id"] for m in found["data"]] == ["broken", "inner/qwen3", "tiny"]
        assert all(m["status"]["value"] == "unloaded" for m in found["data"])
        texts = {}
        for name in ("tiny", "inner/qwen3", "tiny", "inner/qwen3"):
            status, reply = server.ask(
                "/v1/completions", {"model": name, "prompt": "import", "max_tokens": 6, **GREEDY}
            )
            assert (status, reply["model"]) == (200, name)
            assert texts.setdefault(name, reply["choices"][0]["text"]) == reply["choices"][0]["text"]
            _, found = server.ask("/v1/models")
            assert [m["id"] for m in found["data"] if m["status"]["value"] == "loaded"] == [name]
        for name in ("../tiny", "tiny.gguf", str(folder / "tiny"), "inner/../tiny", "", "x"):
            status, reply = server.ask("/v1/completions", {"model": name, "prompt": "import"})
            assert (status, reply["error"]["param"]) == (404, "model")
        # whoever asks for one that is broken gets no answer, and nobody pays for it
        before = server.models.loaded
        for path_, body, expected in (
            ("/v1/completions", {"prompt": "import"}, 422),
            ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}, 400),
            ("/tokenize", {"content": "x"}, 422),
        ):
            status, reply = server.ask(path_, {"model": "broken", **body})
            assert status == expected
            assert "broken cannot be loaded" in reply["error"]["message"]
        assert server.models.loaded == before
        assert server.ask("/v1/models/inner/qwen3")[1]["id"] == "inner/qwen3"


def test_a_file_that_breaks_when_it_is_read(folder, monkeypatch):
    """What loading finds is remembered for as long as the file stays as it is."""
    import ikq.serve.server as module

    loads = []

    def load(name, *rest):
        loads.append(name)
        if name == "tiny" and len(loads) == 1:
            raise ikq.FormatError("a weight is not finite")
        return load_model(name, *rest)

    load_model = module.load_model
    monkeypatch.setattr(module, "load_model", load)
    body = {"model": "tiny", "prompt": "import", "max_tokens": 1}
    with serving(folder, n_ctx=256) as server:
        for _ in range(3):
            status, reply = server.ask("/v1/completions", body)
            assert (status, "not finite" in reply["error"]["message"]) == (422, True)
        assert loads == ["tiny"]
        (folder / "tiny.gguf").touch()
        assert server.ask("/v1/completions", body)[0] == 200


def test_a_model_that_memory_does_not_hold_drops_no_other(folder, monkeypatch):
    import ikq.serve.models as module

    with serving(folder, n_ctx=256, load={"mmap": "off"}) as server:
        assert server.ask("/v1/completions", {"model": "tiny", "prompt": "import", "max_tokens": 1})[0] == 200
        before = server.models.loaded
        monkeypatch.setattr(module, "available_memory", lambda: -before[0].held)
        status, reply = server.ask("/v1/completions", {"model": "inner/qwen3", "prompt": "import"})
        assert (status, "memory" in reply["error"]["message"]) == (422, True)
        assert server.models.loaded == before


def test_a_model_that_cannot_be_drafted_for_drops_no_other(folder):
    with serving(folder, n_ctx=256, speculation=Speculation(draft_model=str(TINY))) as server:
        body = {"prompt": "import", "max_tokens": 2}
        assert server.ask("/v1/completions", {"model": "tiny", **body})[0] == 200
        before = server.models.loaded
        status, reply = server.ask("/v1/completions", {"model": "inner/qwen3", **body})
        assert (status, "vocabulary" in reply["error"]["message"]) == (422, True)
        assert server.models.loaded == before


def test_a_model_in_use_is_not_unloaded(folder):
    with serving(folder, n_ctx=512, models_max=1) as server:
        body = {"model": "tiny", "prompt": "import", "max_tokens": 300, "ignore_eos": True}
        found = []
        first = threading.Thread(target=lambda: found.append(server.ask("/v1/completions", body)))
        first.start()
        while not (server.models.loaded and engine(server).n_running):
            time.sleep(0.005)
        status, _ = server.ask("/v1/completions", {**body, "model": "inner/qwen3", "max_tokens": 2})
        first.join()
    assert status == 200
    assert found[0][0] == 200
    assert found[0][1]["usage"]["completion_tokens"] == 300


def test_models_are_loaded_and_let_go(folder):
    with serving(folder, n_ctx=256, models_max=2) as server:

        def loaded():
            return [m["id"] for m in server.ask("/models")[1]["data"] if m["status"]["value"] == "loaded"]

        assert server.ask("/models/load", {"model": "tiny"}) == (200, {"success": True})
        assert loaded() == ["tiny"]
        assert server.ask("/models/load", {"model": "broken"})[0] == 422
        assert server.ask("/models/load", {"model": "none"})[0] == 404
        assert server.ask("/models/unload", {"model": "tiny"}) == (200, {"success": True})
        assert loaded() == []
        assert server.ask("/models/unload", {"model": "tiny"})[0] == 400
        # files that go away are listed no more; they may all go
        (folder / "broken.gguf").unlink()
        assert server.ask("/v1/completions", {"model": "broken", "prompt": "x"})[0] == 404
        assert [m["id"] for m in server.ask("/v1/models")[1]["data"]] == ["inner/qwen3", "tiny"]
        shutil.rmtree(folder)
        assert server.ask("/v1/models") == (
            200,
            {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None},
        )


def test_slots_that_a_killed_server_was_writing(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in ("a", f"a.{gone.pid}.partial", f"b.{os.getpid()}.partial", "c.1.partial", "d.partial"):
        (tmp_path / name).write_bytes(b"x")
    check_start(Settings(slot_dir=tmp_path))
    # the first process runs always, and may be another server
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "c.1.partial", "d.partial"]


def test_names_of_split_sets(tmp_path):
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.gguf", "c-1-of-2.gguf"):
        (tmp_path / name).touch()
    assert find_models(tmp_path) == {
        "a": tmp_path / "a-00001-of-00002.gguf",
        "b": tmp_path / "b.gguf",
        "c-1-of-2": tmp_path / "c-1-of-2.gguf",
    }


def test_no_model(tmp_path):
    with pytest.raises(ikq.RefusedError, match="no model"):
        ikq.Server(tmp_path)
    with pytest.raises(OSError, match="nothing.gguf"), ikq.Server(tmp_path / "nothing.gguf"):
        pass


def test_a_line_for_each_request(caplog):
    caplog.set_level(logging.INFO, "ikq.serve")
    with serving(access_log=True, log_json=True) as server:
        server.ask("/v1/completions?key=secret", PROMPT, headers={"authorization": "Bearer secret"})
        server.ask("/v1/completions", {"prompt": []})
        server.ask("/nothing%0Ano")
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("{")]
    assert "secret" not in "".join(lines)
    first, second, *_ = map(json.loads, lines)
    assert (first["status"], first["chosen"], first["model"]) == (200, 4, "tiny-moe-bf16")
    assert first["prompt"] > 100
    assert (second["status"], second["error"][:6]) == (400, "prompt")


def test_what_is_answered_is_completed_before_the_end():
    found = []
    with serving(n_ctx=512) as server:
        body = {"prompt": "import", "max_tokens": 200, "ignore_eos": True, "stream": True}
        thread = threading.Thread(target=lambda: found.append(server.ask("/v1/completions", body)))
        thread.start()
        while not engine(server).n_running:
            time.sleep(0.005)
    thread.join()
    status, text = found[0]
    events = pieces(text)
    assert (status, events[-1]) == (200, "[DONE]")
    assert events[-2]["choices"][0]["finish_reason"] == "length"


class Process:
    """`ikq serve` as a process."""

    def __init__(self, *options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ikq", "serve", "-m", str(TINY), "-c", "1024", "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening at (http\S+)", line):
                self.server = SimpleNamespace(url=found[1])
                break
        else:
            raise AssertionError("".join(self.lines))
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self.reader.start()

    def ask(self, *args, **kwargs):
        return ask(self.server, *args, **kwargs)

    def end(self, *how, gap=0.3):
        """Sends signals one after another; the exit code, and what it wrote."""
        for signal_ in how:
            self.process.send_signal(signal_)  # nothing if it has ended
            time.sleep(gap)
        code = self.process.wait(240)
        self.reader.join()
        self.process.stderr.close()
        return code, "".join(self.lines)


def cached(reply):
    return reply[1]["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_kept_texts_survive_the_end_and_damage_is_noticed(tmp_path):
    process = Process("--prefix-cache", str(tmp_path))
    first = process.ask("/v1/completions", PROMPT)
    assert cached(first) == 0
    process.end(signal.SIGTERM)
    (folder,) = tmp_path.iterdir()
    (file,) = folder.iterdir()
    # killed in the middle of something: what was written stays, what is half written goes
    (folder / "00000009.ikqseq.partial").write_bytes(b"half")
    process = Process("--prefix-cache", str(tmp_path))
    again = process.ask("/v1/completions", PROMPT)
    assert cached(again) == again[1]["usage"]["prompt_tokens"] - 1
    assert again[1]["choices"] == first[1]["choices"]
    process.end(signal.SIGKILL)
    assert list(folder.iterdir()) == [file]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    process = Process("--prefix-cache", str(tmp_path))
    try:
        assert list(folder.iterdir()) == []
        third = process.ask("/v1/completions", PROMPT)
        assert cached(third) == 0
        assert third[1]["choices"] == first[1]["choices"]
    finally:
        process.end(signal.SIGKILL)


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 0),
        ([signal.SIGTERM], 0),
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGTERM], 143),
    ],
)
def test_signals(signals, code):
    """The first one lets requests be completed, the second one does not; nobody sees a traceback."""
    process = Process("--grace", "200")
    body = {"prompt": "import", "max_tokens": 400 if code == 0 else 900, "ignore_eos": True, "stream": True}
    found = []

    def ask():
        try:
            found.append(process.ask("/v1/completions", body))
        except (OSError, http.client.HTTPException) as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while 'llamacpp:requests_processing{model="tiny-moe-bf16"} 1' not in process.ask("/metrics")[1]:
        time.sleep(0.01)
    exit_code, text = process.end(*signals)
    thread.join()
    assert "Traceback" not in text
    assert "Error" not in text
    assert exit_code == code
    if code == 0:
        assert pieces(found[0][1])[-1] == "[DONE]"


@pytest.mark.parametrize("gap", [0.0, 0.05])
def test_signals_that_follow_quickly(gap):
    process = Process()
    code, text = process.end(signal.SIGINT, signal.SIGINT, signal.SIGINT, gap=gap)
    assert "Traceback" not in text
    assert "Exception" not in text
    # nothing was to be completed: it may have ended before the next one came
    assert code in (0, 130)


def test_requests_that_are_not_over_when_the_grace_is():
    process = Process("--grace", "0.5", "--parallel", "1")
    body = {"prompt": "import", "max_tokens": 900, "ignore_eos": True}
    found = []

    def ask(i):
        found.append(process.ask("/v1/completions", {**body, "stream": i % 2 == 0}))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    while 'llamacpp:requests_deferred{model="tiny-moe-bf16"} 39' not in process.ask("/metrics")[1]:
        time.sleep(0.01)
    code, text = process.end(signal.SIGINT)
    for thread in threads:
        thread.join()
    assert code == 0
    assert "Traceback" not in text
    assert len(found) == 40
    told = [reply for status, reply in found if "shutting down" in str(reply)]
    assert len(told) >= 20
    assert all(status in (200, 503) for status, _ in found)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--parallel", "0"], "parallel=0"),
        (["--ssl-key-file", "x"], "go together"),
        (["--api-key-file", "/nowhere"], "/nowhere"),
        (["--api-key", ""], "there is no key in it"),
        (["--port", "99999"], "port=99999"),
        (["--timeout", "-1"], "timeout=-1"),
        (["--host", "203.0.113.1"], "cannot listen at 203.0.113.1:8080"),
        (["-m", "/nowhere.gguf"], "/nowhere.gguf"),
        (["--prefix-cache", "/proc/x"], "--prefix-cache /proc/x"),
        (["--slot-save-path", f"{TINY}/x"], "--slot-save-path"),
        (["--ssl-key-file", str(TINY), "--ssl-cert-file", str(TINY)], f"{TINY} and {TINY}"),
        (["--ssl-key-file", "/nowhere.pem", "--ssl-cert-file", str(TINY)], "/nowhere.pem"),
        (["--api-prefix", "x/"], "api_prefix='x/'"),
    ],
)
def test_wrong_options(options, sentence, capsys):
    from ikq.__main__ import main

    model = [] if "-m" in options else ["-m", str(TINY)]
    assert main(["serve", *model, *options]) in (1, 2)
    assert sentence in capsys.readouterr().err


def test_https(tmp_path):
    import ssl
    import urllib.request

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"]
    subprocess.run(
        [*command, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    with serving(ssl_certfile=cert, ssl_keyfile=key) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=cert)
        with urllib.request.urlopen(f"{server.url}/health", context=context) as response:
            assert json.load(response) == {"status": "ok"}


def test_all_else_works_without_the_libraries():
    code = """if True:
        import sys
        for name in ("starlette", "uvicorn", "pydantic", "pydantic_core", "llguidance", "h11"):
            sys.modules[name] = None
        import ikq
        from ikq.cli import build_parser
        build_parser()
        try:
            ikq.Server
        except ikq.UnsupportedError as error:
            print(error)
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'ikq[serve]'" in found.stdout
