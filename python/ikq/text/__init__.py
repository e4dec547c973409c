"""Text from models: conversations as prompts, the loop that generates, and what replies are made of.

chat.py               conversations as prompts: `ChatTemplate`
template_sandbox.py   what chat templates run in
templates/            conversations made to fit a template
generate.py           text piece by piece: `Generation`
model.py              what `Model` does with text: `TextModel`
stopping.py           texts that end a generation
reasoning.py          reasoning apart from the answer: `ReasoningSplitter`
tools/                forms of replies, and calls of tools
asynchronous.py       iterators for `async for`
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ikq.text.model import GenerateKeywords, TextModel

__all__ = ["GenerateKeywords", "TextModel"]


def __getattr__(name: str) -> object:
    """What `model` has: it needs most of ikq, and parts of that need other modules of this folder."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ikq.text import model

    return getattr(model, name)
