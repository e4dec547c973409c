"""What a parser made of a reply, and tools to call."""

import json

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["C", "F"]},
        "where": {
            "type": "object",
            "properties": {"x": {"type": "number"}},
            "required": ["x"],
            "additionalProperties": False,
        },
    },
    "required": ["city"],
    "additionalProperties": False,
}
NOW = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Weather.", "parameters": WEATHER},
    },
    {"type": "function", "function": {"name": "now", "description": "Time.", "parameters": NOW}},
]
SCHEMAS = {"get_weather": WEATHER, "now": NOW}


def merged(deltas):
    """Content, reasoning, and name, id and arguments of each call."""
    content, reasoning, calls = "", "", {}
    for delta in deltas:
        if delta.kind == "content":
            assert delta.text
            content += delta.text
        elif delta.kind == "reasoning":
            assert delta.text
            reasoning += delta.text
        elif delta.name is not None:
            assert delta.index == len(calls)
            assert delta.id
            calls[delta.index] = [delta.name, delta.id, delta.text]
        else:
            assert delta.id is None
            calls[delta.index][2] += delta.text
    return content, reasoning, [tuple(call) for call in calls.values()]


def parsed(form, text, *, prompt="", tools=TOOLS, sizes=(), is_cut=False, **options):
    """What the parser makes of a text that comes in pieces of these sizes."""
    parser = form.parser(prompt, tools, new_id=lambda: "new", **options)
    deltas, at = [], 0
    for size in sizes:
        deltas += parser.feed(text[at : at + size])
        at += size
    deltas += parser.feed(text[at:])
    deltas += parser.finish(is_cut=is_cut)
    content, reasoning, calls = merged(deltas)
    assert parser.n_calls == len(calls)
    return content, reasoning, calls


def values(calls):
    """Name and arguments of each call."""
    return [(name, json.loads(arguments)) for name, _, arguments in calls]
