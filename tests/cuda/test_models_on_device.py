"""Models of which a GPU (the stand-in) has the FFNs of dense layers and the output, against the CPU alone."""

import json

import numpy as np
import pytest
from emulator import FULL, needs_gxx, only_in_full
from standin import environment, ikq_command, run

import ikq

pytestmark = needs_gxx

# everything but the attention
PLACES = [r"ffn_(up|gate|down)\.=CUDA0", "^output|^token_embd=CUDA0"]

PROGRAM = """
import json, sys
import numpy as np, ikq
path, options, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
ids = list(range(3, 25))
with ikq.Model.load(path, n_ctx=64, n_threads=2, **options) as model:
    whole = model.logits(ids)
    # the same in pieces, two sequences at once, and hidden states with logits made of them afterwards
    first, second = model.new_sequence(), model.new_sequence()
    model.step([(first, ids[:9], "none"), (second, ids[:3], "none")])
    pieces = model.step([(first, ids[9:], "last"), (second, ids[3:12], "last")])
    hidden = model.step([(model.new_sequence(), ids, "hidden")])[0]
    devices = sorted({p.device for p in model.explain().placement})
np.savez(out, whole=whole, first=pieces[0], second=pieces[1], hidden=hidden, devices=devices)
"""


def results(path, options, tmp_path, name):
    out = tmp_path / f"{name}.npz"
    run(PROGRAM, environment(), str(path), json.dumps(options), str(out))
    return np.load(out)


def fixture(name: str):
    from model_files import path

    return path(name)


@pytest.mark.parametrize(
    ("name", "ftype"),
    [
        ("llama/llama-bf16", None),
        ("llama/llama-bf16", "IQ4_KS"),
        ("llama/llama-bf16", "Q4_K_M"),
        ("qwen2/qwen2-f32", None),
        ("qwen3/qwen3-bf16", "Q8_0"),
    ],
)
def test_dense_models(name, ftype, tmp_path):
    path = fixture(name)
    if ftype:
        ikq.quantize_file(path, tmp_path / "model.gguf", ftype)
        path = tmp_path / "model.gguf"
    gpu = results(path, {"override_tensor": PLACES}, tmp_path, "gpu")
    cpu = results(path, {}, tmp_path, "cpu")
    exact = results(path, {"compute": "f32"}, tmp_path, "exact")
    assert set(gpu["devices"]) == {"CPU", "CUDA0"}
    for key in ("whole", "first", "second", "hidden"):
        # floats differ by the order of sums; codes of 8 bits as much as the CPU's own differ from float32 products
        allowed = 1e-4 if ftype is None else 2 * distance(cpu[key], exact[key]) + 1e-4
        assert distance(gpu[key], exact[key]) <= allowed, key
    # what stands beside a sequence, and how it is cut, does not show
    assert np.array_equal(gpu["first"][0], gpu["whole"][-1])
    assert np.array_equal(gpu["second"][0], gpu["whole"][11])


def distance(a, b) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


def by_token(a, b):
    return np.array([distance(x, y) for x, y in zip(a, b, strict=True)])


def test_devices_that_are_not_there_are_refused(tiny_moe):
    env = environment()
    arguments = ("run", "-m", str(tiny_moe), "-p", "import", "-n", "1")
    done = ikq_command(env, *arguments, "-dev", "CUDA7", "-ot", "^output=CUDA7")
    assert done.returncode == 1
    assert "there is no device CUDA7; there are CPU, CUDA0" in done.stderr
    done = ikq_command(env, *arguments, "-dev", "CUDA+0", "-ngl", "99")
    assert done.returncode == 2
    assert "there is no device CUDA+0" in done.stderr
    done = ikq_command(env, *arguments, "-dev", "CUDA0,cuda0", "-ngl", "99")
    assert done.returncode == 2
    assert "CUDA0 stands there twice" in done.stderr


def test_layers_go_to_the_gpu_that_is_there(tiny_moe):
    """`-ngl` alone finds it; the same text, and saved sequences and shifts of positions work."""
    env = environment()
    arguments = ("run", "-m", str(tiny_moe), "-p", "import sys", "-n", "12", "--temp", "0", "--no-perf")
    there = ikq_command(env, *arguments, "-ngl", "99")
    assert there.returncode == 0, there.stderr
    assert there.stdout == ikq_command(env, *arguments).stdout
    plan = ikq_command(env, *arguments, "-ngl", "99", "--dry-run")
    assert plan.returncode == 0
    assert "CUDA0" in plan.stdout


MOVED = """
import json, sys
import numpy as np, ikq
path, options, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
ids = list(range(3, 43))
with ikq.Model.load(path, n_ctx=600, n_threads=2, **options) as model:
    def step(sequence, part):
        return model.step([(sequence, part, "all")])[0]
    first = model.new_sequence()
    step(first, ids)
    first.save(folder + "/sequence")
    fork = first.fork()
    fork.truncate(20)
    forked = step(fork, ids[20:])
    loaded = model.load_sequence(folder + "/sequence")
    loaded.shift(4, 10)
    shifted = step(loaded, ids[:6])
    # a page is passed, and what lies in it is moved
    long = model.new_sequence()
    step(long, (ids * 8)[:260])
    long.shift(3, 50)
    across = step(long, ids[:6])
np.savez(folder + "/out.npz", forked=forked, shifted=shifted, across=across)
"""


