"""Measuring quality: perplexity of a model, and its distance from another one (KL divergence).

windows.py      how a text is cut, and logits in its windows
perplexity.py   perplexity
base_file.py    distributions of a base model, in the file form of llama-perplexity
compact.py      the same in a thirtieth of the size, with a stated error
divergence.py   statistics of the distance

Examples:
    >>> import ikq
    >>> from ikq.evaluate import cut, measure_perplexity, text_tokens
    >>> model = ikq.Model.load("tests/data/tiny-moe-bf16.gguf", n_ctx=64)
    >>> tokens = text_tokens(model.tokenizer, "The module provides a function to open a file. " * 20)
    >>> for found in measure_perplexity(model, cut(tokens, n_ctx=64)):
    ...     pass
    >>> found.n_windows, found.n_scored, found.value > 1
    (3, 93, True)
"""

from ikq.evaluate.base_file import Base, BaseFile, ModelBase, base_writer
from ikq.evaluate.compact import CompactBase, compact_writer
from ikq.evaluate.divergence import Divergence, Uncertain, measure_divergence, open_base
from ikq.evaluate.perplexity import Perplexity, Sink, measure_perplexity
from ikq.evaluate.windows import Window, Windows, cut, log_softmax, text_tokens

__all__ = [
    "Base",
    "BaseFile",
    "CompactBase",
    "Divergence",
    "ModelBase",
    "Perplexity",
    "Sink",
    "Uncertain",
    "Window",
    "Windows",
    "base_writer",
    "compact_writer",
    "cut",
    "log_softmax",
    "measure_divergence",
    "measure_perplexity",
    "open_base",
    "text_tokens",
]
