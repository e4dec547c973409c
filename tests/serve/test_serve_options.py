"""Options that users of llama-server know: what they do, and which are explained or refused."""

from __future__ import annotations

import json

import pytest
from serving import TEMPLATE, TINY, TOOLS, pieces, serving

import ikq
from ikq.__main__ import main
from ikq.cli import build_parser
from ikq.cli.serve import _settings

USER = {"role": "user", "content": "import os"}


def settings(*options):
    return _settings(build_parser().parse_args(["serve", "-m", str(TINY), *options]))


@pytest.mark.parametrize(
    "flags",
    [
        "-cb -nocb --metrics --slots --props --embedding --jinja --no-jinja --webui --prefill-assistant --cache-prompt",
        "--threads-http 4 --cache-reuse 256 -sps 0.5 -kvu --no-context-shift --context-shift --warmup --no-warmup",
        "--log-colors --log-prefix --log-timestamps -v -lv 3 --sse-ping-interval 30 -ctxcp 32 -fa on -rtr --mlock",
        "--verbose-prompt -nr --no-op-offload --offline --no-mmproj -cmoed -ncmoed 1 -dio -ndio -bs -fit on -fitt 1 --tags x",
        "-C ff -Cr 0-1 --cpu-strict 1 --prio 2 --poll 50 -Cb ff --prio-batch 1 --webui-config {} --no-skip-chat-parsing",
        "-td 4 -tbd 4 -cd 512 -ctkd f16 -ctvd q8_0 -devd none -ngld 99 -otd a=CPU --draft-p-split 0.1 --no-repack",
        "--check-tensors --keep 4 -dt 0.1 --no-perf --escape --numa distribute -ts 1,1 -sm layer -mg 0 -thp -gr",
    ],
)
def test_flags_that_mean_nothing_here_are_accepted(flags):
    assert settings(*flags.split()) == settings()


@pytest.mark.parametrize(
    "flags",
    [
        "--control-vector x.gguf",
        "--mmproj x.gguf",
        "-hf a/b",
        "-mu http://x",
        "--rerank",
        "--path x",
        "--tools all",
        "--grammar x",
        "-r x",
        "--models-preset x",
        "--embd-normalize 0",
        "--rope-freq-base 1e6",
        "--yarn-orig-ctx 4096",
        "--spec-type ngram-simple",
        "-lcs x",
        "--spec-replace a b",
        "--skip-chat-parsing",
        "-hft x",
    ],
)
def test_flags_that_are_refused_say_why(flags, capsys):
    with pytest.raises(SystemExit) as error:
        main(["serve", "-m", str(TINY), *flags.split()])
    assert error.value.code == 2
    told = capsys.readouterr().err
    assert f"{flags.split()[0]} is not offered: " in told


