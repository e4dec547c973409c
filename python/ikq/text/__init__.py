"""Text from models: conversations as prompts, the loop that generates, and the parts of replies.

chat.py               conversations as prompts: `ChatTemplate`
template_sandbox.py   the sandbox that chat templates run in
templates/            conversations made to fit a template
generate.py           text piece by piece: `Generation`
model.py              the methods of `Model` for text: `TextModel`
stopping.py           texts that end a generation
reasoning.py          separates reasoning from the answer: `ReasoningSplitter`
tools/                forms of replies, and calls of tools
asynchronous.py       iterators for `async for`
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ikq.text.model import GenerateKeywords, TextModel

__all__ = ["GenerateKeywords", "TextModel"]


def __getattr__(name: str) -> object:
    """Imports the names of `model` when they are used: it needs modules that need others of this folder."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ikq.text import model

    return getattr(model, name)
