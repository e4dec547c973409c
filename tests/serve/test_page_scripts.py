"""The page's events and conversations."""

import json

import pytest
from page_scripts import call, modules

SSE = modules("sse.js")
CONVERSATION = modules("conversation.js")


def events(*parts: str) -> list[str]:
    return json.loads(
        SSE.eval(
            f"(() => {{ const parser = new EventParser(); return JSON.stringify({json.dumps(parts)}"
            ".flatMap(part => parser.push(part))); })()"
        )
    )


STREAM = ': still\n\ndata: {"a":1}\n\nevent: x\ndata:b\ndata: c\n\ndata: [DONE]\n\ndata: unfinished'


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_in_parts_of_any_size(end, size):
    stream = STREAM.replace("\n", end)
    assert events(*(stream[n : n + size] for n in range(0, len(stream), size))) == [
        '{"a":1}',
        "b\nc",
        "[DONE]",
    ]


def conversation(*turns: tuple[str, str], **fields) -> dict:
    return {
        "id": "1",
        "title": "t",
        "turns": [{"role": role, "content": content} for role, content in turns],
        **fields,
    }


def test_the_title_is_the_first_line():
    begun = call(
        CONVERSATION,
        "withTurn",
        call(CONVERSATION, "newConversation", 5),
        {"role": "user", "content": "Hi\nyou"},
    )
    assert begun == {"id": "5", "title": "Hi", "turns": [{"role": "user", "content": "Hi\nyou"}]}


def test_editing_drops_what_followed():
    said = conversation(("user", "a"), ("assistant", "b"), ("user", "c"))
    assert call(CONVERSATION, "cutAt", said, 2)["turns"] == said["turns"][:2]
    assert call(CONVERSATION, "cutAt", said, 0) == {"id": "1", "title": "", "turns": []}


def test_messages_have_no_thoughts_and_no_failures():
    said = conversation(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c"))
    said["turns"][3]["reasoning"] = "So."
    assert call(CONVERSATION, "toMessages", said, "Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    assert len(call(CONVERSATION, "toMessages", said, " ")) == 3


def storage(kept: object, room: int = 10**6) -> str:
    """A store that holds only so many characters."""
    return (
        f"(() => {{ let kept = {json.dumps(kept)}; return {{ getItem: () => kept, setItem: (_, value) => "
        f"{{ if (value.length > {room}) throw new Error('full'); kept = value; }} }}; }})()"
    )


@pytest.mark.parametrize(
    "damaged", [None, "", "{", "5", "null", '[null, 5, {"id": 1}, {"id": "1", "title": "", "turns": [{}]}]']
)
def test_damaged_storage_is_empty(damaged):
    assert json.loads(CONVERSATION.eval(f"JSON.stringify(loadAll({storage(damaged)}))")) == []


def test_the_latest_is_first_and_the_oldest_goes_when_there_is_no_room():
    old = [conversation(("user", "x" * 100), id=str(n)) for n in range(4)]
    script = (
        f"JSON.stringify(save({storage(json.dumps(old), 450)}, {json.dumps(old[2])}).map(kept => kept.id))"
    )
    assert json.loads(CONVERSATION.eval(script)) == ["2", "0"]
    script = f"JSON.stringify(forget({storage(json.dumps(old))}, '1').map(kept => kept.id))"
    assert json.loads(CONVERSATION.eval(script)) == ["0", "2", "3"]


def test_a_browser_that_forbids_storage():
    script = "(() => { const s = openStorage({}); save(s, newConversation(1)); return JSON.stringify(loadAll(s)); })()"
    assert [kept["id"] for kept in json.loads(CONVERSATION.eval(script))] == ["1"]
