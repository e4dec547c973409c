"""Running models: tokens in, logits out. Text is made of them in `ikq.text`.

model.py      a model that runs: `Model`
evaluating.py what it computes, step by step: `EvaluatingModel`
loading.py    options of loading, and engines made with them
explaining.py what goes where and takes what: `Explanation`, `LoadingPlan`, `Memory`
sequence.py   tokens that a model has read: `Sequence`
steps.py      what a step has in it, and what comes of it
batching.py   generations computed together
kept.py       what finished generations leave for those that begin alike
"""
