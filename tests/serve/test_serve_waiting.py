"""Who waits for a model, for embeddings, and until when: through HTTP."""

from __future__ import annotations

import concurrent.futures.thread
import gc
import http.client
import json
import shutil
import threading
import time
import weakref

import pytest
from serving import GREEDY, TINY, address, engine, serving

import ikq.serve.server as module

# some seconds of work for a model that reads a few tokens at a time
TEXTS = [" ".join(f"{i} import os" for _ in range(50)) for i in range(200)]
FEW = {"n_ubatch": 8}


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.005)


def begun(server, path, body):
    """A connection with a request that nobody has answered yet."""
    connection = http.client.HTTPConnection(*address(server), timeout=60)
    connection.request("POST", path, json.dumps(body))
    return connection


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models that are the same but for their names."""
    folder = tmp_path_factory.mktemp("models")
    for name in "ab":
        shutil.copy(TINY, folder / f"{name}.gguf")
    return folder


@pytest.fixture
def slow(monkeypatch):
    """Loads that wait for an event; names of those that have begun."""
    gate, loads, load = threading.Event(), [], module.load_model

    def waiting(name, *rest):
        loads.append(name)
        assert gate.wait(60)
        return load(name, *rest)

    monkeypatch.setattr(module, "load_model", waiting)
    yield gate, loads
    gate.set()


PATHS = {
    "/v1/completions": {"prompt": "import", "max_tokens": 1},
    "/completion": {"prompt": "import", "n_predict": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "stream": True},
}


def test_time_runs_while_a_model_is_loaded(folder, slow):
    gate, _ = slow
    with serving(folder, n_ctx=256, timeout=0.3) as server:
        for path, body in PATHS.items():
            start = time.monotonic()
            status, reply = server.ask(path, {"model": "a", "timeout": 0.1, **body})
            assert (status, reply["error"]["type"]) == (408, "timeout_error")
            assert "gave itself" in reply["error"]["message"]
            assert time.monotonic() - start < 5
        for path, body in (
            ("/v1/embeddings", {"input": "x"}),
            ("/tokenize", {"content": "x"}),
            ("/props?model=a", None),
        ):
            status, reply = server.ask(path, body and {"model": "a", **body})
            assert (status, "--timeout" in reply["error"]["message"]) == (408, True), path
        assert server.models.loaded == []
        # what has begun goes on, though nobody waits for it
        gate.set()
        until(lambda: server.models.loaded)


def test_clients_that_go_away_wait_for_no_model(folder, slow):
    gate, loads = slow
    with serving(folder, n_ctx=1024) as server:
        gate.set()
        # a stream that goes on for some time holds the only place
        stream = begun(
            server,
            "/v1/completions",
            {"model": "a", "prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": True},
        )
        until(lambda: server.models.loaded and engine(server).n_running)
        gone = [begun(server, path, {"model": "b", **body}) for path, body in PATHS.items()]
        gone.append(begun(server, "/v1/embeddings", {"model": "b", "input": "x"}))
        until(lambda: sum(a.n_waiting for a in server.models._arrivals.values()) == 4)
        for connection in gone:
            connection.close()
        until(lambda: not server.models._arrivals)
        stream.close()
        until(lambda: engine(server).n_wanted == 0)
        # nobody has made room for a model that nobody waits for
        assert loads == ["a"]
        assert [model.name for model in server.models.loaded] == ["a"]


def test_as_many_wait_for_a_model_as_the_server_takes(folder, slow):
    gate, _ = slow
    body = {"model": "a", **PATHS["/v1/completions"]}
    with serving(folder, n_ctx=256, parallel=1, queue=2) as server:
        waiting = [begun(server, "/v1/completions", body) for _ in range(3)]
        until(lambda: sum(a.n_texts for a in server.models._arrivals.values()) == 3)
        connection = begun(server, "/v1/completions", body)
        response = connection.getresponse()
        assert (response.status, int(response.getheader("retry-after")) >= 1) == (429, True)
        assert "--queue" in json.loads(response.read())["error"]["message"]
        connection.close()
        gate.set()
        for connection in waiting:
            response = connection.getresponse()
            assert response.status == 200
            response.read()
            connection.close()


def test_two_models_in_one_place(folder):
    """Whoever asks for either of two models gets an answer, the same as if the other one were not there."""
    found = {}
    with serving(folder, n_ctx=256, models_max=1, queue=64) as server:

        def ask(i):
            body = {"model": "ab"[i % 2], "prompt": f"import {i % 4}", "max_tokens": 4, **GREEDY}
            found[i] = server.ask("/v1/completions", body)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {status for status, _ in found.values()} == {200}
    texts = {i: reply["choices"][0]["text"] for i, (_, reply) in found.items()}
    assert all(texts[i] == texts[i % 4] for i in texts)
    assert all(found[i][1]["model"] == "ab"[i % 2] for i in found)


@pytest.mark.parametrize("lag", [0, 0.2])
def test_a_model_that_goes_leaves_nothing(folder, lag, monkeypatch):
    """Also when threads hold what they have worked with for some time after it is done."""
    run = concurrent.futures.thread._WorkItem.run

    def lagging(self):
        run(self)
        time.sleep(lag)

    monkeypatch.setattr(concurrent.futures.thread._WorkItem, "run", lagging)
    with serving(folder, n_ctx=256) as server:
        body = {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        assert server.ask("/v1/chat/completions", body)[0] == 200
        (loaded,) = server.models.loaded
        vocabulary = weakref.ref(loaded.model.tokenizer)
        del loaded
        gc.disable()  # what is in cycles waits for nobody else
        try:
            assert server.ask("/models/unload", {"model": "a"})[0] == 200
            until(lambda: vocabulary() is None, 5)
        finally:
            gc.enable()


def test_a_server_of_a_folder_starts_again(folder):
    from ikq import Server
    from ikq.serve.settings import Settings

    server = Server(folder, Settings(port=0, access_log=False), load_options={"n_ctx": 256})
    for _ in range(2):
        with server:
            from serving import ask

            body = {"model": "a", **PATHS["/v1/completions"]}
            assert ask(server, "/v1/completions", body)[0] == 200
            assert ask(server, "/v1/completions", {**body, "model": "b"})[0] == 200


def test_embeddings_of_a_client_that_goes_away():
    with serving(n_ctx=512, parallel=1, queue=1, load=FEW) as server:
        big = begun(server, "/v1/embeddings", {"input": TEXTS})
        until(lambda: engine(server).n_wanted == 1)
        # one text of another request is not held up by all of these
        start = time.monotonic()
        assert server.ask("/v1/embeddings", {"input": "import os"})[0] == 200
        alone = time.monotonic() - start
        assert engine(server).n_wanted == 1
        second = begun(server, "/v1/embeddings", {"input": TEXTS})
        until(lambda: engine(server).n_wanted == 2)
        # they count as what waits
        status, reply = server.ask("/v1/embeddings", {"input": "import os"})
        assert (status, reply["error"]["code"]) == (429, "rate_limit_exceeded")
        big.close()
        second.close()
        until(lambda: engine(server).n_wanted == 0, 5)
        assert alone < 2
        assert server.ask("/v1/completions", {"prompt": "import", "max_tokens": 1})[0] == 200


def test_embeddings_that_take_too_long():
    with serving(n_ctx=512, timeout=0.5, load=FEW) as server:
        status, reply = server.ask("/v1/embeddings", {"input": TEXTS})
        assert (status, "--timeout" in reply["error"]["message"]) == (408, True)
        until(lambda: engine(server).n_wanted == 0, 5)
        assert server.ask("/v1/embeddings", {"input": "import"})[0] == 200


def test_the_end_of_the_server_is_told_to_those_who_wait_for_a_model(folder, slow):
    gate, _ = slow
    found = {}
    with serving(folder, n_ctx=256, grace=0.2) as server:

        def ask(path):
            found[path] = server.ask(path, {"model": "a", **PATHS[path]})
            if len(found) == len(PATHS):
                gate.set()

        threads = [threading.Thread(target=ask, args=(path,)) for path in PATHS]
        for thread in threads:
            thread.start()
        until(lambda: sum(a.n_waiting for a in server.models._arrivals.values()) == 3)
    for thread in threads:
        thread.join()
    assert all(status == 503 and "shutting down" in str(reply) for status, reply in found.values())
