"""Experts in RAM that a GPU (the stand-in) computes in long prompts: the bits of experts that stay there, copies beside
computing, and no slab written while something reads it."""

import json
import math
import re
import subprocess
from collections import defaultdict

import numpy as np
import pytest
from emulator import FULL, needs_gxx, only_in_full
from model_files import NAMES, path, reader
from standin import environment, run
from test_prompts_on_device import quantized
from test_whole_models_on_device import ALL
from weights import TYPES

import ikq
from ikq.models import model_spec

pytestmark = [needs_gxx, pytest.mark.timeout(1800)]

SLABS = {"IKQ_CUDA_SLAB_KIB": "64"}
"""So that even the experts of a fixture come in several parts."""

PROGRAM = """
import json, os, sys
import numpy as np, ikq
path, cases, n, out = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ids = [3 + i * i % 500 for i in range(n)]
found, told = {}, {}
for name, options in cases.items():
    os.environ["IKQ_CUDA_STREAM_FROM"] = str(options.pop("from", 1))
    with ikq.Model.load(path, n_ctx=512, n_ubatch=512, n_threads=2, **options) as model:
        told[name] = [p.why for p in model.explain().placement if p.stage.endswith(" experts")]
        text = model.new_sequence()
        # the first step has experts that no token takes; a step of one token is the CPU's again
        parts = [model.step([(text, part, "all")])[0] for part in (ids[:9], ids[9:])]
        found[name] = np.concatenate(parts)
np.savez(out, **found)
print(json.dumps(told))
"""

RAM = ALL | {"cpu_moe": True}


def logits(file, cases, n, tmp_path, **more):
    """Logits of all tokens of a prompt by case, and why its experts are where they are."""
    out = tmp_path / "found.npz"
    arguments = (str(file), json.dumps(cases), str(n), str(out))
    told = json.loads(run(PROGRAM, environment(**SLABS, **more), *arguments, timeout=1700))
    with np.load(out) as f:
        return dict(f), told


def with_experts(name):
    return any(hasattr(layer.ffn, "routing") for layer in model_spec(reader(name)).layers)


PLANS = {
    "fused": {},
    "separate": {"fused_up_gate": False},
    "merged": {"merge_up_gate_experts": True},
    "some experts": {"expert_reduction": (1, 0.5)},
}
MOE = [name for name in NAMES if with_experts(name)] if FULL else []
CASES = [
    ("qwen2moe/qwen2moe-bf16", "IQ4_KS", {}, 40),
    # biases, another activation, and gate and up of their own types
    ("gpt-oss/gpt-oss-mxfp4", None, {}, 26),
    ("qwen3moe/qwen3moe-bf16", "IQ4_NL", {"tensor_type": "ffn_up_exps=q8_0"}, 26),
    # floats, of one type; and beside codes, where up and gate are apart, or down alone
    ("qwen2moe/qwen2moe-bf16", None, {}, 40),
    ("qwen3moe/qwen3moe-bf16", "IQ4_NL", {"tensor_type": ["ffn_up_exps=f16", "ffn_down_exps=f32"]}, 26),
]
ALL_CASES = [
    *((name, None if name.endswith("mxfp4") else "IQ4_KS", {}, 40) for name in MOE),
    *((name, None, {}, 40) for name in MOE if name.endswith("bf16")),
    ("qwen3moe/qwen3moe-bf16", "IQ4_NL", {"tensor_type": ["ffn_up_exps=f16", "ffn_down_exps=f32"]}, 300),
    ("qwen3moe/qwen3moe-bf16", "IQ4_NL", {"tensor_type": "ffn_gate_exps=bf16"}, 40),
    ("qwen3moe/qwen3moe-bf16", "IQ4_NL", {"tensor_type": "ffn_up_exps=q8_0"}, 300),
    ("mixtral/mixtral-bf16", "Q4_K_M", {}, 40),
    ("deepseek3/deepseek3-bf16", "IQ2_KT", {"ignore_imatrix_rules": True}, 40),
]


@pytest.mark.parametrize(("name", "ftype", "options", "n"), ALL_CASES if FULL else CASES)
def test_the_bits_of_experts_that_stay(name, ftype, options, n, tmp_path):
    file = quantized(name, ftype, tmp_path, **options)
    plans = PLANS if FULL else dict(list(PLANS.items())[:2])
    cases = {
        f"{where} {plan}": of | extra
        for plan, extra in plans.items()
        for where, of in (("stay", ALL), ("ram", RAM))
    }
    cases["never"] = RAM | {"from": 0}
    cases["mapped"] = RAM | {"mmap": "on"}  # the CPU has them as they stand in the file
    found, told = logits(file, cases, n, tmp_path)
    assert all("computed on CUDA0 in steps of 9 tokens or more" in why for why in told["ram fused"]), told
    assert not any("computed on" in why for why in [*told["never"], *told["stay fused"]])
    for plan in plans:
        assert np.isfinite(found[f"ram {plan}"]).all()
        assert np.array_equal(found[f"ram {plan}"], found[f"stay {plan}"]), plan
    assert np.array_equal(found["mapped"], found["stay fused"])
    assert not np.array_equal(found["never"], found["stay fused"])  # those are computed on the CPU


