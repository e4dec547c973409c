"""What goes to GPUs by `-dev`, `-ngl` and `-ot`, the memory that it is held against, and what is told where it does not fit."""

import json
import re

import pytest
from emulator import needs_gxx
from standin import environment, ikq_command, run

pytestmark = needs_gxx

MIB = 2**20


def text_of(env, model, *flags):
    """The text, and the devices that explain names."""
    common = ("-c", "64", *flags)
    done = ikq_command(
        env, "run", "-m", model, "-p", "import", "-n", "2", "--temp", "0", "--no-perf", *common
    )
    assert done.returncode == 0, done.stderr
    told = ikq_command(env, "explain", model, "--json", *common)
    return done.stdout, {p["stage"]: p["device"] for p in json.loads(told.stdout)["placement"]}


def test_gpus_that_are_named_compute(tiny_moe):
    """By `-dev`, whatever its spelling, all layers; by `-ot` what the rule says, without `-dev`."""
    env = environment()
    expected, on_cpu = text_of(env, tiny_moe)
    assert set(on_cpu.values()) == {"CPU"}
    for name in ("CUDA0", "cuda0", "CPU,CUDA00"):
        text, devices = text_of(env, tiny_moe, "-dev", name)
        assert text == expected
        assert {stage for stage, device in devices.items() if device == "CPU"} == {"embedding"}
    text, devices = text_of(env, tiny_moe, "-ot", "exps=cuda0")
    assert text == expected
    assert {stage for stage, device in devices.items() if device == "CUDA0"} == {
        f"layer {i}, experts" for i in range(4)
    }
    for flags in (("-dev", "none", "-ngl", "99"), ("-dev", "CUDA0", "-ngl", "0")):
        assert set(text_of(env, tiny_moe, *flags)[1].values()) == {"CPU"}


LOADS = """
import sys, ikq
n_ctx, options = int(sys.argv[2]), eval(sys.argv[3])
with ikq.Model.load(sys.argv[1], n_ctx=n_ctx or None, n_ubatch=8, **options) as model:
    model.logits([1, 2, 3])
    print(model.n_ctx, model.sequence_bytes(1000))
"""
ALL = "dict(devices=['CUDA0'])"


def test_a_context_is_held_against_the_memory_where_the_cache_is(tiny_moe):
    """RAM does not matter to a cache on a GPU, and what a GPU has not to one in RAM."""
    n_ctx = 4_000_000_000
    huge = environment(IKQ_STANDIN_MEMORY=str(16 * 2**40))
    found = run(LOADS, huge, str(tiny_moe), str(n_ctx), ALL).split()
    assert int(found[0]) == n_ctx
    of_thousand = int(found[1])
    # a part in RAM is too large for that
    half = ikq_command(huge, "run", "-m", tiny_moe, "-p", "a", "-n", "1", "-c", str(n_ctx), "-ngl", "2")
    assert half.returncode == 2
    assert re.search(
        rf"n_ctx={n_ctx}: the cache would take \d+ bytes of RAM, where \d+ are free; ", half.stderr
    )
    assert "more layers on GPUs (n_gpu_layers, -ngl)" in half.stderr
    # and a GPU of 64 MiB does not hold what RAM would
    n_ctx = 64 * MIB // of_thousand * 1000
    small = environment(IKQ_STANDIN_MEMORY=str(64 * MIB))
    command = ("run", "-m", tiny_moe, "-p", "a", "-n", "1", "--no-perf", "-ub", "8", "-c", str(n_ctx))
    assert ikq_command(small, *command).returncode == 0
    done = ikq_command(small, *command, "-dev", "CUDA0")
    assert done.returncode == 2
    found = re.search(
        r"the cache would take (\d+) bytes of CUDA0, where (\d+) are free; (.*)$", done.stderr, re.M
    )
    assert found, done.stderr
    assert int(found[1]) > int(found[2]) < 64 * MIB
    for way in ("-c", "-ctk, -ctv", "-ngl"):
        assert way in found[3]
    # unless some of it is elsewhere, or smaller
    assert ikq_command(small, *command, "-dev", "CUDA0", "-nkvo").returncode == 0
    assert ikq_command(small, *command, "-dev", "CUDA0", "-ctk", "q4_0", "-ctv", "q4_0").returncode == 0


