"""Constraints on generated text: JSON schemas, GBNF, regular expressions, Lark.

    constraint = compile_constraint(model.tokenizer, json_schema={"type": "integer"})
    constraint.mask()           # which tokens may come next
    constraint.accept(token)    # one came

constraint.py   which tokens may come next in a text: `Constraint`
compiling.py    from a schema or grammar to it: `compile_constraint`
after.py        free text, then a constraint: reasoning, tool calls where a model decides to make one
then.py         one constraint behind another
schema.py       JSON schemas: what is rewritten, and what is refused by name
blame.py        ... and which keyword is at fault where the compiler refuses one
gbnf.py         llama.cpp's notation: its parser
gbnf_lark.py    ... and its translation
vocabulary.py   a tokenizer for llguidance, which computes the masks (`ikq[serve]`)
"""

from ikq.errors import GrammarError
from ikq.grammar.after import After, FreeText
from ikq.grammar.compiling import compile_constraint
from ikq.grammar.constraint import Constraint, GrammarConstraint
from ikq.grammar.then import Then

__all__ = [
    "After",
    "Constraint",
    "FreeText",
    "GrammarConstraint",
    "GrammarError",
    "Then",
    "compile_constraint",
]
