"""Conversations as prompts: `ChatTemplate`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ikq.errors import FormatError
from ikq.files.gguf import GGUFReader
from ikq.tokenizer import Tokenizer
from ikq.tokenizer.vocab import read_text

__all__ = ["CHATML", "ChatTemplate"]

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
        from ikq.text.template_sandbox import Template  # with Jinja, which most programs do without

        self._now = now = now or datetime.datetime.now
        self._template = Template(source, now)
        self._tool_template = self._template if tool_source is None else Template(tool_source, now)

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
            FormatError: the template refuses the conversation, or fails, and the message is the template's;
                or tools are nothing that JSON has.
        """
        template = self._tool_template if tools else self._template
        functions = [tool.get("function", tool) for tool in tools or () if isinstance(tool, Mapping)]
        variables = {
            **self._tokens,
            # what FireFunction's templates want
            "functions": _json(functions),
            "datetime": self._now().strftime("%Y-%m-%d %H:%M:%S"),
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt,
            **extra,
        }
        return template.render(variables)


def _json(functions: Sequence[object]) -> str:
    try:
        return json.dumps(functions, indent=4, ensure_ascii=False)
    except (RecursionError, TypeError, ValueError) as e:
        raise FormatError(f"the tools are nothing that JSON has: {e}") from None
