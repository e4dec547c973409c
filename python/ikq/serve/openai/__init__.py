"""OpenAI's chat completions, completions and embeddings.

sampling.py     fields that say how tokens are chosen, which llama-server's paths have as well
bodies.py       what requests hold
request.py      ... in ikq's own terms
chat.py         replies as chat completions and their chunks
completions.py  replies as completions
logprobs.py     probabilities in both forms
usage.py        tokens and times
"""