def test_the_context_that_nobody_asks_for_fits_each_device(tiny_moe):
    """Half, a quarter, ... of what it was trained for, by a quarter of the GPU's free memory."""
    trained = 1 << 16
    of = f"dict(override_kv={{'qwen3moe.context_length': {trained}}}"
    env = environment(IKQ_STANDIN_MEMORY=str(88 * MIB))
    found, of_thousand = map(int, run(LOADS, env, str(tiny_moe), "0", f"{of}, devices=['CUDA0'])").split())
    # the weights take 15.5 MiB; pages have 256 positions
    quarter, cache = (88 - 15.5) * MIB / 4, of_thousand / 1024 * found
    assert found in {trained // 2**i for i in range(1, 8)}
    assert cache <= quarter < 2 * cache
    # half of the layers are half of the cache
    half = int(run(LOADS, env, str(tiny_moe), "0", f"{of}, devices=['CUDA0'], n_gpu_layers=2)").split()[0])
    assert half == 2 * found
    assert int(run(LOADS, env, str(tiny_moe), "0", f"{of})").split()[0]) == trained


def test_what_does_not_fit_a_gpu_is_told_with_the_way_out(tiny_moe):
    """Weights, buffers of steps and the cache: the device, the bytes, what to do, and one exit code."""
    command = ("run", "-m", tiny_moe, "-p", "import " * 60, "-n", "1", "-c", "512", "-dev", "CUDA0")
    plan = ikq_command(environment(), *command, "--dry-run").stdout
    weights = int(re.search(r"weights: .*\((\d+) bytes\)", plan)[1])
    buffers = int(re.search(r"buffers of a step on CUDA0: .*\((\d+) bytes\)", plan)[1])
    cache = int(re.search(r"cache: .*\((\d+) bytes\)", plan)[1])
    assert cache < buffers
    for memory, what in (
        (weights // 2, "weights"),
        (weights + cache + MIB // 2, "a step|experts on the way|columns|attention"),
    ):
        done = ikq_command(environment(IKQ_STANDIN_MEMORY=str(memory)), *command)
        assert (done.returncode, done.stdout.strip()) == (2, ""), done.stderr
        told = re.search(
            rf"^error: CUDA0: (\d+) bytes of GPU memory are needed for (?:{what}), and (\d+) are free; (.*)$",
            done.stderr,
            re.M,
        )
        assert told, done.stderr
        assert int(told[2]) < int(told[1])
        for way in ("-ngl", "--n-cpu-moe", "-ot exps=CPU", "-c", "--fit"):
            assert way in told[3]


CACHE = """
import sys, ikq
with ikq.Model.load(sys.argv[1], n_ctx=64, n_ubatch=1, devices=["CUDA0"]) as model:
    sequences = []
    try:
        while len(sequences) < 40:
            sequences.append(model.new_sequence())
            model.step([(sequences[-1], [1], "none")])
    except ikq.DeviceMemoryError as error:
        assert isinstance(error, ikq.RefusedError) and isinstance(error, ikq.DeviceError)
        print(len(sequences), error)
"""


def test_a_cache_that_does_not_fit_names_the_gpu(tiny_moe):
    """A page of a sequence has half a MiB; beside weights and buffers there is room for some, and not for 40."""
    found = run(CACHE, environment(IKQ_STANDIN_MEMORY=str(24 * MIB)), str(tiny_moe))
    told = re.fullmatch(
        r"(\d+) CUDA0: (\d+) bytes of GPU memory are needed for the cache, and (\d+) are free; .*\n", found
    )
    assert told, found
    assert int(told[1]) > 2
    assert int(told[2]) > int(told[3])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MMQ_FROM", "nine", "a whole number of 0 or more"),
        ("STREAM_FROM", "-1", "a whole number of 0 or more"),
        ("SLAB_KIB", "64k", "a number of KiB, 1 or more"),
        ("SLAB_KIB", "0", "a number of KiB, 1 or more"),
        ("BLAS_KIB", "1e3", "a number of KiB, 1 or more"),
        ("SYNC", "yes", "0 or 1"),
        ("GRAPHS", "off", "0 or 1"),
    ],
)
def test_variables_that_cannot_be_read_are_refused(name, value, expected, tiny_moe):
    command = ("run", "-m", tiny_moe, "-p", "a", "-n", "1", "-dev", "CUDA0")
    for more in ((), ("--dry-run",)):
        done = ikq_command(environment(**{f"IKQ_CUDA_{name}": value}), *command, *more)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: IKQ_CUDA_{name}={value}: expected {expected}\n"
    # what is empty is as if it were not there, and the CPU alone asks for none of them
    assert ikq_command(environment(**{f"IKQ_CUDA_{name}": ""}), *command).returncode == 0
    assert ikq_command(environment(**{f"IKQ_CUDA_{name}": value}), *command[:-2]).returncode == 0


def test_the_switch_of_gpus_is_0_or_1(tiny_moe):
    command = ("run", "-m", tiny_moe, "-p", "a", "-n", "1", "-dev", "CUDA0")
    assert ikq_command(environment(IKQ_CUDA="1"), *command).returncode == 0
    done = ikq_command(environment(IKQ_CUDA="off"), *command)
    assert (done.returncode, done.stderr) == (
        1,
        "error: CUDA0: no GPU is usable: IKQ_CUDA=off: expected 0 or 1\n",
    )
    told = json.loads(ikq_command(environment(IKQ_CUDA="off"), "cuda", "status", "--json").stdout)
    assert told["reason_code"] == "variable"


@pytest.mark.parametrize("arch", ["h200", "sm_12", "sm_70", "90a", "+90", ""])
def test_architectures_that_there_are_not(arch, tiny_moe):
    done = ikq_command(environment(), "cuda", "warm", tiny_moe, "--arch", "sm_90", "--arch", arch)
    # nothing is compiled before all are read
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        f"there is no architecture `{arch}` that kernels are compiled for; there are sm_75, " in done.stderr
    )


