"""LoRA adapters in the service: their list, their scales, and requests with scales of their own."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import GREEDY, TINY, engine, serving

import ikq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from adapter_files import matrices, pairs_for, write_adapter

PROMPT = "import os\nimport sys\n\n\ndef main(arguments):\n    "


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Files of two adapters that change what the model says."""
    folder = tmp_path_factory.mktemp("adapters")
    with ikq.GGUFReader(TINY) as reader:
        names, architecture = matrices(reader), reader.metadata["general.architecture"]
        found = []
        for i, half in enumerate((names[::2], names[1::2])):
            pairs = pairs_for(reader, half, size=0.4)
            found.append(write_adapter(folder / f"{i}.gguf", architecture, pairs))
        return found


@pytest.fixture(scope="module")
def texts(adapters):
    """What the model says under some scales, computed one after the other without the service."""
    scales = [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.5, -1.0), (0.0, 1.0)]
    with ikq.Model.load(TINY, n_ctx=1024, lora=adapters) as model:
        found = {}
        for scale in scales:
            model.set_lora(scale)
            model._batcher.forget()
            found[scale] = model.generate(PROMPT, max_tokens=16, **GREEDY).text()
        assert len(set(found.values())) == len(scales)
        return found


@pytest.fixture(scope="module")
def server(adapters, tmp_path_factory):
    with serving(load={"lora": adapters}, slot_dir=tmp_path_factory.mktemp("slots")) as server:
        yield server


def say(server, lora=None, **fields):
    body = {"prompt": PROMPT, "n_predict": 16, **GREEDY, **fields}
    if lora is not None:
        body["lora"] = lora
    status, reply = server.ask("/completion", body)
    assert status == 200, reply
    return reply["content"]


def entries(scales):
    return [{"id": i, "scale": s} for i, s in enumerate(scales)]


def test_adapters_are_told_and_set(server, adapters, texts):
    listed = [{"id": i, "path": str(f), "scale": 1.0} for i, f in enumerate(adapters)]
    assert server.ask("/lora-adapters") == (200, listed)
    assert say(server) == texts[1.0, 1.0]
    # those that are not named are off
    assert server.ask("/lora-adapters", [{"id": 1, "scale": 1.0}]) == (200, {"success": True})
    assert [a["scale"] for a in server.ask("/lora-adapters")[1]] == [0, 1]
    assert say(server) == texts[0.0, 1.0]
    assert server.ask("/lora-adapters", []) == (200, {"success": True})
    assert say(server) == texts[0.0, 0.0]
    assert server.ask("/lora-adapters", entries((1.0, 1.0)))[0] == 200
    assert say(server) == texts[1.0, 1.0]


@pytest.mark.parametrize("shares", [True, False])
def test_requests_with_scales_of_their_own_are_computed_together(server, texts, shares):
    scales = [*texts] * 2

    def ask(scale):
        return say(server, entries(scale), cache_prompt=shares)

    with ThreadPoolExecutor(len(scales)) as threads:
        found = list(threads.map(ask, scales))
    assert found == [texts[scale] for scale in scales]
    # the server's scales are those of requests that say nothing
    assert say(server) == texts[1.0, 1.0]
    assert say(server, []) == texts[0.0, 0.0]


def test_other_apis_and_forms(server, texts):
    body = {"prompt": PROMPT, "max_tokens": 16, **GREEDY, "lora": [{"id": 0, "scale": 1}]}
    status, reply = server.ask("/v1/completions", body)
    assert (status, reply["choices"][0]["text"]) == (200, texts[1.0, 0.0])


def test_slots_remember_the_scales(server, texts):
    say(server, entries((1.0, 1.0)), id_slot=0)
    status, saved = server.ask("/slots/0?action=save", {"filename": "one"})
    assert (status, saved["n_saved"] > 16) == (200, True), saved
    say(server, entries((0.5, -1.0)), id_slot=1)
    status, saved = server.ask("/slots/1?action=save", {"filename": "other"})
    assert status == 200, saved
    engine(server).prefixes.clear()
    # files are of the scales that the server has
    assert server.ask("/slots/2?action=restore", {"filename": "one"})[0] == 200
    status, reply = server.ask("/slots/2?action=restore", {"filename": "other"})
    assert status == 400
    assert "LoRA adapters" in reply["error"]["message"]
    assert say(server, entries((0.5, -1.0))) == texts[0.5, -1.0]
    status, reply = server.ask("/completion", {"prompt": PROMPT, "n_predict": 1, **GREEDY})
    assert reply["timings"]["cache_n"] > 8


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ([{"id": 2, "scale": 1}], "there is no adapter 2; there are 0 to 1"),
        ([{"id": -1, "scale": 1}], "lora"),
        ([{"id": 0}], "scale"),
        ([{"id": 0, "scale": "much"}], "scale"),
        ([{"id": 0, "scale": 1e39}], "scale"),
        ({"id": 0, "scale": 1}, "lora"),
    ],
)
def test_what_is_no_scale(server, lora, says):
    status, reply = server.ask("/completion", {"prompt": PROMPT, "n_predict": 1, "lora": lora})
    assert status == 400
    assert says in str(reply["error"])
    status, reply = server.ask("/lora-adapters", lora)
    assert status == 400
    assert [a["scale"] for a in server.ask("/lora-adapters")[1]] == [1, 1]


def test_a_model_without_adapters():
    with serving() as server:
        assert server.ask("/lora-adapters") == (200, [])
        assert server.ask("/lora-adapters", []) == (200, {"success": True})
        status, reply = server.ask("/lora-adapters", [{"id": 0, "scale": 1}])
        assert (status, "there is none" in reply["error"]["message"]) == (400, True)
        assert say(server, [])
