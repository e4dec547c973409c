"""Servers of small models for tests."""

from __future__ import annotations

import http.client
import json
from contextlib import contextmanager
from pathlib import Path

import ikq
from ikq.serve.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "tests" / "data" / "tiny-moe-bf16.gguf"
GREEDY = {"temperature": 0}

# a template that knows tools, in the form that Hermes and Qwen have
TEMPLATE = """\
{%- if tools %}<|im_start|>system
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Say <tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or "" }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOLS = {"override_kv": {"tokenizer.chat_template": TEMPLATE}}


@contextmanager
def serving(model=TINY, *, n_ctx=1024, n_threads=2, load=None, speculation=None, **settings):
    """A running server; `ask` of what it gives sends a request."""
    options = {"n_ctx": n_ctx, "n_threads": n_threads, **(load or {})}
    settings = {"port": 0, "access_log": False, "parallel": 8, "queue": 32, **settings}
    with ikq.Server(model, Settings(**settings), load_options=options, speculation=speculation) as server:
        server.ask = lambda *args, **kwargs: ask(server, *args, **kwargs)
        yield server


def engine(server):
    """The engine of the only model that is loaded."""
    (loaded,) = server.models.loaded
    return loaded.engine


def address(server):
    host, _, port = server.url.split("/")[2].rpartition(":")
    return host, int(port)


def ask(server, path, body=None, *, method=None, headers=None, timeout=600):
    """Status and body of a response, JSON where it is."""
    connection = http.client.HTTPConnection(*address(server), timeout=timeout)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        connection.request(method or ("GET" if body is None else "POST"), path, data, headers or {})
        response = connection.getresponse()
        text = response.read()
        kind = response.getheader("content-type") or ""
        return response.status, json.loads(text) if kind.startswith("application/json") else text.decode()
    finally:
        connection.close()


def pieces(text):
    """Events of a stream, as JSON where they are."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
