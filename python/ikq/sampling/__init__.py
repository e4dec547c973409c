"""Choosing tokens from logits: `SamplingOptions`, `Sampler`.

A `Sampler` changes the logits of single tokens first (bias, penalties), then narrows the candidates down
step by step in the order of `SamplingOptions.samplers`, and draws one. One file per kind of step; each
step takes and gives `Candidates`.
"""

from ikq.sampling.candidates import Candidates, Scores, log_probability, top_logprobs
from ikq.sampling.chain import Sampler
from ikq.sampling.options import DEFAULT_ORDER, SamplingKeywords, SamplingOptions, parse_samplers

__all__ = [
    "DEFAULT_ORDER",
    "Candidates",
    "Sampler",
    "SamplingKeywords",
    "SamplingOptions",
    "Scores",
    "log_probability",
    "parse_samplers",
    "top_logprobs",
]
