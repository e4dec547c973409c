"""Conversations as prompts: `ChatTemplate`; reasoning apart from the answer: `ReasoningSplitter`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from ikq.errors import FormatError
from ikq.gguf import GGUFReader
from ikq.tokenizer import Tokenizer
from ikq.tokenizer.vocab import read_text

__all__ = ["CHATML", "ChatTemplate", "Piece", "ReasoningSplitter"]

_KEY = "tokenizer.chat_template"

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""The template for models without one."""


class _TemplateError(Exception):
    """What a template says is wrong with a conversation."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 wants a plain set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    r"""A model's chat template. May be used from several threads.

    Templates are programs that come with the file; they run in a sandbox and see nothing but what they
    are given.

    Attributes:
        source: The template.
        is_fallback: The file had none, `CHATML` is used.

    Examples:
        >>> template = ChatTemplate(CHATML)
        >>> template.render([{"role": "user", "content": "Hello"}])
        '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n'
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        tool_source: str | None = None,
        now: Callable[[], datetime.datetime] | None = None,
    ) -> None:
        """Compiles a template.

        Args:
            source: The template in Jinja's language.
            bos_token: Text of BOS, for the template.
            eos_token: Text of EOS, for the template.
            tool_source: The template for conversations with tools, where there is one of its own.
            now: The clock that templates may read; the local time if not given.

        Raises:
            FormatError: it is not a template.
        """
        self.source = source
        self.is_fallback = False
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        environment = _environment(now or datetime.datetime.now)
        self._template = _compile(environment, source)
        self._tool_template = self._template if tool_source is None else _compile(environment, tool_source)

    @classmethod
    def from_reader(
        cls,
        reader: GGUFReader,
        tokenizer: Tokenizer,
        *,
        now: Callable[[], datetime.datetime] | None = None,
    ) -> ChatTemplate:
        """The template of a file, or `CHATML` if it has none.

        Args:
            reader: The file.
            tokenizer: Its tokenizer.
            now: As for `ChatTemplate`.

        Raises:
            FormatError: it is not a template.
        """
        source = read_text(reader.metadata, _KEY)
        template = cls(
            CHATML if source is None else source,
            bos_token=tokenizer.text_of(tokenizer.bos),
            eos_token=tokenizer.text_of(tokenizer.eos),
            tool_source=read_text(reader.metadata, f"{_KEY}.tool_use"),
            now=now,
        )
        template.is_fallback = source is None
        return template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: object,
    ) -> str:
        """The prompt of a conversation; encode it with `parse_special=True`.

        Args:
            messages: With `role` and `content`, and what else the template reads.
            tools: Descriptions of functions that the model may call.
            add_generation_prompt: End with what introduces the model's turn.
            **extra: Further variables of the template, such as `enable_thinking=False`.

        Raises:
            FormatError: the template refuses the conversation, or fails; the message is the template's.
        """
        template = self._tool_template if tools else self._template
        variables = {
            **self._tokens,
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt,
            **extra,
        }
        try:
            return template.render(variables)
        except _TemplateError as e:
            raise FormatError(str(e)) from None
        except Exception as e:  # a template is a program of others and may fail in any way
            raise FormatError(f"the chat template failed: {e or type(e).__name__}") from e


