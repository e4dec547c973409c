"""`ikq serve`: a server for the clients of OpenAI, Anthropic and llama-server."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import ikq
from ikq import cli
from ikq.cli.llama_server_options import add_llama_server
from ikq.cli.model_options import (
    add_ignored,
    add_loading,
    load_options,
    print_ignored,
    print_unused_rules,
)
from ikq.cli.numbers import number, whole_number
from ikq.cli.run import json_object
from ikq.cli.sampling_options import add_predict, add_sampling, sampling_options
from ikq.cli.speculation_options import add_speculation, check_files, speculation_options
from ikq.files.text_files import read_literally
from ikq.serve.settings import Settings
from ikq.speculation import Speculation
from ikq.text.chat import CHATML

NAME = "serve"
ALIASES = ("server",)
HELP = "serve a model to clients of OpenAI, Anthropic and llama-server"
EXAMPLES = (
    "ikq serve -m model.gguf",
    "ikq serve --models-dir models --parallel 8 --port 8080",
)

_D = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options; names are those that users of llama-server know."""
    parser.usage = "ikq serve (-m FILE.gguf | --models-dir FOLDER) [options]"
    parser.description = (
        "Serves a model over HTTP: OpenAI's chat completions, completions, embeddings and responses, "
        "Anthropic's messages, llama-server's paths, and a page to chat with at /. See docs/serve.md."
    )
    models = parser.add_argument_group("models").add_mutually_exclusive_group(required=True)
    models.add_argument("-m", "--model", metavar="FILE.gguf", help="the model")
    models.add_argument(
        "--models-dir", metavar="FOLDER", help="models of a folder, loaded when they are asked for"
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "-a", "--alias", metavar="NAME", help="what clients call the model of -m (its file's name)"
    )
    server.add_argument(
        "--models-max",
        type=whole_number,
        default=_D.models_max,
        metavar="N",
        help=f"most models that are loaded ({_D.models_max})",
    )
    _add_listening(server)
    _add_limits(server)
    _add_caches(server)
    _add_visible(server)
    _add_chat(parser)
    _add_defaults(parser)
    add_loading(parser)
    parser.add_argument(
        "--lora-init-without-apply",
        action="store_true",
        help="adapters begin with the scale 0: requests (lora) or POST /lora-adapters change it",
    )
    add_sampling(parser)
    add_speculation(parser)
    add_ignored(parser)
    add_llama_server(parser)


def _add_listening(server: argparse._ArgumentGroup) -> None:
    """Where the server listens, and for whom."""
    server.add_argument("--host", default=_D.host, metavar="ADDRESS", help=f"where to listen ({_D.host})")
    server.add_argument("--port", type=whole_number, default=_D.port, metavar="N", help=f"port ({_D.port})")
    server.add_argument(
        "--api-key", action="append", default=[], metavar="KEY,...", help="only for these keys"
    )
    server.add_argument("--api-key-file", metavar="FILE", help="... and those of a file, one in each line")
    server.add_argument("--ssl-cert-file", metavar="FILE", help="certificate, for HTTPS")
    server.add_argument("--ssl-key-file", metavar="FILE", help="its key")
    server.add_argument(
        "--api-prefix", default="", metavar="/PATH", help="what comes before all paths of the server"
    )
    server.add_argument(
        "--cors",
        "--cors-origins",
        action="append",
        default=[],
        metavar="ORIGIN,...",
        help="let pages of these origins ask; * for all; may be repeated",
    )


def _add_limits(server: argparse._ArgumentGroup) -> None:
    """How much it does at once, and for how long."""
    server.add_argument(
        "-np",
        "--parallel",
        type=whole_number,
        default=_D.parallel,
        metavar="N",
        help=f"most texts that are computed together ({_D.parallel})",
    )
    server.add_argument(
        "--queue",
        type=whole_number,
        default=_D.queue,
        metavar="N",
        help=f"most texts that wait; others are refused with status 429 ({_D.queue})",
    )
    server.add_argument(
        "-to",
        "--timeout",
        type=number,
        default=_D.timeout,
        metavar="SECONDS",
        help=f"most time of a request; 0: no limit ({_D.timeout:g})",
    )
    server.add_argument(
        "--grace",
        type=number,
        default=_D.grace,
        metavar="SECONDS",
        help=f"time that requests have to end when the server shuts down ({_D.grace:g})",
    )
    server.add_argument(
        "--max-body",
        type=whole_number,
        default=_D.max_body // 2**20,
        metavar="MIB",
        help=f"most MiB of a request ({_D.max_body // 2**20})",
    )


