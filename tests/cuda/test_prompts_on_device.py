"""Prompts on a GPU (the stand-in), whose products run in tiles: logits against the CPU's, and what bits do not depend on."""

import json

import numpy as np
import pytest
from emulator import FULL, needs_gxx, only_in_full
from model_files import NAMES, path
from model_runs import distance
from standin import environment, run
from test_whole_models_on_device import ALL, EXACT, allowed

import ikq

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

LAST = 12
"""Tokens whose logits are compared; more than a matrix-vector kernel takes."""

PROGRAM = """
import json, os, sys
import numpy as np, ikq
path, cases, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
n, n_last, shift = map(int, sys.argv[4:])
ids = [3 + (i * i + shift) % 500 for i in range(n)]
found = {}
for name, options in cases.items():
    with ikq.Model.load(path, n_ctx=512, n_ubatch=512, n_threads=2, **options) as model:
        if not any(p.device == "CUDA0" for p in model.explain().placement):
            found[name] = model.logits(ids)[-n_last:]
            continue
        sequence = model.new_sequence()
        model.step([(sequence, ids[:-n_last], "none")])
        found[name] = model.step([(sequence, ids[-n_last:], "all")])[0]
        if name == "whole":
            found["at once"] = model.step([(model.new_sequence(), ids, "last")])[0]
np.savez(out, **found)
"""


def prompt(file, cases, n, tmp_path, shift=0, **more):
    """Logits of the last tokens of a prompt of `n` tokens; `whole` also computes it in one step."""
    out = tmp_path / "found.npz"
    numbers = (str(number) for number in (n, LAST, shift))
    run(PROGRAM, environment(**more), str(file), json.dumps(cases), str(out), *numbers, timeout=1700)
    with np.load(out) as f:
        return dict(f)


def quantized(name, ftype, tmp_path, **options):
    """A fixture in another type."""
    if ftype is None:
        return path(name)
    ikq.quantize_file(path(name), tmp_path / "model.gguf", ftype, **options)
    return tmp_path / "model.gguf"


def check(file, cases, n, tmp_path, name):
    """Cases are as near to exact logits as the CPU, whose codes of 8 bits are as many; returns the logits.

    Where two experts are nearly as good for a token, rounding decides which one it takes. So one token may be off,
    if none is so in another text: a fault of the kernels would be in the same column again.
    """
    found = prompt(file, {"exact": EXACT, "cpu": {}, **cases}, n, tmp_path)
    off = [case for case in cases if not is_near(found, case, name)]
    if off:
        for case in off:
            by_token = [distance(found[case][i], found["exact"][i]) for i in range(LAST)]
            assert is_near(found, case, name, leaving_out=int(np.argmax(by_token))), (case, by_token)
        again = prompt(file, {"exact": EXACT, "cpu": {}, **{c: cases[c] for c in off}}, n, tmp_path, shift=1)
        assert all(is_near(again, case, name) for case in off), off
    return found


def is_near(found, case, name, leaving_out=None):
    """Whether logits are within twice the CPU's distance from exact ones."""
    kept = [i for i in range(LAST) if i != leaving_out]
    exact = found["exact"][kept]
    rounded = distance(found["cpu"][kept], exact)
    return distance(found[case][kept], exact) <= 2 * rounded + allowed(name)


CASES = [
    # a shared expert with a gate; biases and clamps; latent attention
    ("qwen2moe/qwen2moe-bf16", "IQ4_KS", 300),
    ("gpt-oss/gpt-oss-mxfp4", None, 26),
    ("deepseek2-lite/deepseek2-lite-bf16", "IQ4_KS", 26),
]
ALL_CASES = [
    (name, None if name.endswith("mxfp4") else ftype, 300) for name in NAMES for ftype in ("IQ4_KS", "Q8_0")
]


@pytest.mark.parametrize(("name", "ftype", "n"), ALL_CASES if FULL else CASES)
def test_a_prompt(name, ftype, n, tmp_path):
    file = quantized(name, ftype, tmp_path)
    found = check(file, {"whole": ALL}, n, tmp_path, name)
    # how a prompt is cut does not show while its pieces are of many tokens
    assert np.array_equal(found["at once"][0], found["whole"][-1])


@only_in_full
@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_of_floats(name, tmp_path):
    found = check(path(name), {"whole": ALL}, 300, tmp_path, name)
    assert np.array_equal(found["at once"][0], found["whole"][-1])


PLACES = {
    "experts in RAM": {"cpu_moe": True},
    "cache in RAM": {"kv_offload": False},
    "separate": {"fused_up_gate": False},
    "merged": {"merge_up_gate_experts": True},
    "only experts": {"n_gpu_layers": 0, "override_tensor": "exps=CUDA0"},
    "only shared experts": {"n_gpu_layers": 0, "override_tensor": "shexp=CUDA0"},
}


