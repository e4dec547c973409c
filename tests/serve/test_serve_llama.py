"""llama-server's own paths."""

from __future__ import annotations

import pytest
from serving import GREEDY, TINY, TOOLS, pieces, serving

import ikq
from ikq.serve.errors import ServiceError
from ikq.serve.openai.bodies import ChatBody
from ikq.serve.openai.request import chat_request
from ikq.serve.settings import Settings


@pytest.fixture(scope="module")
def model():
    with ikq.Model.load(TINY, n_ctx=1024, **TOOLS) as model:
        yield model


def test_completion(server, model):
    body = {"prompt": "import os", "n_predict": 20, "seed": 4, "return_tokens": True, "n_probs": 2}
    status, reply = server.ask("/completion", body)
    expected = list(model.generate("import os", max_tokens=20, seed=4, logprobs=2))
    assert (status, reply["content"]) == (200, "".join(p.text for p in expected))
    assert reply["tokens"] == [p.token for p in expected]
    assert reply["stop"] is True
    assert (reply["stop_type"], reply["tokens_predicted"]) == ("limit", 20)
    used = reply["generation_settings"]
    assert (used["n_predict"], used["seed"], used["top_k"], used["temperature"]) == (20, 4, 40, 0.8)
    assert [t["logprob"] for t in reply["completion_probabilities"]] == [p.logprob for p in expected]
    assert reply["timings"]["predicted_n"] == 20
    _, text = server.ask("/completion", {**body, "stream": True})
    *parts, last = pieces(text)
    assert "".join(p["content"] for p in parts) == reply["content"]
    assert [t for p in parts for t in p["tokens"]] == reply["tokens"]
    assert (last["stop"], last["content"]) == (True, "")


def test_some_fields_of_a_completion(server):
    wanted = ["content", "generation_settings/seed", "timings/predicted_n", "nothing", "content/x"]
    body = {"prompt": "import", "n_predict": 3, "seed": 4, "ignore_eos": True, "response_fields": wanted}
    _, reply = server.ask("/completion", body)
    assert list(reply) == wanted[:3]
    assert (reply["generation_settings/seed"], reply["timings/predicted_n"]) == (4, 3)
    status, reply = server.ask("/completion", {**body, "post_sampling_probs": True})
    assert (status, reply["error"]["param"]) == (400, "post_sampling_probs")
    assert reply["error"] | {"code": 400, "type": "invalid_request_error"} == reply["error"]


def test_steps_of_other_versions_are_ignored(server):
    """A list as chat programs send it, whatever version they speak to."""
    names = ["penalties", "top_k", "typ_p", "tfs_z", "typical_p", "xtc", "top_p", "min_p", "temperature"]
    body = {"prompt": "import", "n_predict": 3, "samplers": names}
    status, reply = server.ask("/completion", body)
    assert status == 200, reply
    status, reply = server.ask("/completion", {**body, "samplers": ["tpo_k"]})
    assert (status, reply["error"]["param"]) == (400, "samplers")


def test_bounds_of_completions(server):
    status, reply = server.ask("/completion", {"prompt": "a", "n_predict": 1, "n_probs": 49152})
    assert (status, "n_probs" in str(reply)) == (400, True)
    for prompt in ([], ["x"] * 300):
        status, reply = server.ask("/completion", {"prompt": prompt, "n_predict": 1})
        assert (status, "expected 1 to 256" in str(reply)) == (400, True)


def test_what_no_template_has_for_an_option(server):
    for name in ("continues", "self", "messages"):
        body = {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {name: []}}
        assert server.ask("/apply-template", body)[1]["error"]["param"] == "chat_template_kwargs"
        body = {"input": "x", "max_output_tokens": 16, "chat_template_kwargs": {name: []}}
        assert server.ask("/v1/responses", body)[1]["error"]["param"] == "chat_template_kwargs"


def test_names_of_places(server):
    status, reply = server.ask("/completion", {"prompt": {"prompt_string": "x"}})
    assert (status, reply["error"]["param"]) == (400, "prompt")
    status, reply = server.ask("/completion", {})
    assert (status, reply["error"]["param"]) == (400, "prompt")


