"""The largest logits, found on a GPU (the stand-in): those of all logits of the same device, and hardly a byte of them."""

import json
from pathlib import Path

import pytest
from best_logits_checks import too_large, twins
from emulator import FULL, needs_gxx, only_in_full
from model_files import NAMES, Changed, path, reader
from mtp_files import with_head
from standin import environment, run
from test_whole_models_on_device import ALL

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

TESTS = Path(__file__).resolve().parent.parent
BEGIN = f"""
import json, sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "serve")!r}]
import ikq
from ikq import _ikq
from best_logits_checks import *
path, options = sys.argv[1], json.loads(sys.argv[2])
ids = list(range(3, 20))
"""

STEPS = (
    BEGIN
    + """
with ikq.Model.load(path, n_ctx=64, n_threads=2, **options) as model:
    check_steps(model, ids, n_rounds=3)
    check_prompts(model, ids)
    check_heads(model, ids)
print(json.dumps(_ikq.cuda_counts()))
"""
)

TEXTS = (
    BEGIN
    + """
told = {}
prompts = [ids[:3], ids[2:6]]
for name, sampling in {"greedy": {"temperature": 0}, "sampled": {"seed": 4, "top_k": 12}}.items():
    with ikq.Model.load(path, n_ctx=64, n_threads=2, **options) as model:
        best = texts(model, prompts, max_tokens=5, **sampling)
        with from_all_logits():
            whole = texts(model, prompts, max_tokens=5, **sampling)
        said = model.generate(ids[:3], max_tokens=5, logprobs=1, **sampling)
        assert [piece.token for piece in said] == best[0][0]
    assert best[0] == whole[0]
    told[name] = {"best": best[1], "whole": whole[1], "n": sum(map(len, best[0]))}
print(json.dumps(told | {"n_vocab": model.spec.n_vocab, "counts": _ikq.cuda_counts()}))
"""
)

PLACES = {
    "all": ALL,
    "experts in RAM": ALL | {"cpu_moe": True},
    "cache in RAM": ALL | {"kv_offload": False},
    "two GPUs": {"devices": ["CPU", "CUDA0", "CUDA1"], "n_gpu_layers": 99, "tensor_split": [1, 1]},
    "some layers": ALL | {"n_gpu_layers": 1},
    "fewer experts": ALL | {"expert_reduction": (1, 0.5)},
}
QUICK = [("qwen2moe/qwen2moe-bf16", p) for p in ("all", "two GPUs", "some layers")]
QUICK.append(("gemma3/gemma3-bf16", "all"))
MORE = [("qwen2moe/qwen2moe-bf16", p) for p in PLACES if p != "all"]


def program(text, file, options, **more):
    env = environment(IKQ_STANDIN_DEVICES="2", **more)
    return json.loads(run(text, env, str(file), json.dumps(options), timeout=1500))


@pytest.mark.parametrize(("name", "places"), [*((n, "all") for n in NAMES), *MORE] if FULL else QUICK)
def test_they_are_the_largest_of_all(name, places):
    """In steps that want different things of several sequences, the first time and replayed."""
    counts = program(STEPS, path(name), PLACES[places])
    assert counts["replays"] > 0


@only_in_full
def test_without_graphs():
    counts = program(STEPS, path("qwen2moe/qwen2moe-bf16"), ALL, IKQ_CUDA_GRAPHS="0")
    assert counts["replays"] == 0


def test_of_equal_ones_the_first(tmp_path):
    file = tmp_path / "model.gguf"
    twins(Changed(reader("qwen2/qwen2-f32"))).write(file)
    program(STEPS, file, ALL)


@pytest.mark.parametrize("places", ["all", "two GPUs", "some layers"] if FULL else ["all", "two GPUs"])
def test_texts_are_those_from_all_logits(places):
    told = program(TEXTS, path("qwen2moe/qwen2moe-bf16"), PLACES[places])
    assert told["counts"]["replays"] > 0
    for name, n_best in ("greedy", 1), ("sampled", 12):
        one, n = told[name], told[name]["n"]
        # what else crosses is the same: hidden states between two GPUs, which routers have failed
        assert one["whole"] - one["best"] == (
            0 if places == "some layers" else n * (4 * told["n_vocab"] - 8 * n_best)
        )
    if places == "all":
        # an id and a value, and for each column of steps and prompts a layer whose router failed
        assert told["greedy"]["best"] == 8 * told["greedy"]["n"] + 4 * (told["greedy"]["n"] - 2 + 7)


