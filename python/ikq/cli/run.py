"""`ikq run`: continue a prompt, or chat."""

from __future__ import annotations

import argparse
import codecs
import json
import re
import sys
import time
from typing import Any, cast

import ikq
from ikq.cli.grammar_options import add_grammar, grammar_options
from ikq.cli.model_options import (
    add_ignored,
    add_loading,
    fitted,
    load_options,
    print_assumed,
    print_ignored,
    print_shortages,
    print_unused_rules,
)
from ikq.cli.notes import note_on_stderr
from ikq.cli.numbers import whole_number
from ikq.cli.placement_table import placement_lines
from ikq.cli.progress import prompt_progress, waiting
from ikq.cli.prompt_cache import PromptCache, add_prompt_cache
from ikq.cli.sampling_options import add_predict, add_sampling, sampling_options
from ikq.cli.speculation_options import (
    add_speculation,
    check_files,
    speculation_options,
)
from ikq.cli.timings import print_timings
from ikq.files.text_files import decode_literally, read_literally
from ikq.grammar.keywords import GrammarKeywords, constraint_of
from ikq.inference.model import PLANNED, LoadingPlan
from ikq.speculation import Speculation
from ikq.text.generate import Stats

NAME = "run"
ALIASES = ("cli",)
HELP = "continue a prompt, or chat with a model"
EXAMPLES = (
    "ikq run -m model.gguf",
    "ikq run -m model.gguf -p 'Once upon a time' -n 100",
)

INTERRUPTED = 130

