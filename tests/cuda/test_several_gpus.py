"""Models of which two GPUs (stand-ins) have layers: the bits of one GPU, whatever goes where."""

import json

import numpy as np
import pytest
from emulator import FULL, needs_gxx
from model_files import NAMES, path
from model_runs import results
from standin import environment, ikq_command, run
from test_whole_models_on_device import ALL

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

MIB = 2**20
BOTH = {"devices": ["CPU", "CUDA0", "CUDA1"], "n_gpu_layers": 99}

# the emulator takes half a minute and more for the others
QUICK = ("qwen2moe/qwen2moe-bf16",)


@pytest.mark.parametrize("name", NAMES if FULL else QUICK)
def test_two_gpus_give_the_bits_of_one(name, tmp_path):
    moved = {"override_tensor": [r"blk\.[02]\.ffn=CUDA1"]}
    cases = {
        "one": ALL,
        "halves": BOTH | {"tensor_split": [1, 1]},
        # parts of layers that the first GPU has
        "parts": BOTH | moved | {"tensor_split": [1, 0]},
    }
    if FULL:
        cases["order"] = BOTH | {"tensor_split": [1, 3], "devices": ["CPU", "CUDA1", "CUDA0"]}
    found = results(path(name), cases, tmp_path, IKQ_STANDIN_DEVICES="2")
    for case in cases.keys() - {"one"}:
        assert set(found[f"{case} devices"]) >= {"CUDA0", "CUDA1"}, case
        for what in ("whole", "pieces", "eight", "hidden"):
            assert np.array_equal(found[f"{case} {what}"], found[f"one {what}"]), (case, what)


PLACED = """
import json, sys, ikq
options = json.loads(sys.argv[2])
plan = ikq.Model.plan(sys.argv[1], n_ctx=64, n_gpu_layers=99, **options)
print(json.dumps({p.stage: p.device for p in plan.placement if "attention" in p.stage or p.stage == "output"}))
"""


def placed(tiny_moe, options, **more):
    env = environment(IKQ_STANDIN_DEVICES="2", **more)
    return list(json.loads(run(PLACED, env, str(tiny_moe), json.dumps(options))).values())


def test_free_memory_divides_layers(tiny_moe):
    """The model has four layers and an output. What other programs have does not count."""
    both = {"devices": ["CPU", "CUDA0", "CUDA1"]}
    assert placed(tiny_moe, both) == ["CUDA0"] * 3 + ["CUDA1"] * 2
    memory = f"{600 * MIB},{400 * MIB}"
    assert placed(tiny_moe, both, IKQ_STANDIN_MEMORY=memory) == ["CUDA0"] * 3 + ["CUDA1"] * 2
    used = {"IKQ_STANDIN_MEMORY": memory, "IKQ_STANDIN_USED": f"{500 * MIB},0"}
    assert placed(tiny_moe, both, **used) == ["CUDA0"] + ["CUDA1"] * 4
    # what is said is what counts
    assert placed(tiny_moe, both | {"tensor_split": [4, 1]}, **used) == ["CUDA0"] * 4 + ["CUDA1"]


def test_the_command(tiny_moe):
    env = environment(IKQ_STANDIN_DEVICES="2")
    same = ("run", "-m", str(tiny_moe), "-p", "import", "-n", "2", "--temp", "0", "--no-perf", "-ngl", "all")
    plan = ikq_command(env, *same, "-ts", "3,2", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    lines = [line.split() for line in plan.stdout.splitlines()]
    assert ["layers", "0-2,", "experts", "CUDA0"] in [line[:4] for line in lines]
    assert ["layer", "3,", "experts", "CUDA1"] in [line[:4] for line in lines]
    assert any(line[:2] == ["output", "CUDA1"] and line[-1] == "tensor_split=3,2" for line in lines)
    assert "buffers of a step on CUDA1: 0.0" in plan.stdout
    # `-dev` chooses, and no list takes all
    one = ikq_command(env, *same, "-dev", "CUDA1")
    assert one.returncode == 0, one.stderr
    assert ikq_command(env, *same, "-ts", "1/1").stdout == one.stdout
    info = ikq_command(environment(IKQ_STANDIN_DEVICES="2", IKQ_STANDIN_USED=f"0,{512 * MIB}"), "cuda")
    assert "ikq emulator 0, compute capability 9.0, 1.0 of 1.0 GiB free" in info.stdout
    assert "ikq emulator 1, compute capability 9.0, 0.5 of 1.0 GiB free" in info.stdout