def _add_caches(server: argparse._ArgumentGroup) -> None:
    """What is kept of what was computed."""
    server.add_argument(
        "-cram",
        "--cache-ram",
        type=whole_number,
        metavar="MIB",
        help="memory for the caches of all texts, those that are kept for others included; 0: none are kept",
    )
    server.add_argument(
        "--prefix-cache", metavar="FOLDER", help="keep what was computed there when the server ends"
    )
    server.add_argument("--slot-save-path", metavar="FOLDER", help="folder of files of slots")


def _add_visible(server: argparse._ArgumentGroup) -> None:
    """What the server writes down and shows."""
    server.add_argument("--log-json", action="store_true", help="lines of the log as JSON")
    server.add_argument("--log-format", choices=("text", "json"), help=argparse.SUPPRESS)
    server.add_argument("--log-file", metavar="FILE", help="append them to a file, not to standard error")
    server.add_argument("--no-log", "--log-disable", action="store_true", help="no lines for requests")
    server.add_argument("--no-webui", "--no-ui", action="store_true", help="no page at /")
    server.add_argument("--no-slots", action="store_true", help="do not tell about slots at /slots")


def _add_chat(parser: argparse.ArgumentParser) -> None:
    """Options of chats."""
    chat = parser.add_argument_group("chats")
    template = chat.add_mutually_exclusive_group()
    template.add_argument(
        "--chat-template", metavar="TEXT", help="the chat template, instead of the file's; or `chatml`"
    )
    template.add_argument("--chat-template-file", metavar="FILE", help="the same from a file")
    chat.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="variables of the template, for example '{\"enable_thinking\": false}'",
    )
    chat.add_argument(
        "--reasoning-format",
        choices=("auto", "deepseek", "none"),
        default="auto",
        help="none: thoughts stay in the content; otherwise they are apart from it (auto)",
    )
    chat.add_argument(
        "-rea", "--reasoning", choices=("on", "off", "auto"), default="auto", help="enable_thinking (auto)"
    )
    chat.add_argument("--reasoning-effort", metavar="LEVEL", help="reasoning_effort of the template")
    chat.add_argument(
        "--reasoning-budget",
        type=whole_number,
        default=-1,
        metavar="N",
        help="most tokens of thoughts; 0: none, -1: no limit (-1)",
    )
    chat.add_argument(
        "--no-prefill-assistant",
        action="store_true",
        help="a last message of the assistant is over, and not continued",
    )


