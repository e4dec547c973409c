"""Models some of whose products are cuBLAS's (the stand-ins), because the user names a table; and none without."""

import json

import numpy as np
import pytest
from emulator import needs_gxx, only_in_full
from model_files import path
from model_runs import distance
from standin import environment, ikq_command, run
from test_fitted_models_on_device import BUFFERS
from test_whole_models_on_device import ALL, EXACT

import ikq

pytestmark = [needs_gxx, pytest.mark.timeout(600)]

N = 66
"""Tokens of a step that is no graph."""


def write_table(folder, columns_from, smallest=(1, 1), **other):
    """A table of the stand-in device."""
    table = {"ikq_cuda_blas": 1, "device": "ikq emulator 0", "compute_capability": "9.0"}
    table |= {"n_multiprocessors": 4, "smallest": smallest, "from": columns_from, "measured": []} | other
    file = folder / "cublas.json"
    file.write_text(json.dumps(table))
    return file


SMALL, GRAPH = 9, 64
"""Tokens of steps that are in tiles, but too few."""

PROGRAM = """
import json, sys
import numpy as np, ikq
from ikq import _ikq
path, cases, steps, out = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
found, told = {}, {}
for name, options in cases.items():
    with ikq.Model.load(path, n_ctx=128, n_ubatch=128, n_threads=2, **options) as model:
        told[name] = []
        for i, n in enumerate(steps):
            before = _ikq.cuda_counts()["blas_products"]
            found[f"{name} {i}"] = model.logits([3 + (i * i) % 200 for i in range(n)])
            told[name].append(_ikq.cuda_counts()["blas_products"] - before)
np.savez(out, **found)
print(json.dumps(told))
"""


def computed(file, cases, tmp_path, steps=(N,), **env):
    """Logits of steps of so many tokens by case and step, and how many products were cuBLAS's in each."""
    out = tmp_path / "found.npz"
    program = (str(file), json.dumps(cases), json.dumps(steps), str(out))
    told = json.loads(run(PROGRAM, environment(**env), *program))
    with np.load(out) as f:
        return dict(f), told


def quantized(name, tmp_path, ftype="Q8_0"):
    ikq.quantize_file(path(name), tmp_path / "model.gguf", ftype)
    return tmp_path / "model.gguf"


N_LAYERS = 2
# products of a layer that all tokens take part in: queries, keys, values, output; up, gate and down of a dense layer, or of
# a shared expert
EACH = 7


