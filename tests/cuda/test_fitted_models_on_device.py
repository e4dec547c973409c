"""`fit` on a GPU of little memory (the stand-in): it holds what was predicted, and computes what was chosen."""

import json

import numpy as np
import pytest
from emulator import FULL, needs_gxx
from model_files import path
from mtp_files import with_head
from standin import environment, ikq_command, run

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

# what the driver counts
USED = """
import ctypes
cuda = ctypes.CDLL("libcuda.so")
assert cuda.cuInit(0) == 0
def used(device=0):
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    return total.value - free.value
"""

# four tokens, first with `fit` and then with the options that it tells
PROGRAM = (
    USED
    + """
import json, sys
import numpy as np, ikq
path, options, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
plan = ikq.Model.plan(path, fit=True, fit_margin=0, n_ctx=300, n_ubatch=4, **options)
# four tokens see one page
placed = {k: v for k, v in plan.fitted.keywords.items() if k not in ("fit", "n_ctx")}
short = ikq.Model.plan(path, n_ctx=256, n_ubatch=4, **placed, **options)

found = {}
fitted = dict(fit=True, fit_margin=0, n_ctx=300)
for name, how in (("fitted", fitted), ("explicit", plan.fitted.keywords)):
    with ikq.Model.load(path, n_threads=2, n_ubatch=4, **how, **options) as model:
        assert model.explain().placement == plan.placement and model.n_ctx == 300
        loaded = used()
        found[name] = model.logits([3, 4, 5, 6])
        found[name + " used"] = used()
        # layers have caches of one size
        layers = [p.device for p in plan.placement if p.stage.endswith("attention")]
        held = loaded + model.memory.cache * layers.count("CUDA0") // len(layers)
assert used() == 0
fitted = plan.fitted
np.savez(out, loaded=loaded, held=held, weights=fitted.weights, step=fitted.step, short=short.buffers["CUDA0"], needed=fitted.needed, **found)
"""
)


def fitted(name, memory, tmp_path, **options):
    """What a program of its own found, on a GPU of so many bytes."""
    out = tmp_path / "found.npz"
    env = environment(IKQ_STANDIN_MEMORY=str(memory))
    run(PROGRAM, env, str(path(name)), json.dumps(options), str(out), timeout=1500)
    with np.load(out) as f:
        return dict(f)


@pytest.mark.parametrize(
    "name",
    [
        "qwen2moe/qwen2moe-bf16",
        *(["deepseek3/deepseek3-bf16", "gpt-oss/gpt-oss-mxfp4", "gemma3/gemma3-bf16"] if FULL else []),
    ],
)
def test_a_fitted_model(name, tmp_path):
    memory = 3_600_000
    found = fitted(name, memory, tmp_path)
    assert found["needed"] <= memory
    assert np.array_equal(found["fitted"], found["explicit"])
    assert found["fitted used"] == found["explicit used"] <= found["needed"]
    assert found["loaded"] == found["weights"]
    # two pages hold 300 positions, one is in use; buffers are as large as was said for one
    assert found["fitted used"] - found["held"] == found["short"] < found["step"]