def test_several_prompts(server, model):
    prompts = ["import os", [*model.tokenize("def"), " f"], "x = 1"]
    body = {"prompt": prompts, "n_predict": 6, "seed": 3, "timings_per_token": True}
    alone = [server.ask("/completion", {**body, "prompt": prompt})[1]["content"] for prompt in prompts]
    _, found = server.ask("/completion", body)
    assert [r["content"] for r in found] == alone
    assert [r["index"] for r in found] == [0, 1, 2]
    _, text = server.ask("/completion", {**body, "stream": True})
    events = pieces(text)
    assert sorted(e["index"] for e in events if e["stop"]) == [0, 1, 2]
    for i in range(3):
        assert "".join(e["content"] for e in events if e["index"] == i) == alone[i]
    assert all(e["timings"]["prompt_n"] >= 0 for e in events)
    # one in a list is one
    assert server.ask("/completion", {**body, "prompt": prompts[:1]})[1]["content"] == alone[0]


def test_embedding(server):
    _, found = server.ask("/embedding", {"content": ["import os", "def"]})
    _, expected = server.ask("/v1/embeddings", {"input": ["import os", "def"]})
    assert [e["embedding"][0] for e in found] == [e["embedding"] for e in expected["data"]]
    assert server.ask("/embedding", {"content": ["x"] * 2049})[1]["error"]["param"] == "content"


def test_counts(server):
    body = {"messages": [{"role": "user", "content": "hello"}]}
    _, counted = server.ask("/v1/chat/completions/input_tokens", body)
    _, reply = server.ask("/v1/chat/completions", {**body, "max_tokens": 1})
    assert counted["input_tokens"] == reply["usage"]["prompt_tokens"]


def test_a_prompt_of_tokens_and_texts(server, model):
    mixed = [*model.tokenize("import"), " os"]
    _, reply = server.ask("/completion", {"prompt": mixed, "n_predict": 6, **GREEDY})
    expected = model.generate([*model.tokenize("import"), *model.tokenize(" os")], max_tokens=6, **GREEDY)
    assert reply["content"] == expected.text()


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"grammar": 'root ::= "yes" | "no"'}, ("yes", "no")),
        ({"json_schema": {"enum": ["a", "b"]}}, ('"a"', '"b"')),
        ({"regex": "a{3}b"}, ("aaab",)),
    ],
)
def test_grammars(server, form, text):
    _, reply = server.ask("/completion", {"prompt": "x", "n_predict": 20, "seed": 1, **form})
    assert reply["content"] in text
    assert reply["stop_type"] == "eos"


def test_tokens_and_texts(server, model):
    text = "import os # \N{GREEK SMALL LETTER LAMDA}\n"
    _, reply = server.ask("/tokenize", {"content": text})
    assert reply["tokens"] == model.tokenize(text)
    _, reply = server.ask("/tokenize", {"content": text, "with_pieces": True})
    data = [
        p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in reply["tokens"]
    ]
    assert b"".join(data).decode() == text
    _, reply = server.ask("/detokenize", {"tokens": model.tokenize(text)})
    assert reply == {"content": text}
    status, _ = server.ask("/detokenize", {"tokens": [10**9]})
    assert status == 400


def test_apply_template(server, model):
    messages = [{"role": "user", "content": "hello"}]
    _, reply = server.ask("/apply-template", {"messages": messages})
    assert reply["prompt"] == model.chat_template.render(messages)