def usual_distance(a, b):
    """Of tokens: where two experts are nearly as good for one, rounding decides which one it takes."""
    return float(np.median([distance(x, y) for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        # memory for products comes with the first step that has some, and stays behind a small one
        ("llama/llama-bf16", [SMALL, N, GRAPH, N]),
        # a shared expert beside chosen ones
        ("qwen2moe/qwen2moe-bf16", [N]),
        # biases
        pytest.param("qwen2/qwen2-f32", [N], marks=only_in_full),
    ],
)
def test_a_prompt(name, steps, tmp_path):
    """As near to exact logits as without, and nothing else than without in smaller steps."""
    file = quantized(name, tmp_path)
    whole, _ = computed(file, {"exact": EXACT, "cpu": {}}, tmp_path)
    without, told = computed(file, {"gpu": ALL}, tmp_path, steps[:3])
    assert not any(told["gpu"]), "nobody has asked for it"

    table = write_table(tmp_path, {"Q8_0": N})
    found, told = computed(file, {"gpu": ALL}, tmp_path, steps, IKQ_CUDA_BLAS=str(table))
    assert told["gpu"] == [EACH * N_LAYERS * (n == N) for n in steps]
    at, exact = steps.index(N), whole["exact 0"]
    assert usual_distance(found[f"gpu {at}"], exact) <= 2 * usual_distance(whole["cpu 0"], exact) + 1e-4
    for i, n in enumerate(steps[:3]):
        assert np.array_equal(found[f"gpu {i}"], without[f"gpu {i}"]) == (n != N), n
    assert np.array_equal(found[f"gpu {at}"], found[f"gpu {len(steps) - 1}"])


def test_matrices_that_were_not_measured(tmp_path):
    """Smaller ones than the smallest, other types, fewer columns, and a path that is empty."""
    file, name = quantized("llama/llama-bf16", tmp_path), "gpu"
    with ikq.GGUFReader(file) as reader:
        n_ff, n_embd = reader.tensors["blk.0.ffn_up.weight"].shape
    assert n_ff > n_embd
    wide = write_table(tmp_path, {"Q8_0": N}, smallest=(n_ff, n_embd))
    _, told = computed(file, {name: ALL}, tmp_path, IKQ_CUDA_BLAS=str(wide))
    assert told[name] == [2 * N_LAYERS], "up and gate"
    for columns_from in ({"Q4_K": 65}, {"Q8_0": N + 1}):
        _, told = computed(
            file, {name: ALL}, tmp_path, IKQ_CUDA_BLAS=str(write_table(tmp_path, columns_from))
        )
        assert told[name] == [0], columns_from
    _, told = computed(file, {name: ALL}, tmp_path, IKQ_CUDA_BLAS="")
    assert told[name] == [0]


def test_the_order_of_work(tmp_path):
    """A product comes behind what decodes its weights and its columns; pieces of a matrix take turns in one place."""
    file, log = quantized("llama/llama-bf16", tmp_path), tmp_path / "log"
    table = write_table(tmp_path, {"Q8_0": N})
    pieces = {"IKQ_CUDA_BLAS_KIB": "16", "IKQ_CUDA_BLAS": str(table)}
    whole, _ = computed(file, {"gpu": ALL}, tmp_path, IKQ_CUDA_BLAS=str(table))
    found, told = computed(file, {"gpu": ALL}, tmp_path, **pieces, IKQ_STANDIN_LOG=str(log))
    assert told["gpu"][0] > 100, "pieces of a few rows"
    # the stand-in's sums do not depend on how many rows there are
    assert np.array_equal(found["gpu 0"], whole["gpu 0"])
    lines = [line.split() for line in log.read_text().splitlines()]
    at = [i for i, line in enumerate(lines) if line[0] == "blas"]
    assert {lines[i][1] for i in at} == {"0"}, "one stream"
    for i in at:
        assert lines[i - 1][:3] == ["kernel", "0", "dequant_q8_0_bf16"] or lines[i - 1][2] == "begin_sums"
        assert int(lines[i][3]) == N


def test_memory_is_what_was_told(tmp_path):
    """Room for decoded weights, columns and cuBLAS is part of a step's, to the byte, and only where a table is named."""
    file, options = quantized("qwen2moe/qwen2moe-bf16", tmp_path), "{}"
    found = {}
    for case, columns_from in (("never", {}), ("far", {"Q8_0": N + 1}), ("now", {"Q8_0": N})):
        table = str(write_table(tmp_path, columns_from))
        told, taken = json.loads(run(BUFFERS, environment(IKQ_CUDA_BLAS=table), str(file), str(N), options))
        assert told == taken, case
        found[case] = told
    told, taken = json.loads(run(BUFFERS, environment(), str(file), str(N), options))
    assert found["never"] == found["far"] == told == taken
    assert found["now"] > told + (32 << 20)
    # in pieces of fewer bytes
    env = environment(IKQ_CUDA_BLAS=table, IKQ_CUDA_BLAS_KIB="16")
    told, taken = json.loads(run(BUFFERS, env, str(file), str(N), options))
    assert told == taken < found["now"]


def test_fit_leaves_the_room(tmp_path):
    """What the dry run of `--fit` tells grows by cuBLAS's memory; a GPU without room for that gets fewer layers."""
    file = quantized("llama/llama-bf16", tmp_path)
    table = str(write_table(tmp_path, {"Q8_0": N}))
    command = ("run", "-m", str(file), "-p", "a", "-n", "1", "-ub", str(N), "-c", "128", "--fit")
    told = {}
    for blas in (None, table):
        env = environment(IKQ_STANDIN_MEMORY=str(24 << 20), IKQ_CUDA_BLAS=blas)
        told[blas] = ikq_command(env, *command, "--fit-margin", "0", "--dry-run")
    assert told[None].returncode == 0, told[None].stderr
    assert "CUDA0" in told[None].stdout
    assert told[table].returncode == 2
    assert "CUDA0 has 24.0 MiB free" in told[table].stderr, told[table].stderr


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"device": "NVIDIA H200"}, "it is of NVIDIA H200 (compute capability 9.0, 4 multiprocessors)"),
        ({"compute_capability": "8.6"}, "and this is ikq emulator 0 (compute capability 9.0"),
        ({"ikq_cuda_blas": 2}, "it has form 2"),
        ({"from": {"Q9_9": 100}}, "there is no type Q9_9"),
        ({"from": {"F16": 100}}, "F16 is not multiplied by cuBLAS"),
        ({"from": "Q8_0"}, "JSON, but no table of `ikq bench cuda`: invalid type"),
    ],
)
def test_tables_that_are_refused(other, words, tmp_path, tiny_moe):
    env = environment(IKQ_CUDA_BLAS=str(write_table(tmp_path, **{"columns_from": {}} | other)))
    done = ikq_command(env, "run", "-m", str(tiny_moe), "-p", "a", "-n", "1", "-ngl", "99")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"IKQ_CUDA_BLAS={tmp_path}/cublas.json: " in done.stderr
    assert words in done.stderr


def test_files_and_libraries_that_are_not_there(tmp_path, tiny_moe):
    command = ("run", "-m", str(tiny_moe), "-p", "a", "-n", "1", "-ngl", "99")
    (tmp_path / "none").write_text("a: 1")
    (tmp_path / "cut.json").write_text('{"ikq_cuda_blas": 1, "dev')
    for name, words in (
        ("none.json", "No such file"),
        ("cut.json", "the file is cut: it ends at line 1, column 25"),
        ("none", "no JSON text"),
    ):
        done = ikq_command(environment(IKQ_CUDA_BLAS=str(tmp_path / name)), *command)
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
        assert f"IKQ_CUDA_BLAS={tmp_path}/{name}: " in done.stderr
        assert f"`ikq bench cuda -o {tmp_path}/{name}` measures a new table" in done.stderr
    table = str(write_table(tmp_path, {"BF16": 65}))
    done = ikq_command(environment(IKQ_CUDA_BLAS=table, IKQ_CUBLAS="/nowhere"), *command)
    assert (done.returncode, "pip install ikq[cublas]" in done.stderr) == (1, True), done.stderr
    # nothing is looked for where nobody wants it
    assert ikq_command(environment(IKQ_CUBLAS="/nowhere"), *command).returncode == 0
    # nor on the CPU, whatever the variable says
    done = ikq_command(environment(IKQ_CUDA_BLAS=str(tmp_path / "none.json")), *command[:-2])
    assert done.returncode == 0
