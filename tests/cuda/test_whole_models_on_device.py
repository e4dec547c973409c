"""Whole models on a GPU (the stand-in), and models of which it has some: logits against the CPU's."""

import re

import numpy as np
import pytest
from emulator import FULL, needs_gxx
from model_files import NAMES, path, reader
from model_runs import IDS, LENGTHS, distance, results
from standin import environment, run

import ikq
from ikq.models import model_spec

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

EXACT = {"compute": "f32", "cache_type_k": "f32", "cache_type_v": "f32"}
ALL = {"devices": ["CPU", "CUDA0"], "n_gpu_layers": 99}

# A layer is a chain of some ten products, norms and sums. Each of their results is a sum of up to 2^9 terms in an order of
# its own, off by sqrt(2^9) half units of 2^-24 or so, and errors of layers add up
FLOATS = 10 * 2**4.5 * 2.0**-24


def allowed(name):
    return FLOATS * len(model_spec(reader(name)).layers)


def nearest(logits, *references):
    """For each token those of the references that are nearest.

    Where two experts are nearly as good for a token, the CPU takes one or the other as its settings round.
    """
    apart = [[distance(row, of[i]) for of in references] for i, row in enumerate(logits)]
    return np.stack([references[np.argmin(row)][i] for i, row in enumerate(apart)])


# the emulator takes half a minute and more for the others
QUICK = ("qwen2moe/qwen2moe-bf16", "qwen3next/qwen3next-bf16")


@pytest.mark.parametrize("name", NAMES if FULL else QUICK)
def test_logits(name, tmp_path):
    """In floats the CPU's logits, however the tokens come; the same with what is stored in fewer bits."""
    stored = {k: v for k, v in EXACT.items() if k != "compute"}
    floats = stored | ALL
    cases = {"exact": EXACT, "cpu": {}, "cpu floats": stored, "floats": floats, "gpu": ALL}
    coded = name.endswith("mxfp4")
    # products of codes, and attention, have the same bits for one column and for many where all are computed in tiles
    found = results(path(name), cases, tmp_path, IKQ_CUDA_MMQ_FROM="1")
    assert "CUDA0" in found["gpu devices"]
    exact = found["exact whole"]
    rounded = distance(found["cpu whole"], exact)
    # types of few bits read activations of 8 bits, the same on either device; another expert may be chosen for them
    # than for exact ones
    same, apart = (found["cpu floats whole"], rounded) if coded else (exact, 0.0)
    assert distance(found["floats whole"], same) <= apart + allowed(name)
    gpu = found["gpu whole"]
    right = nearest(gpu, exact, found["cpu floats whole"])
    assert distance(gpu, right) <= 2 * rounded + allowed(name)
    for case in ("floats", "gpu"):
        whole = found[f"{case} whole"]
        # what stands beside a sequence, and how it is cut, does not show
        assert np.array_equal(found[f"{case} pieces"], whole), case
        assert np.array_equal(found[f"{case} eight"], whole[list(LENGTHS)]), case


SPLITS = {
    "experts": {"override_tensor": "exps=CPU"},
    "experts of two": {"n_cpu_moe": 2},
    "two layers": {"n_gpu_layers": 2},
    "routers": {"override_tensor": "ffn_gate_inp=CPU"},
    "only experts": {"n_gpu_layers": 0, "override_tensor": "exps=CUDA0"},
    "only shared experts": {"n_gpu_layers": 0, "override_tensor": "shexp=CUDA0"},
    "attention": {"override_tensor": "attn=CPU"},
    "separate": {"fused_up_gate": False},
    "cache": {"kv_offload": False},
    "merged": {"merge_up_gate_experts": True},
    "without small experts": {"expert_reduction": (1, 0.5)},
}
QUICK_SPLITS = ("cache", "without small experts")


@pytest.mark.parametrize("name", ["qwen2moe/qwen2moe-bf16", *(["deepseek3/deepseek3-bf16"] if FULL else [])])
def test_splits(name, tmp_path):
    floats = {k: v for k, v in EXACT.items() if k != "compute"}
    splits = SPLITS if FULL else {k: SPLITS[k] for k in QUICK_SPLITS}
    cases = {split: ALL | floats | options for split, options in splits.items()}
    fewer = EXACT | {"expert_reduction": (1, 0.5)}
    found = results(
        path(name), {"exact": EXACT, "exact fewer": fewer, **cases}, tmp_path, IKQ_CUDA_MMQ_FROM="1"
    )
    for split in splits:
        assert "CUDA0" in found[f"{split} devices"], split
        exact = found["exact fewer whole" if split == "without small experts" else "exact whole"]
        assert distance(found[f"{split} whole"], exact) <= allowed(name), split
        assert np.array_equal(found[f"{split} eight"], found[f"{split} whole"][list(LENGTHS)]), split
    assert distance(found["exact fewer whole"], found["exact whole"]) > allowed(name), "nothing was dropped"


