"""Models some of whose products are cuBLAS's (the stand-ins), because the user names a table; and none without."""

import json

import numpy as np
import pytest
from emulator import needs_gxx
from model_files import path
from model_runs import distance
from standin import environment, ikq_command, run
from test_fitted_models_on_device import BUFFERS
from test_whole_models_on_device import ALL, EXACT

import ikq

pytestmark = [needs_gxx, pytest.mark.timeout(600)]

N = 70
"""Tokens of a step that is no graph."""


def write_table(folder, columns_from, smallest=(1, 1), **other):
    """A table of the stand-in device."""
    table = {"ikq_cuda_blas": 1, "device": "ikq emulator 0", "compute_capability": "9.0"}
    table |= {"n_multiprocessors": 4, "smallest": smallest, "from": columns_from, "measured": []} | other
    file = folder / "cublas.json"
    file.write_text(json.dumps(table))
    return file


PROGRAM = """
import json, sys
import numpy as np, ikq
from ikq import _ikq
path, cases, n, out = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ids, found, told = [3 + (i * i) % 200 for i in range(n)], {}, {}
for name, options in cases.items():
    with ikq.Model.load(path, n_ctx=128, n_ubatch=128, n_threads=2, **options) as model:
        before = _ikq.cuda_counts()["blas_products"]
        # a small step first: memory for products comes with the larger one
        found[name + " small"] = model.logits(ids[:9])
        few = _ikq.cuda_counts()["blas_products"] - before
        found[name] = model.logits(ids)
        all_ = _ikq.cuda_counts()["blas_products"] - before
        # as many as a graph has
        found[name + " graph"] = model.logits(ids[:64])
        # the memory of the large step is still there; and another one comes
        found[name + " again"] = model.logits(ids)
        placed = [p.device for p in model.explain().placement]
        told[name] = [few, all_, _ikq.cuda_counts()["blas_products"] - before, model.memory.why]
np.savez(out, **found)
print(json.dumps(told))
"""


def computed(file, cases, tmp_path, n=N, **env):
    out = tmp_path / "found.npz"
    told = json.loads(run(PROGRAM, environment(**env), str(file), json.dumps(cases), str(n), str(out)))
    with np.load(out) as f:
        return dict(f), told


def quantized(name, tmp_path, ftype="Q8_0"):
    ikq.quantize_file(path(name), tmp_path / "model.gguf", ftype)
    return tmp_path / "model.gguf"


# products of a layer that all tokens take part in: queries, keys, values, output; up, gate and down of a dense layer, or of
# a shared expert
DENSE = {"llama/llama-bf16": 7, "qwen2/qwen2-f32": 7, "qwen2moe/qwen2moe-bf16": 7}


@pytest.mark.parametrize("name", DENSE)
def test_a_prompt(name, tmp_path):
    """Biases, up and gate, a shared expert beside chosen ones: as near to exact logits as without."""
    file = quantized(name, tmp_path)
    cases = {"exact": EXACT, "cpu": {}, "gpu": ALL}
    found, told = computed(file, cases, tmp_path)
    without, (few, all_, _, why) = found, told["gpu"]
    assert (few, all_, "cuBLAS" in why) == (0, 0, False), "nobody has asked for it"

    table = write_table(tmp_path, {"Q8_0": N})
    found, told = computed(file, {"gpu": ALL}, tmp_path, IKQ_CUDA_BLAS=str(table))
    few, all_, again, why = told["gpu"]
    with ikq.GGUFReader(file) as reader:
        n_layers = reader.metadata[f"{reader.architecture}.block_count"]
    assert (few, all_, again) == (0, DENSE[name] * n_layers, 2 * DENSE[name] * n_layers)
    assert "cuBLAS for Q8_0 from 70 columns on" in why
    exact = without["exact"]
    assert distance(found["gpu"], exact) <= 2 * distance(without["cpu"], exact) + 1e-4
    assert not np.array_equal(found["gpu"], without["gpu"])
    assert np.array_equal(found["gpu"], found["gpu again"])
    for smaller in ("small", "graph"):
        assert np.array_equal(found[f"gpu {smaller}"], without[f"gpu {smaller}"]), smaller


