"""The forms of replies that models are taught: `ReplyForm`, `form_of`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ikq.errors import FormatError, GrammarError
from ikq.text.chat import ChatTemplate
from ikq.text.tools.functions import function_of
from ikq.text.tools.parser import ReplyParser, new_call_id
from ikq.text.tools.spelling import (
    Harmony,
    JsonCalls,
    JsonReply,
    NamedCalls,
    ObjectCalls,
    Spelling,
    TaggedCalls,
)
from ikq.text.tools.writing import written

if TYPE_CHECKING:
    from ikq.grammar import Constraint
    from ikq.tokenizer import Tokenizer

__all__ = ["FORMS", "Choice", "ReplyForm", "form_of"]

Choice: TypeAlias = Literal["auto", "none", "required"]
"""Whether tools are called: as the model likes, not at all, or at least one is."""


@dataclass(frozen=True, kw_only=True)
class ReplyForm:
    """How a model writes its replies.

    Attributes:
        name: What the form is called here.
        spelling: How it writes calls.
        signs: Texts that a template of such a model has, all of them.
        reasoning: Marks around reasoning, if the model writes any.
        dropped: Marks in a reply that are no part of it.
        tokenizer: The model's, which knows what marks are tokens of their own.
    """

    name: str
    spelling: Spelling
    signs: tuple[str, ...] = ()
    reasoning: tuple[str, str] | None = None
    dropped: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None

    def parser(
        self,
        prompt: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        separates_reasoning: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> ReplyParser:
        """What reads a reply. Control tokens have to be in its text (`special=True`).

        Args:
            prompt: The prompt that it continues.
            tools: Functions that may be called, in OpenAI's form; none: calls are content.
            separates_reasoning: Otherwise reasoning is content, marks and all.
            new_id: Makes names for calls that the model gives none.
        """
        return ReplyParser(
            self.spelling,
            tools,
            prompt=prompt,
            separates_reasoning=separates_reasoning,
            dropped=self.dropped,
            new_id=new_id,
        )

    def grammar(
        self,
        tools: Sequence[Mapping[str, Any]],
        choice: Choice = "auto",
        *,
        name: str | None = None,
        parallel: bool = True,
        json_schema: Mapping[str, Any] | bool | None = None,
        loose: bool = False,
    ) -> str | None:
        """A grammar of calls in Lark's notation, for `compile_constraint`; `None`: nothing is constrained.

        Args:
            tools: Functions that may be called, in OpenAI's form.
            choice: With `auto` it begins at the trigger (`constraint` waits for that), with `required` it is
                the reply behind the reasoning.
            name: The only one that may be called, once.
            parallel: Several calls may be in one reply.
            json_schema: What an answer without calls must be, if that is not free either; for `auto`.
            loose: Arguments are free.

        Raises:
            GrammarError: the schema of a strict function cannot be enforced, or there is no such function.
        """
        if choice == "none" or not tools:
            return None
        from ikq.grammar.schema import prepared
        from ikq.text.tools.grammars import calls_grammar

        enforced = choice == "required"
        if json_schema is None and isinstance(self.spelling, JsonReply):
            json_schema = {"type": "string"}
        answer = None if enforced or json_schema is None else prepared(json_schema)
        return calls_grammar(
            self, tools, enforced=enforced, name=name, parallel=parallel, answer=answer, loose=loose
        )

    def constraint(
        self,
        tools: Sequence[Mapping[str, Any]],
        choice: Choice = "auto",
        *,
        name: str | None = None,
        parallel: bool = True,
        json_schema: Mapping[str, Any] | bool | None = None,
        prompt: str = "",
    ) -> Constraint | None:
        """The same as a constraint on a reply from its first token on.

        Args:
            tools: As for `grammar`.
            choice: As for `grammar`.
            name: As for `grammar`.
            parallel: As for `grammar`.
            json_schema: As for `grammar`.
            prompt: The prompt that the reply continues, which may have opened the reasoning.

        Raises:
            GrammarError: as `grammar`; or the schemas together are too large.
            UnsupportedError: llguidance is not installed.
        """
        lark = self.grammar(tools, choice, name=name, parallel=parallel, json_schema=json_schema)
        if lark is None or self.tokenizer is None:
            return None
        from ikq.text.tools.grammars import constraint

        is_whole = json_schema is not None or isinstance(self.spelling, JsonReply)
        enforced = choice == "required" or is_whole
        try:
            return constraint(self, lark, enforced=enforced, prompt=prompt)
        except GrammarError as error:
            if any(function_of(tool, i).get("strict") for i, tool in enumerate(tools)):
                raise _too_many(tools, error) from None
        # not strict: only the names hold where all together are too much
        lark = self.grammar(tools, choice, name=name, parallel=parallel, json_schema=json_schema, loose=True)
        assert lark is not None
        try:
            return constraint(self, lark, enforced=enforced, prompt=prompt)
        except GrammarError as error:
            raise _too_many(tools, error) from None

    def budgeted(self, inner: Constraint | None, budget: int, prompt: str = "") -> Constraint | None:
        """A constraint that ends the reasoning after so many tokens.

        Args:
            inner: What else constrains the reply.
            budget: Most tokens of reasoning.
            prompt: The prompt that the reply continues, which may have opened the reasoning.

        Returns:
            `inner` for models that do not mark reasoning.
        """
        from ikq.text.tools.budget import ThinkingBudget

        if isinstance(self.spelling, Harmony):
            marks = ("<|channel|>analysis<|message|>", "<|end|>")
        elif self.reasoning is not None:
            marks = self.reasoning
        else:
            return inner
        if self.tokenizer is None:
            return inner
        is_open = prompt.rstrip().endswith(marks[0])
        return ThinkingBudget(inner, marks, is_open=is_open, budget=budget, tokenizer=self.tokenizer)

    def as_json(self) -> ReplyForm:
        """The form in which the model answers when a system message tells it the tools, as JSON."""
        return replace(self, name="json", spelling=JsonReply(), signs=())

    def written(self, calls: Sequence[Mapping[str, Any]]) -> str | None:
        """Calls as the model writes them, for templates that do not; `None` if all such templates do.

        Args:
            calls: In OpenAI's form.
        """
        return written(self.spelling, calls)

    def answer(self, inner: Constraint, prompt: str = "") -> Constraint:
        """A constraint on the answer behind the reasoning, such as a JSON schema.

        Args:
            inner: A compiled constraint.
            prompt: The prompt that the reply continues.
        """
        from ikq.text.tools.grammars import answer

        return answer(self, inner, prompt)


def _too_many(tools: Sequence[Mapping[str, Any]], error: GrammarError) -> GrammarError:
    """Each of them can be enforced, and all together cannot."""
    return GrammarError(
        f"calls of these {len(tools)} tools cannot be enforced: {error}; send fewer, or with shorter schemas",
        keyword="tools",
        place="tools",
    )


_DSML = "\uff5cDSML\uff5c"
_DS = {
    name: f"<\uff5ctool\u2581{name}\uff5c>".replace(" ", "\u2581")
    for name in ("calls begin", "calls end", "call begin", "call end", "sep")
}
_M3 = "]<]minimax[>["
_THINK = ("<think>", "</think>")


def _dsml(section: str) -> TaggedCalls:
    return TaggedCalls(
        section=(f"<{_DSML}{section}>\n", f"\n</{_DSML}{section}>"),
        call=(f'<{_DSML}invoke name="', f"</{_DSML}invoke>"),
        name=("", '">\n'),
        key=(f'<{_DSML}parameter name="', ">"),
        key_heading='(?P<key>.*?)"(?: string="(?P<string>true|false)")?',
        key_written='{key}" string="{string}"',
        value=("", f"</{_DSML}parameter>\n"),
    )


def _glm(suffix: str = "", **changes: Any) -> TaggedCalls:  # noqa: ANN401  # fields of TaggedCalls
    form = TaggedCalls(
        call=(f"<tool_call{suffix}>", f"</tool_call{suffix}>"),
        name=("", ""),
        key=(f"<arg_key{suffix}>", f"</arg_key{suffix}>"),
        value=(f"<arg_value{suffix}>", f"</arg_value{suffix}>"),
    )
    return replace(form, **changes)


_FUNCTION_TAGS = TaggedCalls(
    call=("<tool_call>\n", "\n</tool_call>"),
    name=("<function=", ">\n"),
    end="</function>",
    key=("<parameter=", ">"),
    value=("\n", "\n</parameter>\n"),
    is_padded=True,
)

# the first whose signs are all there
FORMS: tuple[ReplyForm, ...] = (
    ReplyForm(
        name="harmony",
        spelling=Harmony(),
        signs=("<|channel|>", "<|message|>", "analysis"),
    ),
    ReplyForm(
        name="gemma4",
        spelling=ObjectCalls(
            call=("<|tool_call>", "<tool_call|>"), between="", before_name="call:", quote='<|"|>'
        ),
        signs=("<|tool_call>call:",),
        reasoning=("<|channel>thought", "<channel|>"),
    ),
    ReplyForm(
        name="kimi_k3",
        spelling=TaggedCalls(
            section=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
            call=('<|open|>call tool="', "<|close|>call<|sep|>"),
            name=("", "<|sep|>"),
            name_heading='(?P<name>.*?)"(?: index="\\d+")?',
            name_written='{name}" index="#"',
            key=('<|open|>argument key="', "<|sep|>"),
            key_heading='(?P<key>.*?)"(?: type="(?P<type>\\w+)")?',
            key_written='{key}" type="{type}"',
            value=("", "<|close|>argument<|sep|>"),
            between="",
        ),
        signs=("<|open|>tools<|sep|>",),
        reasoning=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        dropped=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
    ),
    ReplyForm(
        name="kimi",
        spelling=NamedCalls(
            section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
            call=("<|tool_call_begin|>", "<|tool_call_end|>"),
            between="",
            heading="(?P<id>(?:functions\\.)?(?P<name>.*?)(?::\\d+)?)",
            before_name="functions.",
            after_name=":#",
            arguments="<|tool_call_argument_begin|>",
        ),
        signs=("<|tool_calls_section_begin|>",),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="deepseek_v4", spelling=_dsml("tool_calls"), signs=(_DSML, "tool_calls>"), reasoning=_THINK
    ),
    ReplyForm(name="deepseek_v3.2", spelling=_dsml("function_calls"), signs=(_DSML,), reasoning=_THINK),
    ReplyForm(
        name="deepseek_r1",
        spelling=NamedCalls(
            section=(_DS["calls begin"], _DS["calls end"]),
            call=(_DS["call begin"], f"\n```{_DS['call end']}"),
            before_name=f"function{_DS['sep']}",
            heading=f"function{_DS['sep']}(?P<name>.*)",
            arguments="\n```json\n",
        ),
        signs=(_DS["calls begin"], "```json"),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="deepseek",
        spelling=NamedCalls(
            section=(_DS["calls begin"], _DS["calls end"]),
            call=(_DS["call begin"], _DS["call end"]),
            between="",
            arguments=_DS["sep"],
        ),
        signs=(_DS["calls begin"],),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="minimax_m2",
        spelling=TaggedCalls(
            section=("<minimax:tool_call>\n", "\n</minimax:tool_call>"),
            call=('<invoke name="', "</invoke>"),
            name=("", '">\n'),
            key=('<parameter name="', '">'),
            value=("", "</parameter>\n"),
        ),
        signs=("<minimax:tool_call>",),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="minimax_m3",
        spelling=TaggedCalls(
            section=(f"{_M3}<tool_call>\n", f"\n{_M3}</tool_call>"),
            call=(f'{_M3}<invoke name="', f"{_M3}</invoke>"),
            name=("", '">'),
            key=(f"{_M3}<", ">"),
            value=("", f"{_M3}</{{key}}>"),
            nested=_M3,
        ),
        signs=("]<]minimax[>[",),
        reasoning=("<mm:think>", "</mm:think>"),
    ),
    ReplyForm(
        name="hunyuan",
        spelling=_glm(
            ":opensource",
            section=("<tool_calls:opensource>\n", "\n</tool_calls:opensource>"),
            name=("", "<tool_sep:opensource>\n"),
            key=("<arg_key:opensource>", "</arg_key:opensource>\n"),
            value=("<arg_value:opensource>", "</arg_value:opensource>\n"),
        ),
        signs=("<arg_key:opensource>",),
        reasoning=("<think:opensource>", "</think:opensource>"),
    ),
    ReplyForm(
        name="seed",
        spelling=replace(
            _FUNCTION_TAGS,
            call=("<seed:tool_call>\n", "\n</seed:tool_call>"),
            value=("", "</parameter>\n"),
            is_padded=False,
        ),
        signs=("<seed:tool_call>",),
        reasoning=("<seed:think>", "</seed:think>"),
    ),
    ReplyForm(name="glm", spelling=_glm(between=""), signs=("<arg_key>",), reasoning=_THINK),
    ReplyForm(
        name="function_tags",
        spelling=_FUNCTION_TAGS,
        signs=("<function=", "<parameter="),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="minicpm",
        spelling=TaggedCalls(
            call=('<function name="', "</function>"),
            name=("", '">'),
            key=('<param name="', '">'),
            value=("", "</param>"),
        ),
        signs=('<function name="', '<param name="'),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="functionary",
        spelling=NamedCalls(call=("<function=", "</function>"), between="", arguments=">"),
        signs=("<function=", "</function>"),
    ),
    ReplyForm(
        name="mistral_args",
        spelling=NamedCalls(
            call=("[TOOL_CALLS]", ""),
            between="",
            heading="(?P<name>.*?)(?:\\[CALL_ID\\](?P<id>.*))?",
            arguments="[ARGS]",
        ),
        signs=("[TOOL_CALLS]", "[ARGS]"),
        reasoning=("[THINK]", "[/THINK]"),
    ),
    ReplyForm(
        name="mistral",
        spelling=JsonCalls(section=("[TOOL_CALLS]", ""), between=", ", id="id", is_list=True),
        signs=("[TOOL_CALLS]",),
    ),
    ReplyForm(
        name="command",
        spelling=JsonCalls(
            section=("<|START_ACTION|>", "<|END_ACTION|>"),
            between=",\n    ",
            name="tool_name",
            arguments="parameters",
            id="tool_call_id",
            is_list=True,
        ),
        signs=("<|START_ACTION|>",),
        reasoning=("<|START_THINKING|>", "<|END_THINKING|>"),
        dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    ReplyForm(
        name="apertus",
        spelling=JsonCalls(
            section=("<|tools_prefix|>", "<|tools_suffix|>"), between=", ", name="", is_list=True
        ),
        signs=("<|tools_prefix|>",),
        reasoning=("<|inner_prefix|>", "<|inner_suffix|>"),
    ),
    ReplyForm(
        name="toolcall_list",
        spelling=JsonCalls(section=("<TOOLCALL>", "</TOOLCALL>"), between=", ", is_list=True),
        signs=("<TOOLCALL>",),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="minimax_m1",
        spelling=JsonCalls(section=("<tool_calls>\n", "\n</tool_calls>")),
        signs=("<tool_calls>", "<beginning_of_sentence>"),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="apriel",
        spelling=JsonCalls(section=("<tool_calls>", "</tool_calls>"), between=", ", id="id", is_list=True),
        signs=("<tool_calls>",),
        reasoning=("<thinking>", "</thinking>"),
    ),
    ReplyForm(
        name="solar",
        spelling=NamedCalls(
            section=("<|tool_calls|>", ""),
            call=("<|tool_call:begin|>", "<|tool_call:end|>"),
            between="",
            heading="(?:(?P<id>.*?)<\\|tool_call:name\\|>)?(?P<name>.*)",
            before_name="########<|tool_call:name|>",
            arguments="<|tool_call:args|>",
        ),
        signs=("<|tool_call:begin|>",),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="gigachat",
        spelling=JsonCalls(call=("<|function_call|>", "")),
        signs=("<|function_call|>",),
    ),
    ReplyForm(
        name="firefunction",
        spelling=JsonCalls(section=("functools", ""), between=", ", is_list=True),
        signs=("functools[",),
    ),
    ReplyForm(
        name="granite",
        spelling=JsonCalls(section=("<|tool_call|>", ""), between=", ", is_list=True),
        signs=("<|tool_call|>",),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="hermes",
        spelling=JsonCalls(call=("<tool_call>\n", "\n</tool_call>")),
        signs=("<tool_call>",),
        reasoning=_THINK,
    ),
    ReplyForm(
        name="llama3",
        spelling=JsonCalls(call=("<|python_tag|>", ""), between="; ", arguments="parameters", is_bare=True),
        signs=("<|start_header_id|>", '{"name": function name, "parameters"'),
    ),
)

GENERIC = ReplyForm(
    name="generic", spelling=JsonCalls(call=("<tool_call>\n", "\n</tool_call>")), reasoning=_THINK
)
"""For templates that show no other."""

_PROBE_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "probe",
            "description": "A probe.",
            "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "X."}}},
        },
    }
]
_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "Probe."},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "probe0000", "type": "function", "function": {"name": "probe", "arguments": {"x": "y"}}}
        ],
    },
]


def form_of(template: ChatTemplate | str, tokenizer: Tokenizer | None = None) -> ReplyForm:
    """The form of the replies of a model.

    Args:
        template: Its chat template, or the text of one.
        tokenizer: Its tokenizer, for `grammar` and `constraint`.

    Returns:
        The form whose signs are in the template, or in what it makes of a call.
    """
    template = ChatTemplate(template) if isinstance(template, str) else template
    text = template.source
    # a template that takes no calls, or no such ones, still has its signs
    with contextlib.suppress(FormatError):
        text += template.render(_PROBE, _PROBE_TOOLS)
    found = next((form for form in FORMS if all(sign in text for sign in form.signs)), GENERIC)
    reasoning = found.reasoning if found.reasoning and found.reasoning[0] in text else None
    return replace(found, reasoning=reasoning, tokenizer=tokenizer)