# a step as large as any
BUFFERS = (
    USED
    + """
import json, sys
import numpy as np, ikq
path, n, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
gpu = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": 99}
plan = ikq.Model.plan(path, n_ctx=n, n_ubatch=n, **gpu, **options)
with ikq.Model.load(path, n_threads=2, n_ctx=n, n_ubatch=n, **gpu, **options) as model:
    assert used() == plan.weights["CUDA0"]
    sequence = model.new_sequence()
    ids = [3 + i % 50 for i in range(n)]
    model.step([(sequence, ids, "last")])
    taken = used() - plan.weights["CUDA0"] - model.memory.cache
print(json.dumps([plan.buffers["CUDA0"], taken]))
"""
)


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("qwen3moe/qwen3moe-bf16", 4),
        ("llama/llama-bf16", 9),
        ("deepseek3/deepseek3-bf16", 4),
        ("gpt-oss/gpt-oss-mxfp4", 4),
        ("gemma3/gemma3-bf16", 4),
        ("qwen3next/qwen3next-bf16", 4),
        # two pages
        *([("llama/llama-bf16", 300), ("gemma3/gemma3-bf16", 300)] if FULL else []),
    ],
)
def test_buffers_are_what_was_told(name, n):
    """What a step takes besides weights and cache is told before anything is loaded, to the byte."""
    cases = [{}, {"fused_up_gate": False}] if n == 4 else [{}]
    found = [json.loads(run(BUFFERS, environment(), str(path(name)), str(n), json.dumps(c))) for c in cases]
    for told, taken in found:
        assert told == taken
    if len(found) == 2:
        # the separate plan has two buffers more, which prompts with weights of floats need, too
        (fused, _), (separate, _) = found
        assert (separate > fused) == ("bf16" not in name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt-oss/gpt-oss-mxfp4", {}),
        ("gpt-oss/gpt-oss-mxfp4", {"fused_up_gate": False}),
        ("qwen3moe/qwen3moe-bf16", {}),
    ],
)
def test_buffers_of_borrowed_experts_are_what_was_told(name, options):
    """Where steps have so many tokens that experts in RAM are computed on the GPU, it needs memory for them."""
    program = (str(path(name)), "16", json.dumps(options | {"cpu_moe": True}))
    told = []
    for first in ("1", "0"):
        found = run(BUFFERS, environment(IKQ_CUDA_STREAM_FROM=first, IKQ_CUDA_SLAB_KIB="4"), *program)
        promised, taken = json.loads(found)
        assert promised == taken
        told.append(promised)
    assert told[0] > told[1]


DRAFTING = (
    USED
    + """
import json, sys
import ikq
path, drafter = sys.argv[1:]
drafts = {"mtp": dict(mtp=True), "draft_model": dict(draft_model=path), "both": dict(mtp=True, draft_model=path)}
how = drafts[drafter]
room = dict(fit=True, fit_margin=0, n_ctx=64, n_ubatch=4, **how)
plan = ikq.Model.plan(path, **room)
with ikq.Model.load(path, n_threads=2, **room) as model:
    assert used() == plan.weights["CUDA0"] == plan.fitted.weights
    plans = [plan]
    if "mtp" in how:
        plans.append(plan.mtp)
        assert model.mtp is not None and model.explain().mtp == plan.mtp.placement
    if "draft_model" in how:
        plans.append(plan.draft_model)
        assert model.draft_model(path) is model.draft_model(path)
        (draft,) = model.explain().draft_models
        assert draft.placement == plan.draft_model.placement
    assert used() == sum(p.weights["CUDA0"] for p in plans)
    text = []
    if len(how) == 1:
        always = dict(max_tokens=6, temperature=0, ignore_eos=True, draft_adapt=False, draft_p_min=0.0, draft_max=3)
        generation = model.generate([3, 4, 5, 6], **always, **how)
        text = [p.token for p in generation]
        assert generation.stats.n_drafted > 0
    taken = used()
assert used() == 0
print(json.dumps([text, taken, plan.fitted.needed, plan.fitted.drafts]))
"""
)


def test_drafts_find_the_room_that_was_left(tmp_path):
    """A head or a draft model beside a model, on a GPU that has no byte more than all are said to take."""
    file = tmp_path / "model.gguf"
    with_head("glm4moe/glm4moe-bf16").write(file)
    found = {
        d: json.loads(run(DRAFTING, environment(), str(file), d)) for d in ("both", "mtp", "draft_model")
    }
    assert found["both"][3] == found["mtp"][3] + found["draft_model"][3]
    for drafter in ("mtp", "draft_model"):
        text, _, needed, drafts = found[drafter]
        env = environment(IKQ_STANDIN_MEMORY=str(needed))
        same, taken, *numbers = json.loads(run(DRAFTING, env, str(file), drafter))
        assert (same, numbers) == (text, [needed, drafts])
        # what was left to the model alone is not enough
        assert needed - drafts < taken <= needed
    assert found["mtp"][0] == found["draft_model"][0]