def test_matrices_that_were_not_measured(tmp_path):
    """Smaller ones than the smallest, other types, fewer columns, and a path that is empty."""
    file, name = quantized("llama/llama-bf16", tmp_path), "gpu"
    with ikq.GGUFReader(file) as reader:
        (n_ff, n_embd), n_layers = reader.tensors["blk.0.ffn_up.weight"].shape, 0
        n_layers = reader.metadata[f"{reader.architecture}.block_count"]
    assert n_ff > n_embd
    wide = write_table(tmp_path, {"Q8_0": N}, smallest=(n_ff, n_embd))
    _, told = computed(file, {name: ALL}, tmp_path, IKQ_CUDA_BLAS=str(wide))
    assert told[name][1] == 2 * n_layers, "up and gate"
    for columns_from in ({"Q4_K": 65}, {"Q8_0": N + 1}, {"Q8_0": None}):
        _, told = computed(
            file, {name: ALL}, tmp_path, IKQ_CUDA_BLAS=str(write_table(tmp_path, columns_from))
        )
        assert told[name][1] == 0, columns_from
    _, told = computed(file, {name: ALL}, tmp_path, IKQ_CUDA_BLAS="")
    assert told[name][1] == 0


def test_the_order_of_work(tmp_path):
    """A product comes behind what decodes its weights and its columns; pieces of a matrix take turns in one place."""
    file, log = quantized("llama/llama-bf16", tmp_path), tmp_path / "log"
    table = write_table(tmp_path, {"Q8_0": N})
    pieces = {"IKQ_CUDA_BLAS_KIB": "16", "IKQ_CUDA_BLAS": str(table)}
    whole, _ = computed(file, {"gpu": ALL}, tmp_path, IKQ_CUDA_BLAS=str(table))
    found, told = computed(file, {"gpu": ALL}, tmp_path, **pieces, IKQ_STANDIN_LOG=str(log))
    assert told["gpu"][1] > 100, "pieces of a few rows"
    # the stand-in's sums do not depend on how many rows there are
    assert np.array_equal(found["gpu"], whole["gpu"])
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
    assert told[table].returncode == 1
    assert "CUDA0 has 24.0 MiB free" in told[table].stderr, told[table].stderr


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"device": "NVIDIA H200"}, "it is of NVIDIA H200 (compute capability 9.0, 4 multiprocessors)"),
        ({"compute_capability": "8.6"}, "and this is ikq emulator 0 (compute capability 9.0"),
        ({"ikq_cuda_blas": 2}, "it has form 2"),
        ({"from": {"Q9_9": 100}}, "there is no type Q9_9"),
        ({"from": {"F16": 100}}, "F16 is not multiplied by cuBLAS"),
        ({"from": "Q8_0"}, "invalid type"),
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
    (tmp_path / "cut.json").write_text('{"ikq_cuda_blas": 1, "dev')
    for name, words in (("none.json", "No such file"), ("cut.json", "EOF while parsing")):
        done = ikq_command(environment(IKQ_CUDA_BLAS=str(tmp_path / name)), *command)
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    table = str(write_table(tmp_path, {"BF16": 65}))
    done = ikq_command(environment(IKQ_CUDA_BLAS=table, IKQ_CUBLAS="/nowhere"), *command)
    assert (done.returncode, "pip install ikq[cublas]" in done.stderr) == (1, True), done.stderr
    # nothing is looked for where nobody wants it
    assert ikq_command(environment(IKQ_CUBLAS="/nowhere"), *command).returncode == 0
    # nor on the CPU, whatever the variable says
    done = ikq_command(environment(IKQ_CUDA_BLAS=str(tmp_path / "none.json")), *command[:-2])
    assert done.returncode == 0
