"""Requests that nobody should send: no status 500, nothing left behind, and the server goes on."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import json
import os
import random
import socket
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from serving import address, engine, serving

from ikq.serve.responses.store import ResponseStore
from ikq.serve.routes import responses

CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "import"}]},
    ],
    "max_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 1,
    "stop": ["x"],
    "logit_bias": {"5": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "seed": 1,
    "stream": False,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "chat_template_kwargs": {"enable_thinking": False},
    "timeout": 5,
}
REQUESTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": ["import"], "max_tokens": 2, "logprobs": 1, "n": 1, "echo": False},
    "/v1/embeddings": {"input": ["import"], "encoding_format": "base64", "dimensions": 3},
    "/completion": {"prompt": ["import", 5], "n_predict": 2, "samplers": ["top_k"], "n_probs": 1, "top_k": 4},
    "/tokenize": {"content": "import", "with_pieces": True},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/apply-template": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/messages": {"model": "m", "max_tokens": 2, "messages": [{"role": "user", "content": "import"}]},
    "/v1/messages/count_tokens": {"model": "m", "messages": [{"role": "user", "content": "import"}]},
    "/v1/responses": {"model": "m", "input": "import", "max_output_tokens": 16},
    "/slots/0?action=erase": {"filename": "x"},
}
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**70),
    0.5,
    -0.0,
    1e308,
    -1e308,
    1e-308,
    "",
    " ",
    "x" * 500,
    "\x00",
    "\uffff",
    "<|im_end|>",
    "{{ 7 }}",
    "../../etc/passwd",
    "root ::= root",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"type": "json_schema"},
    {"type": "object", "$ref": "#"},
    [{"role": "user"}],
    [{"role": "tool", "content": None}],
]


def places(value, at=()):
    """All places in a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*at, key))


def mutated(rng, body):
    """A body with one to three changes."""
    body = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        at = rng.choice(list(places(body)))
        if not at:
            if rng.random() < 0.1:
                return rng.choice(ODD)
            continue
        parent = body
        for key in at[:-1]:
            parent = parent[key]
        kind = rng.randrange(4)
        if kind == 0:
            del parent[at[-1]]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice(["", "x", "stream", "n", "stop", "grammar", "regex"])] = copy.deepcopy(
                rng.choice(ODD)
            )
        else:
            parent[at[-1]] = copy.deepcopy(rng.choice(ODD))
    return body


def cut(rng, data):
    """Bytes that are damaged."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
    return bytes(data)


def resident():
    """Bytes of memory that this process has; what the allocator only holds in reserve is given back first."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def send(server, data, *, wait=5.0, half_close=False):
    """What the server says to these bytes until it closes, or has nothing more to say."""
    with socket.create_connection(address(server), timeout=wait) as connection:
        found = b""
        try:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                found += part
        except (TimeoutError, ConnectionError):
            pass
        return found


def head(path, *headers, method="POST"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *headers, "", ""]).encode()


def status_of(data):
    return int(data.split(b" ", 2)[1]) if data.startswith(b"HTTP/1.1 ") else None


def works(server):
    assert server.ask("/v1/completions", {"prompt": "import", "max_tokens": 1})[0] == 200