@only_in_full
@pytest.mark.parametrize("name", ["qwen2moe/qwen2moe-bf16", "deepseek3/deepseek3-bf16"])
def test_a_prompt_on_two_devices(name, tmp_path):
    file = quantized(name, "IQ4_KS", tmp_path)
    check(file, {place: ALL | options for place, options in PLACES.items()}, 300, tmp_path, name)


@only_in_full
def test_a_prompt_without_small_experts(tmp_path):
    """Pairs without an expert are in no group."""
    name, fewer = "qwen2moe/qwen2moe-bf16", {"expert_reduction": (1, 0.5)}
    file = quantized(name, "IQ4_KS", tmp_path)
    cases = {"exact": EXACT | fewer, "cpu": fewer, "whole": ALL | fewer}
    assert is_near(prompt(file, cases, 300, tmp_path), "whole", name)


MIXED = {
    "up of another type": ("IQ4_NL", {"tensor_type": "ffn_up_exps=q8_0"}),
    "a gate of floats": ("Q6_K", {"tensor_type": "ffn_gate_exps=f16"}),
    "down of floats": ("Q4_K_M", {"tensor_type": "ffn_down_exps=f16"}),
    "only down": ("BF16", {"tensor_type": "ffn_down_exps=q8_0"}),
    "a router of codes": ("Q5_K", {"ffn_gate_inp_type": "q8_0"}),
}


@only_in_full
@pytest.mark.parametrize("kind", MIXED)
def test_a_prompt_of_mixed_types(kind, tmp_path):
    name, (ftype, options) = "qwen3moe/qwen3moe-bf16", MIXED[kind]
    file = quantized(name, ftype, tmp_path, **options)
    check(file, {"whole": ALL}, 300, tmp_path, name)


@only_in_full
def test_a_gpu_with_little_shared_memory(tmp_path):
    """Turing has tiles of one size, and gives the same bits."""
    file = quantized("qwen3moe/qwen3moe-bf16", "IQ4_KS", tmp_path)
    found = [
        prompt(file, {"whole": ALL}, 80, tmp_path, IKQ_STANDIN_SHARED=bytes_) for bytes_ in (None, "65536")
    ]
    assert np.array_equal(found[0]["whole"], found[1]["whole"])


@pytest.mark.parametrize(
    "name", [n for n in NAMES if not n.endswith("mxfp4")] if FULL else ["qwen2moe/qwen2moe-bf16"]
)
def test_the_order_of_threads_does_not_show(name, tmp_path):
    """Nor that of blocks: forwards, backwards, and another random one for each launch, in a prompt and a step of one token."""
    file, orders = quantized(name, "IQ4_KS", tmp_path), ("0", "2024", "1")[: 3 if FULL else 2]
    found = [prompt(file, {"whole": ALL}, 26, tmp_path, IKQ_STANDIN_ORDER=order) for order in orders]
    for other in found[1:]:
        assert np.array_equal(other["whole"], found[0]["whole"])
        assert np.array_equal(other["at once"], found[0]["at once"])


STEPS = """
import json, os, sys
import numpy as np, ikq
from ikq import _ikq
path, options, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
found, counts = {}, {}
for graphs in ("1", "0"):
    os.environ["IKQ_CUDA_GRAPHS"] = graphs
    with ikq.Model.load(path, n_ctx=64, n_threads=2, **options) as model:
        texts = [model.new_sequence() for _ in range(12)]
        model.step([(text, [3 + i, 40 - i, 7][: 1 + i % 3], "none") for i, text in enumerate(texts)])
        before = _ikq.cuda_counts()
        for i in range(4):
            logits = model.step([(text, [5 + i + j], "last") for j, text in enumerate(texts)])
            found[f"{graphs} {i}"] = np.concatenate(logits)
        counts[graphs] = {name: n - before[name] for name, n in _ikq.cuda_counts().items()}
np.savez(out, **found)
print(json.dumps(counts))
"""


def test_steps_of_many_texts_are_graphs(tmp_path):
    """Twelve texts at once: recorded, replayed, and the bits of launches."""
    file, out = quantized("qwen3moe/qwen3moe-bf16", "IQ4_KS", tmp_path), tmp_path / "found.npz"
    told = json.loads(run(STEPS, environment(), str(file), json.dumps(ALL), str(out), timeout=1500))
    assert told["1"]["replays"] == 3 > told["0"]["replays"] == 0
    with np.load(out) as f:
        for i in range(4):
            assert np.isfinite(f[f"1 {i}"]).all()
            assert np.array_equal(f[f"1 {i}"], f[f"0 {i}"]), i
