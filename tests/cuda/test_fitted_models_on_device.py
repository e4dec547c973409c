"""`fit` on a GPU of little memory (the stand-in): it holds what was predicted, and computes what was chosen."""

import json

import numpy as np
import pytest
from emulator import FULL, needs_gxx
from model_files import path
from standin import environment, ikq_command, run

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

# four tokens, first with `fit` and then with the options that it tells
PROGRAM = """
import ctypes, json, sys
import numpy as np, ikq
path, options, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
plan = ikq.Model.plan(path, fit=True, fit_margin=0, n_ctx=300, n_ubatch=4, **options)

cuda, context = ctypes.CDLL("libcuda.so"), ctypes.c_void_p()
assert cuda.cuInit(0) == cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
def used():
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    return total.value - free.value

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
np.savez(out, loaded=loaded, held=held, weights=fitted.weights, step=fitted.step, needed=fitted.needed, **found)
"""


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
    # two pages hold 300 positions, one is in use; buffers are as large as was said, or somewhat smaller
    step = found["fitted used"] - found["held"]
    assert found["step"] / 2 <= step <= found["step"]


def test_the_command(tiny_moe):
    """The GPU's memory is what the driver says."""
    env = environment(IKQ_STANDIN_MEMORY=str(18 * 2**20))
    same = ("run", "-m", str(tiny_moe), "-p", "import", "-n", "1", "--temp", "0", "--no-perf", "-ub", "4")
    done = ikq_command(env, *same, "-c", "64", "--fit", "--fit-margin", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ikq_command(env, *same, "-c", "64").stdout
    assert r"note: --fit: the same as -c 64 -ngl 5 -ot 'blk\.3\.ffn_.*_exps=CPU': CUDA0 holds" in done.stderr
    none = ikq_command(env, *same, "--fit")
    assert (none.returncode, none.stdout) == (1, "")
    assert "CUDA0 has 18.0 MiB" in none.stderr