DRAFTS = (
    BEGIN
    + """
told = {}
said = {"max_tokens": 8, "temperature": 0, "draft_adapt": False, "draft_max": 3}
with ikq.Model.load(path, n_ctx=64, n_threads=2, **options) as model:
    for name, drafter in {"mtp": {"mtp": True}, "draft": {"draft_model": path}}.items():
        for p_min in (0.0, 1e-9):
            model.generate(ids[:2], **said, **drafter).text  # what is loaded is there
            before = _ikq.cuda_counts()["bytes_out"]
            generation = model.generate(ids[:3], draft_p_min=p_min, **said, **drafter)
            tokens = [piece.token for piece in generation]
            n = _ikq.cuda_counts()["bytes_out"] - before
            told[f"{name} {p_min > 0}"] = {"tokens": tokens, "bytes": n, "drafted": generation.stats.n_drafted}
    told["n_embd"] = model.spec.n_embd
print(json.dumps(told))
"""
)


def test_drafts_are_of_the_largest(tmp_path):
    """No step of a draft model, a head, or a model that checks their drafts has all logits copied."""
    file = tmp_path / "model.gguf"
    with_head("glm4moe/glm4moe-bf16").write(file)
    told = program(DRAFTS, file, ALL)
    n_embd = told.pop("n_embd")
    assert len({tuple(x["tokens"]) for x in told.values()}) == 1
    for name, x in told.items():
        drafter, is_sure = name.split()
        n_best = 16 if is_sure == "True" else 1
        assert x["drafted"] > 0
        # rounds have at most four tokens of the model and as many of the drafter: results, numbers of two failed routers
        # each, and hidden states that a head reads and says
        n_tokens = 3 + 8 * len(x["tokens"])
        assert x["bytes"] <= n_tokens * (8 * n_best + 8 + (4 * n_embd if drafter == "mtp" else 0))


ERRORS = (
    BEGIN
    + """
said = []
with ikq.Model.load(path, n_ctx=64, n_threads=2, **options) as model:
    for _ in range(3):
        said += errors(model, ids[:1])
print(json.dumps(said))
"""
)


def test_the_errors_are_those_of_all_logits(tmp_path):
    file = tmp_path / "model.gguf"
    too_large(Changed(reader("qwen2/qwen2-f32"))).write(file)
    said = program(ERRORS, file, ALL)
    assert len(said) == 12
    assert "number 77 is" in said[0]
    assert set(said) == {said[0]}


SERVED = (
    BEGIN
    + """
from concurrent.futures import ThreadPoolExecutor
from serving import serving

def asked(server, **more):
    before = _ikq.cuda_counts()["bytes_out"]
    request = {"max_tokens": 4, "temperature": 0, "cache_prompt": False, **more}
    with ThreadPoolExecutor() as pool:
        replies = list(pool.map(lambda p: server.ask("/v1/completions", request | {"prompt": p}), ["import", "def "]))
    assert all(status == 200 for status, _ in replies), replies
    said = [reply["choices"][0] for _, reply in replies]
    tokens = sum(reply["usage"]["completion_tokens"] for _, reply in replies)
    return [choice["text"] for choice in said], _ikq.cuda_counts()["bytes_out"] - before, tokens

with serving(path, n_ctx=64, load=options) as server:
    found = {"best": asked(server), "logprobs": asked(server, logprobs=2), "penalty": asked(server, repeat_penalty=1.0001)}
    with from_all_logits():
        found["whole"] = asked(server)
print(json.dumps(found))
"""
)


def test_a_server(tiny_moe):
    """Of its texts only those with logprobs need all logits."""
    found = program(SERVED, tiny_moe, ALL)
    (said, best, n), (same, logprobs, _), (whole_said, whole, _) = (
        found[k] for k in ("best", "logprobs", "whole")
    )
    assert said == same == whole_said
    n_vocab = 4096
    assert n == 8
    assert best < 4 * n_vocab < n * 4 * n_vocab <= min(logprobs, whole)
