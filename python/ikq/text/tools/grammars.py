"""Calls of tools as grammars: which may be made, and with what arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ikq.errors import GrammarError
from ikq.grammar import After, Constraint, FreeText, GrammarConstraint, Then
from ikq.grammar.blame import blamed, failure
from ikq.grammar.compiling import compile_lark
from ikq.grammar.schema import compact, prepared
from ikq.grammar.vocabulary import words_of
from ikq.text.tools.functions import function_of
from ikq.text.tools.harmony import begun_channel
from ikq.text.tools.object_calls import argument_rules, value_rules
from ikq.text.tools.object_calls import check_enforced as check_object
from ikq.text.tools.raw_values import check_enforced, is_limited, text_patterns
from ikq.text.tools.spelling import (
    Harmony,
    JsonCalls,
    JsonReply,
    NamedCalls,
    ObjectCalls,
    Spelling,
    TaggedCalls,
)
from ikq.text.tools.values import is_text

if TYPE_CHECKING:
    from ikq.text.tools.forms import ReplyForm

__all__ = ["answer", "calls_grammar", "constraint"]


def constraint(form: ReplyForm, lark: str, *, enforced: bool, prompt: str) -> Constraint:
    """Calls, behind what is free; `enforced`: the model does not decide where they begin."""
    assert form.tokenizer is not None
    inner = compile_lark(form.tokenizer, lark)
    spelling = form.spelling
    if isinstance(spelling, Harmony):
        return inner if enforced else After(inner, FreeText(triggers=(_HARMONY_TRIGGER,)))
    free = _free(form, prompt)
    if not enforced:
        is_bare = isinstance(spelling, JsonCalls) and spelling.is_bare
        free = FreeText(
            reasoning=free.reasoning,
            is_open=free.is_open,
            triggers=(spelling.trigger,),
            opening=('{"name"',) if is_bare else (),
        )
    return After(inner, free)


def answer(form: ReplyForm, inner: Constraint, prompt: str) -> Constraint:
    """An answer, behind what is free."""
    if not isinstance(inner, GrammarConstraint):
        return inner
    if isinstance(form.spelling, Harmony):
        assert form.tokenizer is not None
        begun = begun_channel(prompt)
        if begun == "final":
            return inner
        head = _Writer(form).harmony_head(is_thinking=begun is not None)
        return Then(compile_lark(form.tokenizer, head), inner)
    free = _free(form, prompt)
    return inner if free.reasoning is None else After(inner, free)


def _free(form: ReplyForm, prompt: str) -> FreeText:
    if form.reasoning is None:
        return FreeText()
    return FreeText(reasoning=form.reasoning, is_open=prompt.rstrip().endswith(form.reasoning[0]))


def calls_grammar(
    form: ReplyForm,
    tools: Sequence[Mapping[str, Any]],
    *,
    enforced: bool,
    name: str | None,
    parallel: bool,
    answer: Mapping[str, Any] | None = None,
    loose: bool = False,
) -> str:
    """The grammar of the calls of a reply in Lark's notation, or of an answer of this schema.

    With `loose` arguments are free.
    """
    functions = [_Function.of(tool, i, form.spelling, loose=loose) for i, tool in enumerate(tools)]
    if name is not None:
        # who names a function wants one call of it
        parallel = False
        functions = [f for f in functions if f.name == name]
        if not functions:
            raise GrammarError(f"tool_choice names the function `{name}`, which is not among the tools",
                               keyword=name, place="tool_choice")  # fmt: skip
    return _Writer(form).written(functions, enforced=enforced, parallel=parallel, answer=answer)


class _Function:
    """A function that may be called.

    Attributes:
        name: Its name.
        schema: Of its arguments; can be compiled.
        is_free: They may be anything.
        is_strict: They are valid under the schema in any case.
    """

    def __init__(
        self, name: str, schema: dict[str, Any], *, is_free: bool = False, is_strict: bool = False
    ) -> None:
        self.name = name
        self.schema = schema
        self.is_free = is_free
        self.is_strict = is_strict

    @classmethod
    def of(cls, tool: Mapping[str, Any], i: int, spelling: Spelling, *, loose: bool = False) -> _Function:
        """From OpenAI's form.

        Args:
            tool: See there.
            i: Which of the tools.
            spelling: How arguments are written.
            loose: Arguments are free.

        Raises:
            FormatError: it is malformed.
            GrammarError: it is strict, and its schema cannot be enforced.
        """
        function = function_of(tool, i)
        name = function["name"]
        schema = {"type": "object", **function["parameters"]}
        if loose:
            return cls(name, {"type": "object"}, is_free=True)
        if function.get("strict"):
            try:
                compiled = _compiled(schema)
                if isinstance(spelling, TaggedCalls):
                    check_enforced(compiled)
                if isinstance(spelling, ObjectCalls):
                    check_object(compiled)
                return cls(name, compiled, is_strict=True)
            except GrammarError as e:
                place = f"tools/{i}/function/parameters{e.place or ''}"
                raise GrammarError(
                    f"the tool `{name}` is strict, but {e}", keyword=e.keyword, place=place
                ) from None
        # not strict: arguments are JSON, and as much of the schema holds as can be enforced
        try:
            return cls(name, _compiled(schema, lenient=True))
        except GrammarError:
            return cls(name, {"type": "object"}, is_free=True)

    def properties(self) -> Iterator[tuple[str, dict[str, Any], bool]]:
        """Name, schema and whether it is required, of each argument."""
        defs: dict[str, Any] = {
            key: self.schema[key] for key in ("$defs", "definitions") if key in self.schema
        }
        given = self.schema.get("required")
        required = given if isinstance(given, list) else ()
        for key, schema in (self.schema.get("properties") or {}).items():
            inner = schema if isinstance(schema, Mapping) else {}
            yield key, {**defs, **inner}, key in required


def _compiled(schema: Mapping[str, Any], *, lenient: bool = False) -> dict[str, Any]:
    result = prepared(schema, lenient=lenient)
    assert isinstance(result, dict)
    if message := failure(result):
        raise blamed(result, message)
    return result


_HARMONY_TRIGGER = " to=functions."
_HARMONY_FINAL = "<|channel|>final<|message|>"


class _Writer:
    """Writes rules."""

    def __init__(self, form: ReplyForm) -> None:
        self._form = form
        tokenizer = form.tokenizer
        specials = {} if tokenizer is None else words_of(tokenizer).specials
        names = sorted(map(re.escape, specials), key=len, reverse=True)
        self._specials = specials
        self._split = re.compile(f"({'|'.join(names)})") if names else None
        self._rules: dict[str, str] = {}
        # calls that no mark begins are JSON like any answer, and are written with it
        self._needs_mark = False
        # rules for a text up to a mark, by the mark, and for JSON, by the schema
        self._values: dict[str, str] = {}
        self._schemas: dict[str, str] = {}

    def written(
        self,
        functions: Sequence[_Function],
        *,
        enforced: bool,
        parallel: bool,
        answer: Mapping[str, Any] | None,
    ) -> str:
        """All rules."""
        spelling = self._form.spelling
        if answer is not None and isinstance(spelling, JsonCalls) and spelling.is_bare:
            answer = _with_bare_calls(spelling, functions, answer)
            self._needs_mark = True
        for i, function in enumerate(functions):
            self._rules[f"call_{i}"] = self._call(function, i)
        self._rules["call"] = " | ".join(f"call_{i}" for i in range(len(functions)))
        written = None if answer is None else self._json(answer)
        if isinstance(spelling, Harmony):
            self._harmony(enforced, written)
        else:
            more = f" ({self._text(spelling.between)} call)*" if parallel else ""
            before, after = spelling.section
            is_list = isinstance(spelling, JsonCalls) and spelling.is_list
            first, last = ("[", "]") if is_list else ("", "")
            self._rules["calls"] = f"{self._text(before + first)} call{more} {self._text(last + after)}"
            self._answer(written)
            self._rules["start"] = "calls" if written is None else "calls | answer"
        return self._lark()

    def _answer(self, written: str | None) -> None:
        spelling = self._form.spelling
        if written is not None and isinstance(spelling, JsonReply):
            head = json.dumps({spelling.answer: None}).removesuffix("null}")
            self._rules["answer"] = f"{self._text(head)} {written} {self._text('}')}"
        elif written is not None:
            self._rules["answer"] = written

    def _harmony(self, enforced: bool, answer: str | None) -> None:
        channel = self._text("<|channel|>")
        self._answer(answer)
        if not enforced and answer is None:
            self._rules["start"] = "call"
            return
        self._harmony_thoughts()
        final = "" if answer is None else f" | {self._text(_HARMONY_FINAL)} answer"
        self._rules["start"] = f'thoughts? ({channel} "commentary" call{final})'

    def harmony_head(self, *, is_thinking: bool) -> str:
        """What comes before an answer: thoughts, of which the prompt may have begun some, and a heading."""
        self._harmony_thoughts()
        self._rules["start"] = f"{'more' if is_thinking else 'thoughts?'} {self._text(_HARMONY_FINAL)}"
        return self._lark()

    def _harmony_thoughts(self) -> None:
        self._rules["more"] = f"{self._until('<|end|>')} {self._text('<|start|>assistant')}"
        self._rules["thoughts"] = f"{self._text('<|channel|>analysis<|message|>')} more"

    def _lark(self) -> str:
        return "".join(f"{name}: {rule}\n" for name, rule in self._rules.items())

    def _call(self, function: _Function, i: int) -> str:
        spelling = self._form.spelling
        if isinstance(spelling, Harmony):
            tail = f'({self._text("<|channel|>commentary")})? ({self._text(" <|constrain|>json")} | " json")?'
            head = f"{self._text(_HARMONY_TRIGGER + function.name)} {tail} {self._text('<|message|>')}"
            return f"{head} {self._json(function.schema)}"
        before, after = spelling.call
        if isinstance(spelling, JsonCalls):
            inner = self._json_call(spelling, function)
            if spelling.is_bare:
                return f"({self._text(before)}){'' if self._needs_mark else '?'} {inner}"
        elif isinstance(spelling, ObjectCalls):
            inner = f"{self._text(spelling.before_name + function.name)} {self._object(spelling, function)}"
        elif isinstance(spelling, NamedCalls):
            name = self._numbered(spelling.before_name + function.name + spelling.after_name)
            inner = f"{name} {self._text(spelling.arguments)} {self._json(function.schema)}"
        elif function.is_free:
            return f"{self._text(before)} {self._tagged_freely(spelling, function)}"
        else:
            inner = self._tagged(spelling, function, i)
        return f"{self._text(before)} {inner} {self._text(after)}"

    def _json_call(self, spelling: JsonCalls, function: _Function) -> str:
        name = json.dumps(function.name, ensure_ascii=False)
        arguments = self._json(function.schema)
        if not spelling.name:
            return f"{self._text('{' + name + ': ')} {arguments} {self._text('}')}"
        head = f'"{spelling.name}": {name}, "{spelling.arguments}": '
        if spelling.id and spelling.id != "id":
            head = f'"{spelling.id}": "#", {head}'
        tail = (
            f'({self._text(", " + json.dumps("id") + ": ")} /"[a-zA-Z0-9]{{9}}"/)?'
            if spelling.id == "id"
            else ""
        )
        return f"{self._numbered('{' + head)} {arguments} {tail} {self._text('}')}"

    def _object(self, spelling: ObjectCalls, function: _Function) -> str:
        self._rules |= value_rules(spelling, self._text, self._until)
        if function.is_free:
            return "object_object"
        return argument_rules(spelling, function.schema, self._text)

    def _tagged(self, spelling: TaggedCalls, function: _Function, i: int) -> str:
        parts = [self._named(spelling, function)]
        for j, (key, schema, is_required) in enumerate(function.properties()):
            rule = f"argument_{i}_{j}"
            self._rules[rule] = self._argument(spelling, key, schema, is_strict=function.is_strict)
            parts.append(rule if is_required else f"{rule}?")
        parts.append(self._text(spelling.end))
        return " ".join(parts)

    def _tagged_freely(self, spelling: TaggedCalls, function: _Function) -> str:
        """A name and any text, up to the end of the call."""
        head = self._named(spelling, function)
        end, after = (spelling.end, self._text(spelling.call[1])) if spelling.end else (spelling.call[1], "")
        free = self._until(end)
        if not spelling.name[1]:  # what comes next must not become a part of the name
            free = f"({self._text(spelling.key[0])} {free} | {self._text(end.lstrip())})"
        return f"{head} {free} {after}"

    def _named(self, spelling: TaggedCalls, function: _Function) -> str:
        named = spelling.name_written.replace("{name}", function.name)
        return self._numbered(spelling.name[0] + named + spelling.name[1])

    def _argument(
        self, spelling: TaggedCalls, key: str, schema: Mapping[str, Any], *, is_strict: bool
    ) -> str:
        is_string = is_text({"properties": {key: schema}}, key, {})
        written = spelling.key_written.replace("{key}", key)
        written = written.replace("{string}", str(is_string).lower())
        written = written.replace("{type}", "string" if is_string else _type_of(schema))
        head = f"{self._text(spelling.key[0] + written + spelling.key[1])} {self._text(spelling.value[0])}"
        end = spelling.value[1].replace("{key}", key)
        close = self._text(end)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if is_string and isinstance(values, list):
            texts = [self._text(v) for v in values if isinstance(v, str)]
            return f"{head} ({' | '.join(texts)}) {close}"
        if is_string:
            patterns = text_patterns(schema)
            return f"{head} {self._matching(patterns, end) if patterns else self._until(end)}"
        is_nested = bool(spelling.nested) and schema.get("type") in ("object", "array")
        is_typed = bool(schema.get("type")) and not is_nested
        if is_typed or (is_strict and is_limited(schema)):
            return f"{head} {self._json(schema)} {close}"
        return f"{head} {self._until(end)}"

    def _matching(self, patterns: Sequence[str], mark: str) -> str:
        """A text that matches patterns, and a mark, which is not in it."""
        stripped = mark.strip()
        gap, _, after = mark.partition(stripped)
        inside = _escaped(stripped)
        name = f"matching_value_{len(self._rules)}".upper()
        if self._split is not None and self._split.search(mark):
            whole = [*(f"/{pattern}{_escaped(gap)}/" for pattern in patterns), f"~/(?s:.*){inside}(?s:.*)/"]
            after = stripped + after
        else:
            # the mark is a part of it, and nothing comes behind the first one: where it ends is certain
            close = _escaped(gap) + inside
            whole = [*(f"/{pattern}{close}/" for pattern in patterns), f"~/(?s:.*){inside}(?s:.+)/"]
        self._rules[name] = " & ".join(whole)
        return f"{name} {self._text(after)}"

    def _until(self, mark: str) -> str:
        """Any text up to a mark, and the mark."""
        if self._split is not None and self._split.search(mark):
            return f"/(?s:.*)/ {self._text(mark.lstrip())}"
        # a line end before the mark is a part of the value for the grammar, and none for who reads it
        mark = mark.lstrip()
        stripped = mark.rstrip()
        name = self._values.setdefault(stripped, f"text_value_{len(self._values)}")
        self._rules[f"{name}[lazy]"] = f"/(?s:.*){_escaped(stripped)}/"
        return f"{name} {self._text(mark[len(stripped) :])}"

    def _json(self, schema: Mapping[str, Any]) -> str:
        text = json.dumps(compact(schema))
        name = self._schemas.setdefault(text, f"json_{len(self._schemas)}")
        self._rules[name] = f"%json {text}"
        return name

    def _numbered(self, text: str) -> str:
        """A text in which `#` stands for a number."""
        return " ".join(
            p for p in (" /[0-9]{1,4}/ ".join(self._text(part) for part in re.split("#+", text)),) if p
        )

    def _text(self, text: str) -> str:
        """A text, its control tokens as such."""
        parts = self._split.split(text) if self._split else [text]
        written = [
            f"<[{self._specials[part]}]>" if part in self._specials else f"/{_escaped(part)}/"
            for part in parts
            if part
        ]
        return " ".join(written)


def _with_bare_calls(
    spelling: JsonCalls, functions: Sequence[_Function], answer: Mapping[str, Any]
) -> dict[str, Any]:
    """The schema of an answer that may as well be a call.

    Arguments whose schema refers to parts of itself are only JSON here.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                spelling.name: {"const": function.name},
                spelling.arguments: {"type": "object"} if "$ref" in str(function.schema) else function.schema,
            },
            "required": [spelling.name, spelling.arguments],
            "additionalProperties": False,
        }
        for function in functions
    ]
    shared = {key: answer[key] for key in ("$defs", "definitions") if key in answer}
    return {"anyOf": [dict(answer), *calls], **shared}


def _escaped(text: str) -> str:
    """A text as a regular expression."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def _type_of(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    return {"integer": "number"}.get(kind, kind) if isinstance(kind, str) else "object"