@only_in_full
@pytest.mark.parametrize("t", [t for t in TYPES if t != "i2_s"])
def test_every_type(t, tmp_path):
    """The GPU makes rows of what the CPU has side by side."""
    options = {"tensor_type": f"exps={t}", "ignore_imatrix_rules": True}
    file = quantized("qwen2moe/qwen2moe-bf16", "Q8_0", tmp_path, **options)
    types = {w.type.name for n, w in ikq.GGUFReader(file).tensors.items() if "_exps" in n}
    found, told = logits(file, {"stay": ALL, "ram": RAM, "mapped": RAM | {"mmap": "on"}}, 20, tmp_path)
    assert t.upper() in types, types
    assert all("computed on" in why for why in told["ram"])
    assert np.array_equal(found["ram"], found["stay"])
    assert np.array_equal(found["mapped"], found["stay"])


def test_types_that_are_not_copied(tmp_path):
    """Interleaved experts stay with the CPU: what it computes is as before."""
    file = quantized("qwen2moe/qwen2moe-bf16", "Q4_0_R8", tmp_path, ignore_imatrix_rules=True)
    cases = {"ram": RAM, "never": RAM | {"from": 0}}
    found, told = logits(file, cases, 20, tmp_path)
    assert not any("computed on" in why for why in told["ram"])
    assert np.array_equal(found["ram"], found["never"])


def test_floats_need_tiles(tmp_path):
    """A GPU of before sm_80 has none for floats, and leaves their experts to the CPU."""
    cases = {"ram": RAM, "never": RAM | {"from": 0}}
    found, _ = logits(path("qwen2moe/qwen2moe-bf16"), cases, 20, tmp_path, IKQ_STANDIN_SM="75")
    assert np.array_equal(found["ram"], found["never"])


def test_from_how_many_tokens(monkeypatch):
    """A model of costs, in which a byte is copied while the CPU adds 57 products; what the user says goes before."""
    name = "gpt-oss/gpt-oss-mxfp4"

    def reasons(says):
        if says is None:
            monkeypatch.delenv("IKQ_CUDA_STREAM_FROM", raising=False)
        else:
            monkeypatch.setenv("IKQ_CUDA_STREAM_FROM", says)
        plan = ikq.Model.plan(path(name), devices=["CPU", "CUDA0"], n_gpu_layers=99, cpu_moe=True)
        (why,) = {p.why for p in plan.placement if p.stage.endswith(" experts")}
        return why

    tensors = [
        t for t in reader(name).tensors.values() if re.fullmatch(r"blk\.0\.ffn_.*_exps\.weight", t.name)
    ]
    layer = next(layer for layer in model_spec(reader(name)).layers)
    of_token = (
        sum(int(np.prod(t.shape)) for t in tensors) / layer.ffn.routing.n_expert * layer.ffn.routing.n_used
    )
    expected = math.ceil(sum(t.nbytes for t in tensors) * 57 / of_token)
    stays = "experts stay on the CPU, as asked for"
    assert expected > 9
    # floats take the CPU 1 / 0.38 times as long
    floats = ikq.Model.plan(
        path("qwen3moe/qwen3moe-bf16"), devices=["CPU", "CUDA0"], n_gpu_layers=99, cpu_moe=True
    )
    layer = next(layer for layer in model_spec(reader("qwen3moe/qwen3moe-bf16")).layers)
    n_tokens = math.ceil(2 * 57 * 0.38 * layer.ffn.routing.n_expert / layer.ffn.routing.n_used)
    (why,) = {p.why for p in floats.placement if p.stage.endswith(" experts")}
    assert f"in steps of {n_tokens} tokens or more, if its compute capability is 8.0 or more" in why
    assert reasons(None) == f"{stays}; computed on CUDA0 in steps of {expected} tokens or more"
    assert reasons("70") == f"{stays}; computed on CUDA0 in steps of 70 tokens or more"
    assert (
        reasons("2") == f"{stays}; computed on CUDA0 in steps of 9 tokens or more"
    )  # fewer are not in tiles
    assert reasons("0") == stays


def outcome(file, tmp_path, **more):
    """Logits, or `None` where the model tells that something is wrong with them."""
    try:
        return logits(file, {"ram": RAM}, 40, tmp_path, **more)[0]["ram"]
    except (AssertionError, subprocess.SubprocessError):
        return None


def test_streams_in_any_order(tmp_path):
    """Whichever stream runs first: the same bits. A stream that does not wait for the other one is found."""
    file = quantized("qwen2moe/qwen2moe-bf16", "IQ4_KS", tmp_path)
    expected = logits(file, {"stay": ALL}, 40, tmp_path)[0]["stay"]
    for eager in ("0", "1"):
        found = outcome(file, tmp_path, IKQ_STANDIN_EAGER=eager)
        assert found is not None, eager
        assert np.array_equal(found, expected), eager
        deaf = outcome(file, tmp_path, IKQ_STANDIN_EAGER=eager, IKQ_STANDIN_DEAF=eager)
        assert deaf is None or not np.array_equal(deaf, expected), f"stream {eager} does not wait"