FILLS = """
import sys, ikq
found = []
for options in eval(sys.argv[2]):
    options = dict(n_ctx=64, fit=True, fit_margin=10) | options
    plan = ikq.Model.plan(sys.argv[1], **options)
    with ikq.Model.load(sys.argv[1], **options) as model:
        loaded = model.explain().placement
    assert [p.device for p in plan.placement] == [p.device for p in loaded]
    found.append(sum(p.device == "CUDA0" for p in loaded))
print(*found)
"""


def test_nothing_is_filled_where_the_cpu_or_no_layer_is_asked_for(tiny_moe):
    """13 stages of 14 are on a GPU that is filled: all but the embedding."""
    asked = "[{}, {'n_gpu_layers': 0}, {'devices': ['CPU']}, {'devices': 'none'}, {'devices': []}, {'devices': 'CUDA0'}]"
    assert run(FILLS, environment(), str(tiny_moe), asked).split() == ["13", "0", "0", "0", "0", "13"]


def test_plans_of_what_no_memory_holds(tiny_moe):
    """Nothing of that size is laid out to tell how large it would be."""
    for flags in (("-c", "999999999999"), ("-c", "64", "-ub", "100000000000"), ("-c", "4000000000")):
        asked = ("run", "-m", tiny_moe, "-p", "x", "-n", "1", "-ngl", "99", "--dry-run", *flags)
        done = ikq_command(environment(), *asked)
        assert done.returncode == 0, done.stderr
        buffers = re.search(r"buffers of a step on CUDA0: [0-9.]+ GiB \(([0-9]+) bytes\)", done.stdout)
        assert int(buffers[1]) > 2**30


def test_a_dry_run_says_what_does_not_fit(tiny_moe):
    """What loading would refuse; and no word where all fits."""
    asked = ("run", "-m", tiny_moe, "-p", "x", "-n", "1", "--dry-run", "-c", "64")
    small = environment(IKQ_STANDIN_MEMORY=str(8 * MIB))
    done = ikq_command(small, *asked, "-ngl", "99")
    assert done.returncode == 0
    assert re.search(
        r"note: it does not fit: [0-9.]+ MiB are planned for CUDA0, and 8\.0 MiB are free", done.stderr
    )
    assert "does not fit" not in ikq_command(environment(), *asked, "-ngl", "99").stderr
    done = ikq_command(environment(), *asked[:-1], "999999999999")
    assert re.search("does not fit: .* planned for CPU", done.stderr)


def test_a_bench_names_its_backend(tiny_moe):
    done = ikq_command(
        environment(), "bench", "-m", tiny_moe, "-p", "4", "-n", "0", "-r", "1", "-ngl", "0,2", "-o", "json"
    )
    assert [row["backend"] for row in json.loads(done.stdout)] == ["CPU", "CUDA"]
