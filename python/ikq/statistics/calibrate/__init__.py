"""Computes importance matrices: runs a text through a model chunk by chunk, and evaluates the result.

loop.py      the chunks of a text, and running them
state.py     the state of an interrupted run, for the next one
coverage.py  which tensors and experts have data
summary.py   numbers about each tensor's statistics

Examples:
    >>> import ikq
    >>> from ikq.statistics.calibrate import chunks_of, coverage, run_chunks
    >>> model = ikq.Model.load("tests/data/tiny-moe-bf16.gguf", n_ctx=64)
    >>> chunks = chunks_of(model, "The module provides a function to open a file. " * 20, n_ctx=64)
    >>> with model.collect_activations() as collector:
    ...     for done in run_chunks(model, chunks, collector):
    ...         pass
    >>> done.n_chunks, done.perplexity.value > 1
    (3, True)
    >>> collector.statistics("a text")
    ActivationStatistics(33 entries, 3 chunks of 64 tokens)
"""

from ikq.statistics.calibrate.coverage import Coverage, TensorCoverage, coverage, wanted_tensors
from ikq.statistics.calibrate.loop import ChunksDone, chunks_of, run_chunks, windows_of
from ikq.statistics.calibrate.state import SavedRun, load_state, run_identity, save_state, state_path
from ikq.statistics.calibrate.summary import LayerSummary, TensorSummary, summarize, summarize_layers

__all__ = [
    "ChunksDone",
    "Coverage",
    "LayerSummary",
    "SavedRun",
    "TensorCoverage",
    "TensorSummary",
    "chunks_of",
    "coverage",
    "load_state",
    "run_chunks",
    "run_identity",
    "save_state",
    "state_path",
    "summarize",
    "summarize_layers",
    "wanted_tensors",
    "windows_of",
]