QUANTIZED = {
    "IQ4_KS": {},
    "Q4_K_M": {},
    # made without an imatrix: it is the decoder that counts here
    "IQ2_XXS": {"ignore_imatrix_rules": True},
    "Q8_0": {},
    # up and gate of types that one kernel takes together, and of types that it does not
    "IQ4_NL": {"tensor_type": "ffn_up_exps=q8_0"},
    "Q6_K": {"tensor_type": "ffn_gate_exps=f16"},
    # a router of codes
    "Q5_K": {"ffn_gate_inp_type": "q8_0"},
}


@pytest.mark.parametrize("ftype", QUANTIZED if FULL else ["IQ4_KS"])
def test_quantized_mixtures(ftype, tmp_path):
    source = path("qwen3moe/qwen3moe-bf16")
    ikq.quantize_file(source, tmp_path / "model.gguf", ftype, **QUANTIZED[ftype])
    # all products in tiles, so that how a text is cut does not show
    cases = {"exact": EXACT, "cpu": {}, "gpu": ALL}
    found = results(tmp_path / "model.gguf", cases, tmp_path, IKQ_CUDA_MMQ_FROM="1")
    exact = found["exact whole"]
    # codes of 8 bits differ from float products as much as the CPU's own
    rounded = distance(found["cpu whole"], exact)
    assert distance(found["gpu whole"], exact) <= 2 * rounded + allowed("qwen3moe/qwen3moe-bf16")
    assert np.array_equal(found["gpu pieces"], found["gpu whole"])
    assert np.array_equal(found["gpu eight"], found["gpu whole"][list(LENGTHS)])


@pytest.mark.parametrize(
    "name", ["qwen3next/qwen3next-bf16", *(["qwen35moe/qwen35moe-bf16"] if FULL else [])]
)
def test_splits_of_recurrent_models(name, tmp_path):
    """Layers on either device, experts in RAM: what the CPU gives."""
    floats = {k: v for k, v in EXACT.items() if k != "compute"}
    splits = {
        "recurrent on the CPU": {"override_tensor": r"ssm_.*=CPU"},
        "only recurrent": {"n_gpu_layers": 0, "override_tensor": r"blk\.0\.(attn|ssm)_.*=CUDA0"},
        "experts": {"cpu_moe": True},
    }
    splits = splits if FULL else {"only recurrent": splits["only recurrent"]}
    cases = {split: ALL | floats | options for split, options in splits.items()}
    found = results(path(name), {"exact": EXACT, **cases}, tmp_path, IKQ_CUDA_MMQ_FROM="1")
    for split in splits:
        assert "CUDA0" in found[f"{split} devices"], split
        assert distance(found[f"{split} whole"], found["exact whole"]) <= allowed(name), split
        assert np.array_equal(found[f"{split} eight"], found[f"{split} whole"][list(LENGTHS)]), split


ROTATED = [("llama/llama-bf16", "q6_0", "q4_0"), ("deepseek3/deepseek3-bf16", "q4_0", "q4_0")]


@pytest.mark.parametrize("rotation", [True, *([False] if FULL else [])])
@pytest.mark.parametrize(
    ("name", "keys", "values"),
    [
        *ROTATED[: 2 if FULL else 1],
        *([("llama/llama-bf16", k, v) for k, v in (("f16", "q6_0"), ("q4_1", "iq4_nl"), ("iq4_nl", "q8_0"))] if FULL else []),
    ],
)  # fmt: skip
def test_types_of_caches(name, keys, values, rotation, tmp_path):
    types = {"cache_type_k": keys, "cache_type_v": values, "cache_rotation": rotation}
    found = results(
        path(name), {"exact": EXACT, "cpu": types, "gpu": ALL | types}, tmp_path, IKQ_CUDA_MMQ_FROM="1"
    )
    exact = found["exact whole"]
    # the CPU looks for better scales
    rounded = distance(found["cpu whole"], exact)
    assert 0 < distance(found["gpu whole"], exact) <= 2 * rounded + allowed(name)
    assert found["gpu hidden"].shape[0] == len(IDS)
    for case in ("pieces", "eight"):
        want = found["gpu whole"] if case == "pieces" else found["gpu whole"][list(LENGTHS)]
        assert np.array_equal(found[f"gpu {case}"], want)


REFUSED = """
import sys, ikq
types = dict(cache_type_k="q4_0", cache_type_v="q4_0")
for rotation in (True, False):
    for devices in ({}, dict(devices=["CPU", "CUDA0"], n_gpu_layers=99)):
        try:
            ikq.Model.load(sys.argv[1], n_ctx=64, n_threads=2, cache_rotation=rotation, **types, **devices)
        except ikq.UnsupportedError as e:
            print(e)
"""


def test_heads_that_blocks_do_not_divide_are_refused():
    """Latent rows of 48 elements in blocks of 32: on either device, rotated or not, with a way out."""
    told = run(REFUSED, environment(), str(path("deepseek2-lite/deepseek2-lite-bf16"))).splitlines()
    assert len(told) == 4
    for line in told:
        assert re.search(r"a cache of q4_0.* 48 .*multiple of 32 .*; use f16", line, re.IGNORECASE), line