KEEPING = (
    USED
    + """
import json, sys
import ikq
path, drafter = sys.argv[1:]
how = {"mtp": dict(mtp=True), "draft_model": dict(draft_model=path)}[drafter]
room = dict(fit=True, fit_margin=0, n_ctx=64, n_ubatch=4, **how)
plan = ikq.Model.plan(path, **room)
with ikq.Model.load(path, n_threads=2, **room) as model:
    def texts(first, **more):
        always = dict(max_tokens=4, temperature=0, ignore_eos=True)
        return [[p.token for p in model.generate([i, 4, 5, 6], **always, **more)] for i in range(first, first + 4)]
    # what was computed of each is kept, as far as there is room
    alone = texts(10)
    kept = model.memory.cache
    drafting = dict(draft_adapt=False, draft_p_min=0.0, draft_max=3, **how)
    drafted = texts(10, **drafting)
    # caches of what drafts are kept, too
    texts(20, **drafting)
    texts(30)
    taken = used()
print(json.dumps([alone, drafted, kept, taken, plan.fitted.needed]))
"""
)


@pytest.mark.parametrize("drafter", ["mtp", "draft_model"])
def test_caches_that_are_kept_take_no_room_of_others(drafter, tmp_path):
    """On a GPU that has no byte more than was counted: what drafts comes after texts whose caches could have filled it."""
    file = tmp_path / "model.gguf"
    with_head("glm4moe/glm4moe-bf16").write(file)
    alone, drafted, kept, taken, needed = json.loads(run(KEEPING, environment(), str(file), drafter))
    assert alone == drafted
    env = environment(IKQ_STANDIN_MEMORY=str(needed))
    *same, little, taken_there, _ = json.loads(run(KEEPING, env, str(file), drafter))
    assert same == [alone, drafted]
    # where memory is free beside all that was counted, more is kept
    assert little < kept
    assert taken_there <= needed < taken


def test_the_command(tiny_moe):
    """The GPU's free memory is what the driver says."""
    env = environment(IKQ_STANDIN_MEMORY=str(28 * 2**20), IKQ_STANDIN_USED=str(10 * 2**20))
    same = ("run", "-m", str(tiny_moe), "-p", "import", "-n", "1", "--temp", "0", "--no-perf", "-ub", "4")
    done = ikq_command(env, *same, "-c", "64", "--fit", "--fit-margin", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ikq_command(env, *same, "-c", "64").stdout
    assert r"note: --fit: the same as -c 64 -ngl 5 -ot 'blk\.3\.ffn_.*_exps=CPU': CUDA0 holds" in done.stderr
    none = ikq_command(env, *same, "--fit")
    assert (none.returncode, none.stdout) == (2, "")
    assert "CUDA0 has 18.0 MiB free" in none.stderr


TWO = (
    USED
    + """
import json, sys
import numpy as np, ikq
path = sys.argv[1]
room = dict(fit=True, fit_margin=0, n_ctx=64)
fitted = ikq.Model.plan(path, n_ubatch=4, **room).fitted
with ikq.Model.load(path, n_threads=2, n_ubatch=4, **room) as model:
    for device, told in enumerate(fitted.devices):
        assert used(device) == told.weights
    logits = model.logits([3, 4, 5, 6])
    for device, told in enumerate(fitted.devices):
        # a page holds the whole context, and grows to no more
        assert used(device) == told.weights + told.cache * 4 // 5 + told.step, device
with ikq.Model.load(path, n_threads=2, n_ubatch=4, n_ctx=64, devices=["CPU", "CUDA1"], n_gpu_layers=99,
                    override_tensor=list(fitted.override_tensor)) as model:
    assert np.array_equal(logits, model.logits([3, 4, 5, 6]))
print(json.dumps(fitted.tensor_split))
"""
)


def test_two_gpus_are_filled(tiny_moe):
    """Each holds what was told, and gives the bits of one."""
    env = environment(IKQ_STANDIN_DEVICES="2", IKQ_STANDIN_MEMORY=f"{12 * 2**20},{64 * 2**20}")
    split = json.loads(run(TWO, env, str(tiny_moe)))
    assert sum(split) == 5
    assert min(split) > 0