def same_on_both(program, name, tmp_path):
    """What a program writes with a model on the GPU is what it writes on the CPU, with a cache of floats. Returns it."""
    floats = {"cache_type_k": "f32", "cache_type_v": "f32"}
    gpu = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": 99}
    found = []
    for i, options in enumerate((floats | gpu, floats | {"compute": "f32"})):
        folder = tmp_path / str(i)
        folder.mkdir()
        run(program, environment(), str(fixture(name)), json.dumps(options), str(folder), timeout=1500)
        found.append(dict(np.load(folder / "out.npz")))
    for key, value in found[1].items():
        assert distance(found[0][key], value) <= 1e-4, key
    return found[0]


@only_in_full
@pytest.mark.parametrize("name", ["llama/llama-bf16", "deepseek3/deepseek3-bf16"])
def test_rotated_keys_are_moved(name, tmp_path):
    """Shifts turn keys back, rotate them and turn them again: as near to the floats as the CPU comes."""
    gpu = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": 99}
    few, floats = ({"cache_type_k": t, "cache_type_v": t} for t in ("q6_0", "f32"))
    found = {}
    for case, options in {"gpu": few | gpu, "cpu": few, "exact": floats | {"compute": "f32"}}.items():
        folder = tmp_path / case
        folder.mkdir()
        run(MOVED, environment(), str(fixture(name)), json.dumps(options), str(folder), timeout=1200)
        found[case] = np.load(folder / "out.npz")
    for key in found["exact"].files:
        gpu, cpu = (by_token(found[case][key], found["exact"][key]) for case in ("gpu", "cpu"))
        usual = np.median(cpu)
        assert np.median(gpu) <= 2 * usual + 1e-4, key
        # where two experts are nearly as good for a token, rounding decides which one it takes, on the CPU too
        n_others = 0 if name.startswith("llama") else max(1, int((cpu > 4 * usual).sum()))
        assert (gpu > 4 * usual + 1e-4).sum() <= n_others, (key, gpu, cpu)


@only_in_full
@pytest.mark.parametrize("name", ["llama/llama-bf16", "deepseek2-lite/deepseek2-lite-bf16"])
def test_sequences_on_a_gpu(name, tmp_path):
    """Forked, taken back, saved, loaded and shifted: what the CPU gives, with a cache of floats."""
    same_on_both(MOVED, name, tmp_path)


RECURRENT = """
import json, sys
import numpy as np, ikq
path, options, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
ids = [3 + i * 7 % 40 for i in range(70)]
with ikq.Model.load(path, n_ctx=128, n_threads=2, n_ubatch=7, **options) as model:
    def step(sequence, part):
        return model.step([(sequence, part, "all")])[0]
    first = model.new_sequence()
    whole = step(first, ids)
    # back within the chunk, and to before it (from a snapshot or from the start)
    fork = first.fork()
    fork.truncate(66)
    near = step(fork, ids[66:])
    far = model.new_sequence()
    step(far, ids[:40])
    step(far, [5] * 9)
    far.truncate(far.rewindable(40))
    again = step(far, ids[far.n_past:])
    fork.save(folder + "/sequence")
    loaded = model.load_sequence(folder + "/sequence")
    behind = step(loaded, ids[:5])
    same = step(fork, ids[:5])
    by_token = model.new_sequence()
    single = np.concatenate([step(by_token, ids[i : i + 1]) for i in range(35)])
np.savez(folder + "/out.npz", whole=whole, near=near, again=again[-20:], behind=behind, same=same, single=single)
"""


@pytest.mark.parametrize(
    "name", ["qwen3next/qwen3next-bf16", *(["qwen35moe/qwen35moe-bf16"] if FULL else [])]
)
def test_sequences_of_recurrent_models(name, tmp_path):
    """In ubatches of 7, token by token, taken back, forked, saved and loaded: the bits of the whole."""
    there = same_on_both(RECURRENT, name, tmp_path)
    assert np.array_equal(there["near"], there["whole"][66:])
    assert np.array_equal(there["again"], there["whole"][50:])
    assert np.array_equal(there["single"], there["whole"][:35])
    assert np.array_equal(there["behind"], there["same"])


def test_the_output_of_a_mixture_of_experts(tiny_moe):
    """The text of a model whose output is on the GPU; and the plan tells the bytes."""
    env = environment()
    arguments = ("run", "-m", str(tiny_moe), "-p", "import sys", "-n", "12", "--temp", "0", "--no-perf")
    there = ikq_command(env, *arguments, "-ot", "^output|^token_embd=CUDA0")
    assert there.returncode == 0, there.stderr
    assert there.stdout == ikq_command(env, *arguments).stdout
    plan = ikq_command(env, *arguments, "-ot", "^output|^token_embd=CUDA0", "--dry-run")
    assert plan.returncode == 0
    assert "CUDA0" in plan.stdout


def test_a_gpu_without_memory(tiny_moe):
    done = ikq_command(
        environment(IKQ_STANDIN_MEMORY="1000000"),
        *(
            "run",
            "-m",
            str(tiny_moe),
            "-p",
            "a",
            "-n",
            "1",
            "-ot",
            "^output|^token_embd=CUDA0",
        ),
    )
    assert done.returncode == 2
    assert "bytes of GPU memory are needed for weights, and 1000000 are free" in done.stderr


def test_naming_a_gpu_where_there_is_none(tiny_moe):
    env = {k: v for k, v in environment().items() if k != "LD_LIBRARY_PATH"} | {"IKQ_CUDA": "0"}
    done = ikq_command(
        env, "run", "-m", str(tiny_moe), "-p", "a", "-n", "1", "-dev", "CUDA0", "-ot", "^output=CUDA0"
    )
    assert done.returncode == 1
    assert "no GPU is usable: GPUs are switched off" in done.stderr