def _environment(now: Callable[[], datetime.datetime]) -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )

    def raise_exception(message: str) -> None:
        raise _TemplateError(message)

    def strftime_now(format: str) -> str:
        return now().strftime(format)

    # Jinja's own tojson escapes <, > and & for web pages
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _compile(environment: jinja2.Environment, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as e:
        raise FormatError(f"the chat template cannot be read: {e or type(e).__name__}") from e


class Piece(NamedTuple):
    """A piece of what a model wrote.

    Attributes:
        text: Not empty.
        reasoning: It belongs to the thoughts before the answer, or is a mark around them.
    """

    text: str
    reasoning: bool


class _Marks(NamedTuple):
    """How reasoning is marked.

    Attributes:
        open: Begins it.
        close: Ends it.
        anywhere: It may begin anywhere, not only at the start.
    """

    open: str
    close: str
    anywhere: bool = False


_MARKS = (
    _Marks("<think>", "</think>"),
    _Marks("<thinking>", "</thinking>"),
    _Marks("<thought>", "</thought>"),
    _Marks("<reasoning>", "</reasoning>"),
    _Marks("<seed:think>", "</seed:think>"),
    _Marks("[THINK]", "[/THINK]"),
    _Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    _Marks("<|channel>thought", "<channel|>"),
    # harmony: messages on several channels, of which one is the answer
    _Marks("<|channel|>analysis", "<|channel|>final<|message|>", anywhere=True),
    _Marks("<|channel|>commentary", "<|channel|>final<|message|>", anywhere=True),
    _Marks("<|channel|>final", "<|message|>", anywhere=True),
)


class ReasoningSplitter:
    """Tells reasoning from the answer, while the text comes in.

    The pieces together are the whole text, marks included. A mark may come in several parts; what may
    still become one is held back.

    Examples:
        >>> splitter = ReasoningSplitter()
        >>> [*splitter.push("<think>easy</th"), *splitter.push("ink>4"), *splitter.flush()]
        [Piece(text='<think>', reasoning=True), Piece(text='easy', reasoning=True), Piece(text='</think>', reasoning=True), Piece(text='4', reasoning=False)]
    """  # noqa: E501  # a doctest

    def __init__(self, prompt: str = "") -> None:
        """Begins an answer.

        Args:
            prompt: What came before it. Some templates open the reasoning there.
        """
        self._held = ""
        self._started = False
        self._inside = next((m for m in _MARKS if prompt.rstrip().endswith(m.open)), None)

    def push(self, text: str) -> list[Piece]:
        """Takes more text; returns the pieces that are certain by now."""
        self._held += text
        return self._pieces(final=False)

    def flush(self) -> list[Piece]:
        """The end of the text: what was held back."""
        return self._pieces(final=True)

    def _pieces(self, final: bool) -> list[Piece]:
        pieces = []
        while self._held:
            marks = self._expected()
            found = min(
                ((at, -len(mark), mark) for mark in marks if (at := self._held.find(mark)) >= 0), default=None
            )
            if found is not None and self._reachable(found[0]):
                at, _, mark = found
                pieces += self._piece(self._held[:at])
                pieces.append(Piece(mark, True))
                self._held = self._held[at + len(mark) :]
                self._enter(mark)
                continue
            keep = 0 if final else self._unfinished(marks)
            end = len(self._held) - keep
            pieces += self._piece(self._held[:end])
            self._held = self._held[end:]
            break
        return pieces

    def _expected(self) -> tuple[str, ...]:
        if self._inside is not None:
            return (self._inside.close,)
        return tuple(m.open for m in _MARKS if m.anywhere or not self._started)

    def _reachable(self, at: int) -> bool:
        """May a mark stand here? Those of most models only where nothing but white space came before."""
        return self._inside is not None or not self._held[:at].strip() or self._anywhere_at(at)

    def _anywhere_at(self, at: int) -> bool:
        return any(m.anywhere and self._held.startswith(m.open, at) for m in _MARKS)

    def _enter(self, mark: str) -> None:
        self._started = True
        if self._inside is not None:
            self._inside = None
        else:
            self._inside = next(m for m in _MARKS if m.open == mark)

    def _unfinished(self, marks: Iterable[str]) -> int:
        """Length of the end of the text that may become a mark."""
        longest = 0
        for mark in marks:
            for n in range(min(len(mark) - 1, len(self._held)), longest, -1):
                if mark.startswith(self._held[-n:]):
                    longest = n
                    break
        return longest

    def _piece(self, text: str) -> list[Piece]:
        if not text:
            return []
        if text.strip():
            self._started = True
        return [Piece(text, self._inside is not None)]
