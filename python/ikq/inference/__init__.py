"""Running models: tokens in, logits out. Text is made of them in `ikq.text`.

model.py      a model that runs: `Model`
evaluating.py its computations, step by step: `EvaluatingModel`
loading.py    options of loading, and engines made with them
explaining.py where parts are computed and what memory they take: `Explanation`, `LoadingPlan`, `Memory`
sequence.py   tokens that a model has processed, with their KV cache: `Sequence`
steps.py      the tokens that a step computes, and its results
batching.py   generations computed together
kept.py       KV caches of finished generations, reused by texts with the same beginning
"""
