"""The parts of replies: reasoning, content and tool calls, in the form that each model was taught.

    form = form_of(model.chat_template, model.tokenizer)
    parser = form.parser(prompt, tools)
    for piece in generation:            # with `special=True`: marks may be control tokens
        for delta in parser.feed(piece.text): ...
    parser.finish()

forms.py      the table of forms: `ReplyForm`, `form_of`
spelling.py   how calls are written: what the table is made of
parser.py     text to deltas while it comes in: `ReplyParser`
scanning.py   ... the reading of a text that comes in pieces
readers.py, harmony.py    ... one reader for each kind of spelling
json_reply.py ... and for replies that are JSON, where a system message tells the tools
functions.py  functions that may be called
values.py     arguments between tags as JSON
raw_values.py ... and as regular expressions, where their schema limits them
writing.py    calls as text, for templates that do not write them
budget.py     thoughts that end after so many tokens
grammars.py   forms as grammars: which calls may be made, and with what arguments
"""

from ikq.text.tools.delta import Delta
from ikq.text.tools.forms import ReplyForm, form_of
from ikq.text.tools.parser import ReplyParser

__all__ = ["Delta", "ReplyForm", "ReplyParser", "form_of"]