def test_apply_template_is_the_prompt_that_a_chat_has(server, model):
    messages = [{"role": "user", "content": "hello"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    template = model.chat_template

    def prompt(**fields):
        return server.ask("/apply-template", {"messages": messages, **fields})[1]["prompt"]

    plain = template.render(messages)
    assert prompt(add_generation_prompt=False) == template.render(messages, add_generation_prompt=False)
    assert prompt(tools=tools) != plain
    assert prompt(tools=tools, tool_choice="none") == plain
    source = "{{ enable_thinking }} {{ reasoning_effort }}"
    with serving(chat_template=source) as other:
        body = {"messages": messages, "enable_thinking": False, "reasoning_effort": "low"}
        assert other.ask("/apply-template", body)[1]["prompt"] == "False low"


def test_budgets_by_llama_servers_names():
    for name in ("reasoning_budget_tokens", "thinking_budget_tokens"):
        body = ChatBody(messages=[{"role": "user", "content": "x"}], **{name: 5})
        assert chat_request(body, Settings()).reasoning_budget == 5
        body = ChatBody(messages=[{"role": "user", "content": "x"}], **{name: -1})
        assert chat_request(body, Settings(reasoning_budget=7)).reasoning_budget == 7
        body = ChatBody(messages=[{"role": "user", "content": "x"}], **{name: -2})
        with pytest.raises(ServiceError, match=f"{name}=-2"):
            chat_request(body, Settings())


def test_props_health_and_metrics(server):
    assert server.ask("/health") == (200, {"status": "ok"})
    _, props = server.ask("/props")
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (8, 1024)
    assert props["default_generation_settings"]["params"]["n_predict"] == -1
    assert props["chat_template_caps"]["supports_tools"]
    _, text = server.ask("/metrics")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['llamacpp:tokens_predicted_total{model="tiny-moe-bf16"}']) > 0


def test_slots_are_saved_restored_and_erased(tmp_path):
    with serving(slot_dir=tmp_path) as server:
        body = {"prompt": "import os\n" * 40, "n_predict": 4, "id_slot": 2, **GREEDY}
        _, first = server.ask("/completion", body)
        _, slots = server.ask("/slots")
        n = slots[2]["n_tokens"]
        assert n == first["tokens_evaluated"] + 4
        _, saved = server.ask("/slots/2?action=save", {"filename": "chat.bin"})
        # the last token was chosen, but not computed
        assert saved["n_saved"] == n - 1
        assert saved["n_written"] == (tmp_path / "chat.bin").stat().st_size
        # without a body, as programs for llama-server send it
        assert server.ask("/slots/2?action=erase", method="POST")[1]["n_erased"] == n
        _, again = server.ask("/completion", body)
        assert again["timings"]["cache_n"] == 0
    with serving(slot_dir=tmp_path) as server:
        _, restored = server.ask("/slots/5?action=restore", {"filename": "chat.bin"})
        assert restored["n_restored"] == n - 1
        _, third = server.ask("/completion", body)
        assert third["content"] == first["content"]
        assert third["timings"]["prompt_n"] == 1
        (tmp_path / "bad.bin").write_bytes((tmp_path / "chat.bin").read_bytes()[:-9] + b"123456789")
        assert server.ask("/slots/5?action=restore", {"filename": "bad.bin"})[0] == 400
        for name in ("../chat.bin", "/etc/passwd", "a/b", "..", ".hidden", "", "x\x00", "x" * 300, None):
            for action in ("save", "restore"):
                status, reply = server.ask(f"/slots/5?action={action}", {"filename": name})
                assert (status, reply["error"]["param"]) == (400, "filename"), name
        assert server.ask("/slots/99?action=erase", {})[0] == 404
        assert server.ask("/slots/x?action=erase", {})[0] == 404
        assert server.ask("/slots/1?action=eat", {})[0] == 400


def test_slots_need_a_folder(server):
    assert server.ask("/slots/0?action=save", {"filename": "x"})[0] == 501


def test_the_description_has_what_comes_after_the_question_mark(server):
    _, described = server.ask("/openapi.json")
    slot = described["paths"]["/slots/{id}"]["post"]
    assert [(p["name"], p["in"], p["required"]) for p in slot["parameters"]] == [
        ("id", "path", True),
        ("action", "query", True),
    ]
    assert not slot["requestBody"]["required"]
    messages = described["components"]["schemas"]["ChatBody"]["properties"]["messages"]
    assert "assistant" in messages["items"]["properties"]["role"]["enum"]
