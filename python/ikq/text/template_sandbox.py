"""The sandbox that chat templates run in.

They are programs in Jinja's language that come with a model. What they expect beyond it is what the
models' makers have in theirs: loops with `break`, `tojson` that escapes nothing for web pages and takes
what filters leave behind, `from_json`, `raise_exception`, `strftime_now`, `{% generation %}`, and lists of
their own that they may change.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from ikq.errors import FormatError

__all__ = ["Template"]


class _TemplateError(Exception):
    """What a template says is wrong with a conversation."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 wants a plain set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Template:
    """A compiled template."""

    def __init__(self, source: str, now: Callable[[], datetime.datetime]) -> None:
        """Compiles it.

        Args:
            source: The template.
            now: The clock that it may read.

        Raises:
            FormatError: it is not a template.
        """
        try:
            self._template = _environment(now).from_string(source)
        except Exception as e:  # text of others, that a compiler of others reads
            raise FormatError(f"the chat template cannot be read: {e or type(e).__name__}") from e

    def render(self, variables: Mapping[str, object]) -> str:
        """The text.

        Raises:
            FormatError: the template says that something is wrong, or fails.
        """
        try:
            return self._template.render({name: _given(value) for name, value in variables.items()})
        except _TemplateError as e:
            raise FormatError(str(e)) from None
        except Exception as e:  # a program of others may fail in any way
            raise FormatError(f"the chat template failed: {e or type(e).__name__}") from e


class _Given(list[object]):
    """A list that the template was given; it cannot be changed."""


def _given(value: object) -> object:
    """A value for a template: a copy, so that nothing of the caller's can be changed."""
    if isinstance(value, (list, tuple)):
        return _Given(map(_given, value))
    if isinstance(value, Mapping):
        return {name: _given(inner) for name, inner in value.items()}
    return value


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Templates may change nothing but the lists that they make themselves."""

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        """Whether a template may have the attribute."""
        if type(obj) is list and attr in ("append", "pop"):
            return True
        return super().is_safe_attribute(obj, attr, value)


def _environment(now: Callable[[], datetime.datetime]) -> jinja2.Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )

    def raise_exception(message: str) -> None:
        raise _TemplateError(message)

    def strftime_now(format: str) -> str:
        return now().strftime(format)

    # Jinja's own tojson escapes <, > and & for web pages
    environment.filters["tojson"] = _to_json
    environment.filters["from_json"] = environment.filters["fromjson"] = json.loads
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
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: object) -> list[object]:
    """What filters such as `map` leave behind, as a list."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")