@pytest.mark.parametrize(
    "command",
    [
        ["serve", "--para", "2"],
        ["serve", "-fm"],
        ["run", "-no-fu"],
        ["serve", "-f", "x"],
        ["run", "--pre", "5"],
        ["quantize", "--imat", "x"],
        ["bench", "--thr", "1"],
    ],
)
def test_no_abbreviations(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([command[0], "-m", str(TINY), *command[1:]])
    assert error.value.code == 2
    capsys.readouterr()


def test_what_flags_set(tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    found = settings("--chat-template-file", str(file), "--reasoning-format", "none", "--no-slots", "-n", "7")
    assert (found.chat_template, found.reasoning_format, found.slots, found.max_tokens) == (
        TEMPLATE,
        "none",
        False,
        7,
    )
    assert settings("--reasoning-budget", "0").template_options == {"enable_thinking": False}
    assert settings("--reasoning-budget", "9").reasoning_budget == 9
    assert settings("-rea", "on", "--reasoning-effort", "low").template_options == {
        "enable_thinking": True,
        "reasoning_effort": "low",
    }
    assert settings("--cors-origins", "https://a, https://b").cors_origins == ("https://a", "https://b")
    assert settings("--log-format", "json").log_json
    assert settings("-np", "-1").parallel == 4
    assert (settings("-cram", "0").cache_bytes, settings("-cram", "0").cache_prompt) == (None, False)
    assert (settings("-cram", "-1").cache_bytes, settings("-cram", "3").cache_bytes) == (None, 3 * 2**20)
    assert not settings("--log-disable").access_log
    assert settings("--chat-template", "chatml").chat_template.startswith("{%- for message")
    for option in (["--chat-template", "vicuna"], ["--chat-template", "{% for"]):
        with pytest.raises(ikq.RefusedError, match="--chat-template"):
            settings(*option)
    file.write_bytes(b"\xff")
    with pytest.raises(ikq.FormatError, match="UTF-8"):
        settings("--chat-template-file", str(file))


def test_a_name_for_the_models_of_a_folder(capsys, tmp_path):
    assert main(["serve", "--models-dir", str(tmp_path), "--alias", "x"]) == 2
    assert "--alias" in capsys.readouterr().err


def test_schemas_and_grammars_of_run_that_are_wrong(capsys):
    for option in (
        ["--json-schema", "{"],
        ["--json-schema", '{"not": {}}'],
        ["--grammar", "root ::= x"],
        ["--regex", "("],
    ):
        assert main(["run", "-m", str(TINY), "-p", "x", "-n", "1", *option]) == 2, option
        assert "Traceback" not in capsys.readouterr().err


def test_another_template_and_what_holds_where_requests_say_nothing():
    options = {"chat_template": TEMPLATE, "max_tokens": 5, "api_prefix": "/llm", "slots": False}
    with serving(**options) as server:
        assert server.url.endswith("/llm")
        _, told = server.ask(
            "/llm/apply-template", {"messages": [USER], "tools": [{"function": {"name": "f"}}]}
        )
        assert "# Tools" in told["prompt"]
        _, reply = server.ask("/llm/v1/chat/completions", {"messages": [USER], "ignore_eos": True})
        assert reply["usage"]["completion_tokens"] == 5
        _, reply = server.ask("/llm/completion", {"prompt": "import", "n_predict": 3, "ignore_eos": True})
        assert reply["tokens_predicted"] == 3
        assert server.ask("/llm/slots")[0] == 501
        assert server.ask("/health")[0] == 404
        assert server.ask("/llm/v1/nothing")[1]["error"]["code"] == "not_found"
        _, page = server.ask("/llm/")
        assert 'src="page/main.js"' in page
        assert server.ask("/llm/page/main.js")[0] == 200
        _, described = server.ask("/llm/openapi.json")
        assert "/llm/v1/chat/completions" in described["paths"]


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_end_where_their_budget_does(stream):
    """A model of random weights thinks for ever."""
    opens = TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    with serving(chat_template=opens, load=TOOLS) as server:

        def chat(**body):
            body = {"messages": [USER], "seed": 3, "stream": stream, **body}
            status, reply = server.ask("/v1/chat/completions", body)
            assert status == 200, reply
            if not stream:
                message = reply["choices"][0]["message"]
                return message.get("reasoning_content", ""), message["content"] or ""
            deltas = [c["delta"] for p in pieces(reply)[:-1] for c in p["choices"]]
            return tuple("".join(d.get(k) or "" for d in deltas) for k in ("reasoning_content", "content"))

        free, _ = chat(max_tokens=60, ignore_eos=True)
        assert free
        thoughts, content = chat(max_tokens=60, ignore_eos=True, reasoning_budget_tokens=10)
        assert free.startswith(thoughts.rstrip())
        assert content
        assert "think>" not in thoughts + content
        _, answer = chat(
            reasoning_budget_tokens=8,
            max_tokens=200,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
        assert json.loads(answer)["n"] <= 9
        thoughts, content = chat(max_tokens=30, ignore_eos=True, reasoning_budget_tokens=0)
        assert not thoughts
        assert content