class Clocks:
    """Which work comes before which: for each piece of work the number of those of every stream that are over before
    it begins. A line of the stand-in's log is an entry; the host is a stream, too."""

    def __init__(self, lines):
        self.work = []  # kind, stream, numbers, before
        done = defaultdict(lambda: defaultdict(int))  # of each stream: what is over behind its latest work
        events = {}
        host = defaultdict(int)

        def join(to, other):
            for stream, n in other.items():
                to[stream] = max(to[stream], n)

        for line in lines:
            kind, *words = line.split()
            if kind == "finish-event":
                join(host, events.get(int(words[0]), {}))
                continue
            stream = int(words[0])
            if kind == "finish":
                join(host, done[stream])
                continue
            now = done[stream]
            join(now, host)
            if kind == "wait":
                join(now, events.get(int(words[1]), {}))
            elif kind == "record":
                events[int(words[1])] = dict(now)
            else:
                self.work.append((kind, stream, words[1:], dict(now)))
                now[stream] += 1

    def precedes(self, a, b):
        """Whether piece `a` is over when piece `b` begins."""
        stream = self.work[a][1]
        index = sum(1 for w in self.work[:a] if w[1] == stream)
        return self.work[b][3].get(stream, 0) > index


def test_copies_overlap_and_never_meet(tmp_path):
    """In the log of a run: the next part is copied beside the products of the one before; between a copy to a slab and
    whatever reads the slab there is always an order."""
    file, log = quantized("qwen2moe/qwen2moe-bf16", "IQ4_KS", tmp_path), tmp_path / "log"
    logits(file, {"ram": RAM}, 40, tmp_path, IKQ_STANDIN_LOG=str(log))
    clocks = Clocks(log.read_text().splitlines())
    copies = [i for i, (kind, stream, _, _) in enumerate(clocks.work) if kind == "copy" and stream == 1]
    assert copies
    assert all(stream == 0 for kind, stream, _, _ in clocks.work if kind == "kernel")
    targets = {int(clocks.work[i][2][0]) for i in copies}
    readers = [
        (i, {int(a) for a in words[1:]} & targets)
        for i, (kind, _, words, _) in enumerate(clocks.work)
        if kind == "kernel" and (words[0] in ("rows_of_bands", "move") or words[0].startswith("repack_"))
    ]
    places = sorted(set().union(*(read for _, read in readers)))
    uses = defaultdict(list)  # of each place: who writes or reads it
    for i in copies:
        uses[max(p for p in places if p <= int(clocks.work[i][2][0]))].append((i, "writes"))
    for i, read in readers:
        for place in read:
            uses[place].append((i, "reads"))
    n_pairs = 0
    for used in uses.values():
        used.sort()
        for at, (a, how) in enumerate(used):
            for b, other in used[at + 1 :]:
                if how != other:
                    n_pairs += 1
                    assert clocks.precedes(a, b), (clocks.work[a], clocks.work[b])
    assert n_pairs > 20
    # products of a part, and the first copy behind them
    products = [
        i for i, w in enumerate(clocks.work) if w[0] == "kernel" and w[2][0].startswith("mmq_upgate_")
    ]
    beside = 0
    for i in products:
        later = next((c for c in copies if c > i), None)
        if later is not None and not clocks.precedes(i, later) and not clocks.precedes(later, i):
            beside += 1
    # two steps of two layers of four parts; the last of a layer has nothing behind it but the next layer's
    assert beside >= len(products) / 2, (beside, len(products))


@only_in_full
def test_a_prompt_of_another_text_beside(tmp_path):
    """Experts are borrowed in steps of several texts, too, and a layer's experts may stay while another's do not."""
    file = quantized("qwen3moe/qwen3moe-bf16", "IQ4_KS", tmp_path)
    cases = {"stay": ALL, "ram": ALL | {"n_cpu_moe": 1}}
    found, told = logits(file, cases, 120, tmp_path)
    assert sum("computed on" in why for why in told["ram"]) == 1
    assert np.array_equal(found["stay"], found["ram"])


EXCHANGED = """
import sys
import numpy as np, ikq
path = sys.argv[1]
ids = list(range(3, 43))
model = ikq.Model.load(path, n_ctx=128, n_threads=2, devices=["CPU", "CUDA0"], n_gpu_layers=99, cpu_moe=True)
found = model.logits(ids)
model = model.exchange(ikq.GGUFReader(path))
print(np.array_equal(found, model.logits(ids)))
model.close()
"""


def test_models_that_borrowed_experts_are_exchanged_and_closed():
    """What is freed is filled, so that nobody reads it again: copies are waited for before their stream goes."""
    filled = environment(IKQ_CUDA_STREAM_FROM="9", MALLOC_PERTURB_="165")
    assert run(EXCHANGED, filled, str(path("gpt-oss/gpt-oss-mxfp4"))).strip() == "True"
