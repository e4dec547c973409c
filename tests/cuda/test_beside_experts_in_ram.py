"""A step of few tokens with experts in RAM: the GPU (the stand-in) has the shared expert to compute while the CPU computes
those that were chosen, and the sum is the same."""

import numpy as np
import pytest
from emulator import needs_gxx
from model_files import Changed, reader
from standin import environment, run

pytestmark = needs_gxx

N_LAYERS, N_STEPS, WIDE = 2, 6, 2048

PROGRAM = """
import json, sys
import numpy as np, ikq
path, out, n_steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
with ikq.Model.load(path, n_ctx=64, n_threads=1, devices=["CPU", "CUDA0"], n_gpu_layers=99, cpu_moe=True) as model:
    text = model.new_sequence()
    found = [model.step([(text, [3 + i], "last")])[0] for i in range(n_steps)]
np.save(out, np.concatenate(found))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A model with a shared expert, whose other experts take a CPU longer than all else: they are 32 times as large."""
    changed, rng = Changed(reader("qwen2moe/qwen2moe-bf16")), np.random.default_rng(4)
    for layer in range(N_LAYERS):
        for name in ("gate", "up", "down"):
            tensor = f"blk.{layer}.ffn_{name}_exps.weight"
            n_experts, *sizes = changed.tensors[tensor].shape
            n_ff = 0 if name != "down" else 1
            sizes[n_ff] = WIDE
            w = rng.standard_normal((n_experts, *sizes), dtype=np.float32)
            changed.add(tensor, w / np.float32(np.sqrt(sizes[1])))
    changed.set("expert_feed_forward_length", WIDE)
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    changed.write(path)
    return path


def steps(file, folder, **more):
    """Logits of single tokens one after another, and the driver's log: nanoseconds and words of each line."""
    log, out = folder / "log", folder / "found.npy"
    log.unlink(missing_ok=True)
    env = environment(IKQ_STANDIN_LOG=str(log), IKQ_STANDIN_TIMES="1", **more)
    run(PROGRAM, env, str(file), str(out), str(N_STEPS))
    lines = [line.split() for line in log.read_text().splitlines()]
    return np.load(out), [(int(words[0]), words[1:]) for words in lines]


def waits(log):
    """What the host asked for between the ends of waits and the copy of the experts' sum behind them.

    Only where the shared expert is in between: names of kernels and graphs, and microseconds before the first and behind
    the last one.
    """
    found = []
    for i, (ended, words) in enumerate(log):
        if words[0] != "finished":
            continue
        asked = []
        for time, words in log[i + 1 :]:
            if words[0] not in ("kernel", "graph"):
                break
            asked.append((time, words[2] if words[0] == "kernel" else "graph"))
        # the copy is the sum; behind it the layer goes on
        if asked and words[0] == "copy" and any(name in ("graph", "sigmoid_of") for _, name in asked):
            names = [name for _, name in asked]
            found.append((names, (asked[0][0] - ended) / 1000, (time - asked[-1][0]) / 1000))
    return found


def test_the_shared_expert_is_under_way_while_the_cpu_computes(file, tmp_path):
    """It is launched as soon as the choices are there; nobody waits for it before the sum of the others is sent behind it."""
    launched, log = steps(file, tmp_path, IKQ_CUDA_GRAPHS="0")
    found = waits(log)
    assert len(found) == N_STEPS * N_LAYERS
    for names, _, _ in found:
        assert [name.split("_")[0] for name in names] == ["upgate", "mmv", "sigmoid", "down"]
    before, behind = (np.median([times[which] for times in found]) for which in (1, 2))
    # the CPU's experts take most of the time, and it is behind the launches
    assert behind > 3 * before, (before, behind)

    replayed, log = steps(file, tmp_path)
    found = waits(log)[-N_LAYERS:]
    assert [names for names, _, _ in found] == [["graph"]] * N_LAYERS
    # one thing after another: the same sum in the same order
    waited, log = steps(file, tmp_path, IKQ_CUDA_SYNC="1")
    assert not waits(log)
    assert np.array_equal(launched, replayed)
    assert np.array_equal(launched, waited)
    assert np.isfinite(launched).all()