_ESCAPE = re.compile(r"""\\(n|r|t|'|"|\\|x[0-9a-fA-F]{2})""")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options; names are those that users of llama-cli know."""
    parser.usage = "ikq run -m FILE.gguf [-p TEXT | -f FILE | -cnv] [options]"
    parser.description = (
        "Continues a prompt (-p, -f or standard input), or chats (-cnv; also what happens in a terminal "
        "without a prompt). Ctrl-C ends an answer, at the chat's prompt the program."
    )
    parser.epilog = "Exit codes: 0 done, 1 error, 2 refused or wrong usage, 130 interrupted."
    parser.add_argument("-m", "--model", required=True, metavar="FILE.gguf", help="the model")
    text = parser.add_argument_group("text")
    prompt = text.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt; in a chat the first message")
    prompt.add_argument("-f", "--file", metavar="FILE", help="a file with the prompt, taken literally")
    add_predict(text)
    text.add_argument(
        "-e", "--escape", action="store_true", default=True, help="\\n, \\t, ... in -p and the like (default)"
    )
    text.add_argument("--no-escape", dest="escape", action="store_false", help="take them literally")
    text.add_argument(
        "-r",
        "--reverse-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="stop there; may be repeated",
    )
    text.add_argument("--ignore-eos", action="store_true", help="go on when the model wants to end")
    text.add_argument("--no-display-prompt", action="store_true", help="print only what is generated")
    text.add_argument("-sp", "--special", action="store_true", help="show control tokens")
    text.add_argument(
        "--context-shift", action="store_true", help="forget the middle when the context is full, and go on"
    )
    text.add_argument(
        "--no-context-shift", dest="context_shift", action="store_false", help=argparse.SUPPRESS
    )
    text.add_argument(
        "--keep", type=whole_number, default=0, metavar="N", help="tokens that shifts keep; -1: the prompt"
    )
    add_prompt_cache(text)
    text.add_argument("--no-perf", action="store_true", help="no lines about time at the end")
    text.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be computed where and the memory; load nothing",
    )
    chat = parser.add_argument_group("chat")
    chat.add_argument(
        "-cnv", "--conversation", action="store_true", default=None, help="chat, with the model's template"
    )
    chat.add_argument(
        "-no-cnv", "--no-conversation", dest="conversation", action="store_false", help="never chat"
    )
    chat.add_argument("-st", "--single-turn", action="store_true", help="leave after the first answer")
    chat.add_argument("-sys", "--system", "--system-prompt", metavar="TEXT", help="the system message")
    chat.add_argument("--in-prefix", default="", metavar="TEXT", help="put before each message")
    chat.add_argument("--in-suffix", default="", metavar="TEXT", help="put after each message")
    chat.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="variables of the template, for example '{\"enable_thinking\": false}'",
    )
    add_loading(parser)
    add_sampling(parser)
    add_grammar(parser)
    add_speculation(parser)
    add_ignored(parser)
    parser.add_argument("-co", "--color", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--log-disable", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    if args.predict < -2:
        raise ikq.RefusedError(f"-n {args.predict}: expected 0 or more, or -1 for no limit")
    sampling = sampling_options(args)
    options: dict[str, Any] = {
        "sampling": sampling,
        "max_tokens": None if args.predict < 0 else args.predict,
        "stop": [_unescape(text, args) for text in args.reverse_prompt],
        "special": args.special,
        "ignore_eos": args.ignore_eos,
        "context_shift": args.context_shift,
        "n_keep": args.keep,
        "progress": prompt_progress,
        "draft_model": args.draft_model,
        **speculation_options(args),
        **grammar_options(args),
    }
    speculation = Speculation(draft_model=args.draft_model, **speculation_options(args))
    print_ignored(args)
    if args.dry_run:
        return _dry_run(args)
    is_chat = _is_chat(args)
    prompt = None if is_chat else _prompt(args)
    start = time.perf_counter()
    loading = load_options(args)
    with waiting(f"loading {args.model} ..."):
        # errors of the tokenizer and the grammar come before the weights, which may take long
        with ikq.GGUFReader(args.model) as reader:
            tokenizer = ikq.Tokenizer.from_reader(reader)
            try:
                constraint_of(tokenizer, cast("GrammarKeywords", grammar_options(args)))
            except ikq.GrammarError as error:
                raise ikq.RefusedError(str(error)) from None
            check_files(args, reader)
            print_unused_rules(args, reader.tensors)
        model = ikq.Model.load(args.model, **fitted(args.model, loading))
        speculation.text(model)  # loads what drafts
    with model:
        model.tokenizer = tokenizer
        cache = PromptCache(model, args)
        options["sequence"] = cache.sequence
        load_seconds = time.perf_counter() - start
        stats = Stats()
        start = time.perf_counter()
        try:
            if prompt is None:
                from ikq.cli.conversation import Conversation

                conversation = Conversation(
                    model,
                    options,
                    stats,
                    cache,
                    system=None if args.system is None else _unescape(args.system, args),
                    prefix=_unescape(args.in_prefix, args),
                    suffix=_unescape(args.in_suffix, args),
                    template_options=args.chat_template_kwargs,
                )
                first = _prompt(args) if args.prompt is not None or args.file is not None else None
                return conversation.run(first, single_turn=args.single_turn)
            _complete(model, prompt, options, stats, cache, shows_prompt=not args.no_display_prompt)
            return 0
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            cache.finish()
            if not args.no_perf and stats.n_prompt + stats.n_reused:
                print_timings(load_seconds, stats, time.perf_counter() - start)


def _dry_run(args: argparse.Namespace) -> int:
    """Shows the placement and the memory."""
    options = fitted(args.model, load_options(args))
    plan = ikq.Model.plan(args.model, **{k: options[k] for k in PLANNED if k in options})
    if args.override_tensor:
        with ikq.GGUFReader(args.model) as reader:
            print_unused_rules(args, reader.tensors)
    print_assumed(plan)
    print_shortages(plan)
    _print_plan(plan)
    for name, drafting in (("head for further tokens", plan.mtp), ("draft model", plan.draft_model)):
        if drafting is not None:
            print(f"{name}:")
            _print_plan(drafting)
    return 0


def _print_plan(plan: LoadingPlan) -> None:
    print("\n".join(placement_lines(plan.placement)))
    weights = sum(plan.weights.values())
    print(f"weights: {weights / 2**30:.3f} GiB ({weights} bytes)")
    print(f"cache: {plan.cache / 2**30:.3f} GiB ({plan.cache} bytes) for a text of {plan.n_ctx} tokens")
    for device, n in plan.buffers.items():
        print(f"buffers of a step on {device}: {n / 2**30:.3f} GiB ({n} bytes)")


def _is_chat(args: argparse.Namespace) -> bool:
    if args.conversation is not None:
        return bool(args.conversation)
    return args.prompt is None and args.file is None and sys.stdin.isatty()


def _prompt(args: argparse.Namespace) -> str:
    """The prompt from the option, the file or standard input.

    Raises:
        RefusedError: it is empty.
        FormatError: it is not UTF-8.
        OSError: the file cannot be read.
    """
    if args.prompt is not None:
        text, where = _unescape(args.prompt, args), "-p"
    elif args.file is not None and args.file != "-":
        text, where = read_literally(args.file, note_on_stderr), args.file
    elif sys.stdin.isatty():
        raise ikq.RefusedError(
            "there is no prompt: give one with -p, -f or standard input, or chat with -cnv"
        )
    else:
        where = "standard input"
        text = decode_literally(sys.stdin.buffer.read(), where, note_on_stderr)
    if not text:
        raise ikq.RefusedError(f"the prompt ({where}) is empty")
    return text


def _complete(
    model: ikq.Model,
    prompt: str,
    options: dict[str, Any],
    stats: Stats,
    cache: PromptCache,
    *,
    shows_prompt: bool,
) -> None:
    """Prints the prompt and what follows it."""
    generation = model.generate(prompt, **options)
    try:
        first = next(generation, None)
        cache.prompt_done(generation)
        print(prompt if shows_prompt else "", end="" if first is None else first.text, flush=True)
        for piece in generation:
            print(piece.text, end="", flush=True)
    finally:
        print(flush=True)
        stats.add(generation.stats)
    if generation.reason == "context":
        print(
            f"note: the context of {model.n_ctx} tokens is full; -c makes it larger, --context-shift goes on",
            file=sys.stderr,
        )


def _unescape(text: str, args: argparse.Namespace) -> str:
    if not args.escape:
        return text
    return _ESCAPE.sub(lambda found: codecs.decode(found.group(), "unicode_escape"), text)


def json_object(text: str) -> dict[str, Any]:
    """The JSON object of an option."""
    try:
        value = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {e}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a JSON object")
    return value