@pytest.fixture(scope="module")
def hostile():
    """A server with small limits; what it keeps of responses is full after a few of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses, "ResponseStore", partial(ResponseStore, max_responses=16))
        with serving(max_body=2**20, n_ctx=256, parallel=4, queue=8, timeout=10) as server:
            yield server


def test_mutated_requests(hostile):
    rng = random.Random(20)
    # 5,000 in all with IKQ_HYPOTHESIS=deep
    n = 2500 if os.environ.get("IKQ_HYPOTHESIS") == "deep" else 400
    statuses = set()

    def ask(i):
        path = rng.choice(list(REQUESTS))
        body = mutated(rng, REQUESTS[path])
        data = json.dumps(body).encode()
        if i % 5 == 0:
            data = cut(rng, data)
        status, reply = hostile.ask(path, data, method="POST")
        assert status < 500 or status in (501, 503), (path, body, reply)
        statuses.add(status)

    # a grammar's library and its table of the vocabulary are loaded once, when first needed
    grammar = {"prompt": "import", "n_predict": 1, "grammar": 'root ::= "x"'}
    assert hostile.ask("/completion", grammar)[0] == 200
    for i in range(n):
        ask(i)
    before = resident()
    for i in range(n):
        ask(i)
    after = resident()
    assert {200, 400} <= statuses
    assert after < 1.05 * before
    assert engine(hostile).n_wanted == 0
    works(hostile)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"messages":' * 5000,
        b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"x": ' + b"9" * 100_000 + b"}",
        b'{"temperature": NaN}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "x"} {}',
        b"",
        b"null",
        b"[]",
        "\ufeff{}".encode(),
        b'{"messages": [{"role": "user", "content": ' + b'{"a":' * 150 + b"1" + b"}" * 150 + b"}]}",
    ],
)
def test_bodies_that_are_no_request(hostile, body):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/messages"):
        status, reply = hostile.ask(path, body, method="POST")
        assert status == 400
        assert reply["error"]["message"]
        # names of our classes say nothing to clients
        assert "Body" not in reply["error"]["message"]


def test_bodies_that_are_too_large(hostile):
    size = 64 * 2**20
    found = send(hostile, head("/v1/completions", f"content-length: {size}"))
    assert status_of(found) == 413
    # one that does not say how large it is
    chunks = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    found = send(hostile, head("/v1/completions", "transfer-encoding: chunked") + chunks * 40)
    assert status_of(found) in (413, None)
    works(hostile)


def test_lengths_that_can_be_read_in_two_ways(hostile):
    body = b'{"prompt": "x", "max_tokens": 1}'
    smuggled = head("/metrics", method="GET")
    n = len(body)
    for headers in (
        (f"content-length: {n}", f"content-length: {n + 5}"),
        (f"content-length: {n}, {n + 5}",),
        (f"content-length: {n}", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked, identity",),
        ("transfer-encoding: chunked", "transfer-encoding: chunked"),
        ("content-length: -1",),
        ("content-length: +5",),
        ("content-length: 0x10",),
    ):
        found = send(hostile, head("/v1/completions", *headers) + body + smuggled, wait=1.0)
        assert found.count(b"HTTP/1.1 ") <= 1, headers
        assert status_of(found) in (400, 413, 501, None), headers
    works(hostile)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
@pytest.mark.parametrize("path", ["/v1/completions", "/nothing", "/health", "/"])
def test_a_request_within_a_body_is_none(hostile, method, path):
    # a valid chunked body for those who look at the coding, and something else for those who do not
    body = b"0\r\n\r\n" + head("/metrics", method="GET")
    headers = (f"content-length: {len(body)}", "transfer-encoding: chunked")
    found = send(hostile, head(path, *headers, method=method) + body, wait=5.0)
    assert status_of(found) == 400
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in found.lower()


def test_headers_without_end(hostile):
    many = [f"x-{i}: {'y' * 100}" for i in range(5000)]
    found = send(hostile, head("/v1/completions", *many))
    assert status_of(found) in (400, 431, None)
    found = send(hostile, b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n")
    assert status_of(found) in (400, 414, 431, None)
    assert status_of(send(hostile, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")) in (400, None)
    works(hostile)


def test_connections_that_are_cut(hostile):
    body = json.dumps({"prompt": "import", "max_tokens": 200, "stream": True, "ignore_eos": True}).encode()
    whole = head("/v1/completions", f"content-length: {len(body)}") + body
    rng = random.Random(3)
    for _ in range(40):
        with socket.create_connection(address(hostile), timeout=5) as connection:
            connection.sendall(whole[: rng.randint(1, len(whole))])
            if rng.random() < 0.3:
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
                )
    end = time.monotonic() + 10
    while engine(hostile).n_wanted and time.monotonic() < end:
        time.sleep(0.01)
    assert engine(hostile).n_wanted == 0
    works(hostile)


def test_slow_clients_delay_nobody(hostile):
    slow = [socket.create_connection(address(hostile)) for _ in range(20)]
    try:
        for connection in slow:
            connection.sendall(head("/v1/completions", "content-length: 100")[:-2])
        start = time.monotonic()
        works(hostile)
        assert time.monotonic() - start < 5
    finally:
        for connection in slow:
            connection.close()


def test_a_client_that_does_not_read_holds_no_slot(hostile):
    body = json.dumps({"prompt": "import", "max_tokens": 200, "stream": True, "ignore_eos": True}).encode()
    connection = socket.create_connection(address(hostile))
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(head("/v1/completions", f"content-length: {len(body)}") + body)
        end = time.monotonic() + 10
        while engine(hostile).counters.n_texts == 0 or engine(hostile).n_wanted:
            assert time.monotonic() < end
            time.sleep(0.01)
        works(hostile)
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/page/../../../etc/passwd",
        "/page/%2e%2e%2f%2e%2e%2fpyproject.toml",
        "/v1/models/../../etc/passwd",
        "/v1/models/%2Fetc%2Fpasswd",
        "//etc/passwd",
        "/%00",
        "/v1/chat/completions/",
    ],
)
def test_paths_that_lead_nowhere(hostile, path):
    status, reply = hostile.ask(path, method="GET")
    assert status == 404
    assert "passwd" not in str(reply) or "root:" not in str(reply)


def test_methods(hostile):
    status, reply = hostile.ask("/v1/completions", method="GET")
    assert (status, reply["error"]["code"]) == (405, "method_not_supported")
    status, reply = hostile.ask("/completion", method="GET")
    assert (status, reply["error"]["code"]) == (405, 405)
    assert hostile.ask("/v1/messages", method="GET")[1]["type"] == "error"
    assert hostile.ask("/v1/nothing", {})[1]["error"]["code"] == "not_found"


def test_many_at_once(hostile):
    statuses = []

    def ask(i):
        statuses.append(hostile.ask("/v1/completions", {"prompt": f"import {i}", "max_tokens": 3})[0])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 12
    works(hostile)