def _add_defaults(parser: argparse.ArgumentParser) -> None:
    """Options that hold where a request does not say otherwise."""
    defaults = parser.add_argument_group("where a request does not say otherwise")
    add_predict(defaults)
    defaults.add_argument(
        "--no-cache-prompt", action="store_true", help="compute all of it, and keep nothing of it"
    )
    defaults.add_argument(
        "--pooling",
        choices=("mean", "cls", "last"),
        help="how states of tokens become an embedding (as the model's file says, or mean)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    settings = _settings(args)
    speculation = Speculation(draft_model=args.draft_model, **speculation_options(args))
    options = load_options(args) | {"fit_sequences": settings.parallel}
    if args.lora_init_without_apply:
        options["lora"] = tuple(replace(adapter, scale=0.0) for adapter in options["lora"])
    print_ignored(args)
    if args.model is not None:
        with ikq.GGUFReader(args.model) as reader:
            check_files(args, reader)
            print_unused_rules(args, reader.tensors)
    alias = _alias(args)
    _start_log(args.log_file)
    with _ending_at_once():
        server = ikq.Server(
            args.model or args.models_dir,
            settings,
            name=alias,
            load_options=options,
            speculation=speculation,
        )
        server.run()
    return 0


@contextlib.contextmanager
def _ending_at_once() -> Iterator[None]:
    """Ctrl-C ends the process where the server does not take it: while it loads, and when it has ended.

    Python's own way shows tracebacks to those who press it twice. An error gives that back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        # files are written whole or not at all
        os.write(2, b"error: interrupted\n")
        os._exit(cli.INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGINT, before)
        raise


def _settings(args: argparse.Namespace) -> Settings:
    """What the command line says about the server.

    Raises:
        RefusedError: a value is out of range.
        OSError: the file of keys cannot be read.
    """
    keys = [key for given in args.api_key for key in given.split(",") if key]
    if args.api_key and not keys:
        raise ikq.RefusedError("--api-key: there is no key in it; without the option anybody may ask")
    if args.api_key_file is not None:
        from ikq.serve.security import read_keys

        keys += read_keys(Path(args.api_key_file))
        if not keys:
            raise ikq.RefusedError(f"{args.api_key_file}: there is no key in it")
    given: dict[str, Any] = {
        "host": args.host,
        "port": args.port,
        "api_keys": tuple(keys),
        "cors_origins": tuple(o.strip() for given in args.cors for o in given.split(",") if o.strip()),
        "ssl_certfile": _path(args.ssl_cert_file),
        "ssl_keyfile": _path(args.ssl_key_file),
        # llama-server's word for its default
        "parallel": _D.parallel if args.parallel == -1 else args.parallel,
        "queue": args.queue,
        "timeout": args.timeout or None,
        "grace": args.grace,
        "max_body": args.max_body * 2**20,
        "cache_bytes": args.cache_ram * 2**20 if (args.cache_ram or 0) > 0 else None,
        "prefix_dir": _path(args.prefix_cache),
        "slot_dir": _path(args.slot_save_path),
        "models_max": args.models_max,
        "access_log": not args.no_log,
        "log_json": args.log_json or args.log_format == "json",
        "page": not args.no_webui,
        "slots": not args.no_slots,
        "api_prefix": args.api_prefix,
        "sampling": sampling_options(args),
        "max_tokens": None if args.predict in (-1, -2) else args.predict,
        "cache_prompt": not args.no_cache_prompt and args.cache_ram != 0,
        "pooling": args.pooling,
        "chat_template": _template(args),
        "template_options": _template_options(args),
        "reasoning_format": "none" if args.reasoning_format == "none" else "auto",
        "reasoning_budget": None if args.reasoning_budget < 0 else args.reasoning_budget,
        "prefill_assistant": not args.no_prefill_assistant,
    }
    try:
        return Settings(**given)
    except ValueError as error:
        raise ikq.RefusedError(str(error)) from None


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _alias(args: argparse.Namespace) -> str | None:
    """The name of the model; it answers to all others as well.

    Raises:
        RefusedError: there are several models, or it is no name.
    """
    if args.alias is None:
        return None
    if args.model is None:
        raise ikq.RefusedError(
            "--alias is the name of one model (-m); those of --models-dir have their files'"
        )
    name: str = args.alias.split(",")[0].strip()
    if not name:
        raise ikq.RefusedError("--alias: there is no name in it")
    return name


def _template(args: argparse.Namespace) -> str | None:
    """The chat template that is to be used instead of the file's.

    Raises:
        RefusedError: it is the name of one, or no template.
        FormatError: the file is not UTF-8.
        OSError: the file cannot be read.
    """
    text: str | None = args.chat_template
    if args.chat_template_file is not None:
        text = read_literally(args.chat_template_file).removeprefix("\ufeff")
    elif text == "chatml":
        return CHATML
    elif text is not None and "{" not in text:
        raise ikq.RefusedError(
            f"--chat-template {text[:40]}: this name is not known; give the template itself, or its file "
            "(--chat-template-file)"
        )
    if text is not None:
        try:
            ikq.ChatTemplate(text)
        except ikq.FormatError as error:
            option = "--chat-template" if args.chat_template_file is None else args.chat_template_file
            raise ikq.RefusedError(f"{option}: {error}") from None
    return text


def _template_options(args: argparse.Namespace) -> dict[str, Any]:
    """Variables of chat templates."""
    options: dict[str, Any] = {}
    if args.reasoning != "auto":
        options["enable_thinking"] = args.reasoning == "on"
    if args.reasoning_budget == 0:
        options["enable_thinking"] = False
    if args.reasoning_effort not in (None, "default"):
        options["reasoning_effort"] = args.reasoning_effort
    return {**options, **args.chat_template_kwargs}


def _start_log(file: str | None) -> None:
    """Shows the server's lines on standard error, or appends them to a file.

    Raises:
        OSError: the file cannot be written.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if file is not None:
        handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("ikq.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("ikq.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
