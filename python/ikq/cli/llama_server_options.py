"""Flags of llama-server that `ikq serve` does without: accepted and explained, or refused with a reason."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any

from ikq.cli.model_options import Ignore

__all__ = ["add_llama_server"]

_ALWAYS = "it is so in any case"
_THREAD = "requests are taken by one thread, which never waits for the model"
_PAGES = "texts share pages of one cache; --cache-ram bounds it"
_JINJA = "chat templates are always run as Jinja templates"
_BATCHES = "requests that come together are always computed together"
_FULL = "a text ends where the context is full"
_LINES = "the log is one line for each request; --log-json, --log-file and --no-log change that"
_PULSE = "streams that stay silent get a comment every 15 seconds"
_LOADED = "models of a folder are loaded when they are asked for, and checked before"
_PLACES = "threads run where the system puts them; taskset and nice change that"
_DRAFTS = "a draft model has the model's threads, context and types of the cache; -ngld and -devd place it"
_TREES = "drafts are no trees"
_FITS = "--fit and --fit-margin say what goes to a GPU; contexts are not made smaller"
_READS = "--mmap and --no-mmap say how files are read"
_WEIGHTS = "weights are re-arranged while loading in any case"
_SAMPLERS = "samplers run on the CPU"
_PAGE = "settings of the page are kept by the browser"
_TAGS = "models have names, and no tags"

# Flags that say what is so, or mean nothing here: how many values follow, and why they have no effect.
_EXPLAINED: tuple[tuple[tuple[str, ...], str | int | None, str], ...] = (
    (("-cb", "--cont-batching", "--metrics", "--slots", "--props", "--embedding", "--embeddings"), 0, ""),
    (("--ui", "--webui", "--jinja", "--prefill-assistant", "--cache-prompt", "--escape", "-e"), 0, ""),
    (("--no-jinja",), 0, _JINJA),
    (("-nocb", "--no-cont-batching"), 0, _BATCHES),
    (("--threads-http",), None, _THREAD),
    (("-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified"), 0, _PAGES),
    (("--cache-idle-slots", "--no-cache-idle-slots"), 0, _PAGES),
    (("--cache-reuse", "-sps", "--slot-prompt-similarity", "-dt", "--defrag-thold"), None, _PAGES),
    (("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints", "-cms", "--checkpoint-min-step"), None, _PAGES),
    (("--no-context-shift", "--warmup", "--models-autoload", "--log-enable", "--no-escape"), 0, _ALWAYS),
    (("--context-shift",), 0, _FULL),
    (("--keep",), None, _FULL),
    (("-v", "--verbose", "--log-verbose", "--log-prefix", "--no-log-prefix"), 0, _LINES),
    (
        ("--log-timestamps", "--no-log-timestamps", "--log-new", "--log-append", "--no-perf", "--perf"),
        0,
        _LINES,
    ),
    (("-lv", "--verbosity", "--log-verbosity"), None, _LINES),
    (("--log-colors",), "?", _LINES),
    (("--sse-ping-interval",), None, _PULSE),
    (("--check-tensors",), 0, _LOADED),
    (("-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict", "--prio", "--poll"), 1, _PLACES),
    (("-Cb", "--cpu-mask-batch", "-Crb", "--cpu-range-batch", "--cpu-strict-batch"), 1, _PLACES),
    (("--prio-batch", "--poll-batch"), 1, _PLACES),
    (("-td", "--threads-draft", "-tbd", "--threads-batch-draft", "-cd", "--ctx-size-draft"), 1, _DRAFTS),
    (("-ctkd", "--cache-type-k-draft", "-ctvd", "--cache-type-v-draft"), 1, _DRAFTS),
    (("-otd", "--override-tensor-draft", "-ncmoed", "--n-cpu-moe-draft"), 1, _DRAFTS),
    (("-cmoed", "--cpu-moe-draft"), 0, _DRAFTS),
    (("--draft-p-split",), 1, _TREES),
    (("-fit",), "?", _FITS),
    (("-fitt", "--fit-target", "-fitc", "--fit-ctx"), 1, _FITS),
    (("-dio", "--direct-io", "-ndio", "--no-direct-io"), 0, _READS),
    (("-nr", "--no-repack", "--repack", "--no-host"), 0, _WEIGHTS),
    (("--op-offload", "--no-op-offload", "-bs", "--backend-sampling"), 0, _SAMPLERS),
    (("--offline", "--no-mmproj", "--no-mmproj-auto", "--no-skip-chat-parsing"), 0, _ALWAYS),
    (("--mmproj-auto", "--mmproj-offload", "--no-mmproj-offload"), 0, "models read text only here"),
    (("--verbose-prompt",), 0, _LINES),
    (("--webui-config", "--webui-config-file", "--ui-config", "--ui-config-file"), 1, _PAGE),
    (("--tags",), 1, _TAGS),
)

_TEXT = "models read text only here"
_PLAIN = "weights are used as the file has them"
_LOCAL = "nothing is downloaded here; give a file with -m"
_STARTS = "say it in each request"
_POSITIONS = "positions are as the file says; --override-kv changes what it says"
_SPECULATION = "-md, --lookup or --mtp says what drafts"

# Flags that ask for what is not offered: a server that starts without it would not be what was wanted.
_REFUSED: tuple[tuple[tuple[str, ...], str | int | None, str], ...] = (
    (("--lora-base", "--control-vector", "--control-vector-scaled"), "+", _PLAIN),
    (("--control-vector-layer-range",), "*", _PLAIN),
    (("-mm", "--mmproj", "-mmu", "--mmproj-url", "--image-min-tokens", "--image-max-tokens"), 1, _TEXT),
    (("--media-path", "-mv", "--model-vocoder"), 1, _TEXT),
    (
        ("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url", "-dr", "--docker-repo"),
        1,
        _LOCAL,
    ),
    (("-hfd", "-hfrd", "--hf-repo-draft"), 1, _LOCAL),
    (("--rerank", "--reranking"), 0, "there is no path that ranks documents"),
    (("--path",), 1, "the page is a part of ikq; --no-webui leaves it out"),
    (("--tools", "--mcp-servers-config", "--mcp-servers-json"), 1, "the server runs no tools; clients do"),
    (("-ag", "--agent", "--ui-mcp-proxy", "--webui-mcp-proxy"), 0, "the server runs no tools; clients do"),
    (("--system-prompt-file", "-spf"), 1, "a system message is a part of each conversation"),
    (("--grammar", "--grammar-file", "-j", "--json-schema", "-jf", "--json-schema-file"), 1, _STARTS),
    (("-r", "--reverse-prompt"), 1, f"{_STARTS}, as `stop`"),
    (("--ignore-eos", "-sp", "--special"), 0, _STARTS),
    (("--models-preset",), 1, "all models of --models-dir have the options of the command line"),
    (("--no-models-autoload",), 0, _LOADED),
    (("--sleep-idle-seconds",), 1, "POST /models/unload lets a model go"),
    (("--embd-normalize",), 1, "embeddings have length 1"),
    (("--reasoning-budget-message",), 1, "there is no message at the end of thoughts"),
    (("--cfg-scale", "--cfg-negative-prompt"), 1, "guidance by a second prompt is not offered"),
    (("-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"), 1, "self-extend is not offered"),
    (("--spm-infill",), 0, "there is no path for text in the middle"),
    (("--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"), 1, _POSITIONS),
    (("--yarn-orig-ctx", "--yarn-ext-factor", "--yarn-attn-factor"), 1, _POSITIONS),
    (("--yarn-beta-slow", "--yarn-beta-fast"), 1, _POSITIONS),
    (("--spec-type", "--spec-ngram-size-n", "--spec-ngram-size-m", "--spec-ngram-min-hits"), 1, _SPECULATION),
    (("-lcs", "--lookup-cache-static", "-lcd", "--lookup-cache-dynamic"), 1, _SPECULATION),
    (("--spec-default",), 0, _SPECULATION),
    (("--spec-replace",), 2, "a draft model needs the model's vocabulary"),
    (("--skip-chat-parsing",), 0, "send `reasoning_format: none`, and no tools"),
    (("--reuse-port",), 0, "the port belongs to one server"),
    (("-hft", "--hf-token"), 1, _LOCAL),
    (("--tts-use-guide-tokens",), 0, _TEXT),
    (("--embd-gemma-default", "--gpt-oss-20b-default", "--gpt-oss-120b-default"), 0, _LOCAL),
    (("--fim-qwen-1.5b-default", "--fim-qwen-3b-default", "--fim-qwen-7b-default"), 0, _LOCAL),
    (("--fim-qwen-7b-spec", "--fim-qwen-14b-spec", "--fim-qwen-30b-default"), 0, _LOCAL),
    (("--vision-gemma-4b-default", "--vision-gemma-12b-default"), 0, _LOCAL),
)


class _Refuse(argparse.Action):
    """Ends the program with the reason why a flag is not taken."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} is not offered: {self.const}")


def add_llama_server(parser: argparse.ArgumentParser) -> None:
    """Accepts what has no effect, which `print_ignored` tells, and refuses the rest."""
    for flags, n_values, why in _EXPLAINED:
        for flag in flags:
            if why:
                _add(parser, flag, nargs=n_values, action=Ignore, const=why, dest="ignored")
            else:
                _add(parser, flag, action="store_true", dest="_always")
    for flags, n_values, why in _REFUSED:
        for flag in flags:
            _add(parser, flag, nargs=n_values, action=_Refuse, const=why, dest="refused")


def _add(parser: argparse.ArgumentParser, flag: str, **options: Any) -> None:  # noqa: ANN401
    """Adds a flag that does not show in the help, unless the verb has it."""
    with contextlib.suppress(argparse.ArgumentError):
        parser.add_argument(flag, help=argparse.SUPPRESS, **options)
