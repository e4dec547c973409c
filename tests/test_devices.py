"""Stages on two devices: the CPU and `CPU1`, the CPU again with memory of its own. The same bits as on one."""

import json
import re

import numpy as np
import pytest
from model_files import NAMES, RECURRENT, path, prompt, reader
from sequence_checks import COMPUTE, PLANS, fresh, load, run, same

import ikq
import ikq.cuda
from ikq.__main__ import main
from ikq.cli.placement_table import joined_layers
from ikq.inference.model import Placed

TWO = ("CPU", "CPU1")
SPLITS = {
    "layers": {"n_gpu_layers": 0, "override_tensor": r"blk\.[13]\.=CPU1"},
    "experts": {"n_gpu_layers": 0, "override_tensor": "exps=CPU1"},
    "shared experts": {"n_gpu_layers": 0, "override_tensor": "shexp=CPU1"},
    "routers": {"n_gpu_layers": 0, "override_tensor": "ffn_gate_inp=CPU1"},
    "attention": {"n_gpu_layers": 0, "override_tensor": ["attn=CPU1", "ssm=CPU1"]},
    "output": {"n_gpu_layers": 0, "override_tensor": "^output|^token_embd=CPU1"},
    "all but experts": {"n_gpu_layers": 99, "cpu_moe": True},
    "last layer": {"n_gpu_layers": 1},
    "cache": {"n_gpu_layers": 99, "kv_offload": False},
    "all": {"n_gpu_layers": 99},
    "experts of the first": {"n_gpu_layers": 99, "n_cpu_moe": 1},
}


def devices_of(model):
    return {p.stage: p.device for p in model.explain().placement}


@pytest.mark.parametrize("compute", list(COMPUTE))
@pytest.mark.parametrize("name", NAMES)
def test_splits(name, compute):
    ids = prompt(name, 1)
    with load(name, **COMPUTE[compute]) as model:
        whole = model.logits(ids)
        hidden = fresh(model, ids, want="hidden")
        assert set(devices_of(model).values()) == {"CPU"}
        n_mapped = model.memory.mapped + model.memory.copied
    n_split = 0
    for split, options in SPLITS.items():
        with load(name, **COMPUTE[compute], devices=TWO, **options) as model:
            n_split += len(set(devices_of(model).values())) == 2
            assert same(whole, model.logits(ids)), split
            assert same(whole, fresh(model, ids, 7)), split
            assert same(hidden, fresh(model, ids, want="hidden")), split
            # nothing is loaded twice; the embedding may also be the output
            assert model.memory.mapped + model.memory.copied <= 1.2 * n_mapped
    assert n_split >= 5


@pytest.mark.parametrize("name", NAMES)
def test_sequences_on_two_devices(name, tmp_path):
    """Forked, taken back, shifted, saved on one device and loaded on two, and the other way round."""
    ids, others = prompt(name, 1), prompt(name, 0)
    places = {"override_tensor": [r"blk\.[13]\.=CPU1", "blk.0.*exps=CPU1"]}
    with load(name, n_ctx=128) as one, load(name, n_ctx=128, **places) as two:
        found = []
        for i, model in enumerate((one, two)):
            sequence = model.new_sequence()
            run(model, sequence, ids[:60], 25)
            sequence.save(tmp_path / f"{i}")
            fork = sequence.fork()
            fork.truncate(fork.rewindable(50))
            beside = model.new_sequence()
            entries = [
                (sequence, ids[60:], "all"),
                (fork, ids[fork.n_past :], "all"),
                (beside, others, "all"),
            ]
            logits = model.step(entries)
            if name not in RECURRENT:
                fork.shift(4, 20)
                logits.append(run(model, fork, others[:20]))
            found.append(logits)
        for a, b in zip(*found, strict=True):
            assert same(a, b)
        assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
        for model, other in ((one, "1"), (two, "0")):
            sequence = model.load_sequence(tmp_path / other)
            assert same(found[0][0], run(model, sequence, ids[60:]))


@pytest.mark.parametrize(
    "name", ["qwen3moe/qwen3moe-bf16", "deepseek3/deepseek3-bf16", "gpt-oss/gpt-oss-mxfp4"]
)
def test_options_through_the_seam(name):
    """Plans, reduced experts, types of the cache, mapped weights, threads."""
    ids = prompt(name, 0)
    for options in (*PLANS.values(), {"expert_reduction": (1, 0.9)}, {"cache_type_k": "q8_0"}, {"mmap": "on"}, {"n_threads": 3}):  # fmt: skip
        with load(name, n_ctx=128, **options) as model:
            whole = model.logits(ids)
        for split in ("experts", "attention", "layers"):
            with load(name, n_ctx=128, devices=TWO, **options, **SPLITS[split]) as model:
                assert same(whole, model.logits(ids)), (options, split)


@pytest.mark.parametrize(
    "name", ["qwen2moe/qwen2moe-bf16", "qwen3next/qwen3next-bf16", "deepseek3/deepseek3-bf16"]
)
def test_statistics_through_the_seam(name):
    ids = prompt(name, 0)
    found = []
    for options in ({}, *({"devices": TWO, **SPLITS[s]} for s in ("experts", "attention", "layers", "all"))):
        with load(name, n_ctx=128, **options) as model:
            with model.collect_activations(similarity=True, choices=True) as collector:
                model.logits(ids)
            found.append((collector.statistics(), collector.layer_similarity(), collector.expert_choices()))
    first, similarity, choices = found[0]
    for statistics, other_similarity, other_choices in found[1:]:
        assert sorted(statistics) == sorted(first)
        for entry, (sums, counts) in statistics.items():
            assert np.array_equal(sums, first[entry].sums), entry
            assert np.array_equal(counts, first[entry].counts), entry
        assert (other_similarity, other_choices) == (similarity, choices)


# The plan


def test_the_plan_says_what_is_where():
    name = "qwen2moe/qwen2moe-bf16"
    roles = ["attention", "router", "experts", "shared expert"]
    stages = ["embedding", *(f"layer {i}, {role}" for i in range(2) for role in roles), "output"]
    with load(name, n_ctx=64, override_tensor="blk.1.*exps=CPU1") as model:
        placement = model.explain().placement
        assert [p.stage for p in placement] == stages
        assert [p.stage for p in placement if p.device == "CPU1"] == ["layer 1, experts"]
        moved = placement[stages.index("layer 1, experts")]
        tensors = ikq.GGUFReader(path(name)).tensors
        assert moved.bytes == sum(
            tensors[f"blk.1.ffn_{x}_exps.weight"].nbytes for x in ("gate", "up", "down")
        )
        assert moved.why == "override_tensor"
        assert all(p.why for p in placement)
    with load(name, n_ctx=64, override_tensor="ffn_up_exps=CPU1") as model:
        # a stage is whole: where rules part it, it goes to the CPU, and that is said
        moved = model.explain().placement[stages.index("layer 1, experts")]
        assert moved.device == "CPU"
        assert "computed together" in moved.why
    with load(name, n_ctx=64, devices=TWO, n_gpu_layers=1) as model:
        assert [p.stage for p in model.explain().placement if p.device == "CPU1"] == stages[5:9]
    with load(name, n_ctx=64, devices=TWO, n_gpu_layers=3, n_cpu_moe=1) as model:
        on_cpu = [p.stage for p in model.explain().placement if p.device == "CPU"]
        assert on_cpu == ["embedding", "layer 0, experts"]
    with load(
        name, n_ctx=64, devices=TWO, n_gpu_layers=3, cpu_moe=True, override_tensor="blk.1.*exps=CPU1"
    ) as model:
        # rules go before all others
        on_cpu = [p.stage for p in model.explain().placement if p.device == "CPU"]
        assert on_cpu == ["embedding", "layer 0, experts"]
    # devices that are named get all layers, unless it is said how many
    with load(name, n_ctx=64, devices=["cpu1"]) as model:
        assert [p.stage for p in model.explain().placement if p.device == "CPU"] == ["embedding"]
        assert model.explain().placement[-1].why == "n_gpu_layers=all"
    with load(name, n_ctx=64, devices=TWO, n_gpu_layers=-1, override_tensor="exps=CPU2") as model:
        assert {s: d for s, d in devices_of(model).items() if d != "CPU1"} == {
            "embedding": "CPU",
            **{f"layer {i}, experts": "CPU2" for i in range(2)},
        }
    # without another device all stays
    for devices in (["CPU"], ["none"], ["Cpu0"], []):
        with load(name, n_ctx=64, devices=devices, n_gpu_layers=99) as model:
            assert set(devices_of(model).values()) == {"CPU"}


THREE = ("CPU", "CPU1", "CPU2")


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_divided(name):
    """In proportion over the devices beside the CPU: the same bits as on the CPU."""
    ids = prompt(name, 0)
    with load(name) as model:
        whole = model.logits(ids)
    n_layers = len(ikq.models.model_spec(reader(name)).layers)
    for split, n in (([1, 1], 99), ([1, 3], 99), ([5, 1], n_layers - 1), ([0, 1], 99)):
        options = {"devices": THREE, "tensor_split": split, "n_gpu_layers": n}
        with load(name, **options) as model:
            placement = model.explain().placement
            assert same(whole, model.logits(ids)), split
        assert placement == ikq.Model.plan(path(name), **options).placement
        # the layers of `n_gpu_layers`, and the output as one more; a layer is where its begin lies
        n = min(n, n_layers + 1)
        first = max(n_layers - n, 0)
        expected = {
            layer: "CPU1" if (layer - first) * sum(split) < split[0] * n else "CPU2"
            for layer in range(first, first + n)
        }
        for p in placement[1:]:
            found = re.match(r"layer (\d+)", p.stage)
            assert p.device == expected.get(int(found[1]) if found else n_layers, "CPU"), p
            if p.device != "CPU":
                assert p.why == f"n_gpu_layers={options['n_gpu_layers']}, tensor_split={split[0]},{split[1]}"


def test_layers_are_divided_by_free_memory(tiny_moe, monkeypatch):
    """Of GPUs what their driver says is free, not what they have; devices of the same memory share alike."""

    def devices(*free):
        return {f"CUDA{i}": {"memory_bytes": 2**40, "free_bytes": n} for i, n in enumerate(free)}

    def placed(**options):
        plan = ikq.Model.plan(tiny_moe, n_gpu_layers=99, **options)
        return [p.device for p in plan.placement if "attention" in p.stage or p.stage == "output"]

    assert placed(devices=THREE) == ["CPU1"] * 3 + ["CPU2"] * 2
    both = ("CPU", "CUDA0", "CUDA1")
    for free, n in (((2**30, 2**30), 3), ((2**30, 2**32), 1), ((2**33, 2**30), 5), ((None, 2**40), 3)):
        monkeypatch.setattr(ikq.cuda, "usable_devices", lambda free=free, **_: devices(*free))
        monkeypatch.setattr(ikq.cuda, "require", lambda **_: None)
        assert placed(devices=both) == ["CUDA0"] * n + ["CUDA1"] * (5 - n), free
        # said is said
        assert placed(devices=both, tensor_split=[2, 3]) == ["CUDA0"] * 2 + ["CUDA1"] * 3


@pytest.mark.parametrize(
    ("devices", "split", "words"),
    [
        (THREE, [1], "tensor_split=1: one number per device is needed, for 2 devices: CPU1, CPU2"),
        (THREE, [1, 2, 3], "tensor_split=1,2,3: one number per device is needed"),
        (
            THREE,
            [1, -0.5],
            "tensor_split=1,-0.5: -0.5 is no share; a share is a number of 0 or more, as in 3,1",
        ),
        (THREE, [0, 0], "tensor_split=0,0: no device has a share; a share above 0 is needed"),
        (THREE, [float("inf"), 1], "inf is no share"),
        (TWO, [1, 1], "for 1 device: CPU1"),
        (("CPU",), [1], "tensor_split=1: there is no GPU over which layers could be divided"),
    ],
)
def test_shares_that_are_none(tiny_moe, devices, split, words):
    for function in (ikq.Model.plan, ikq.Model.load):
        with pytest.raises(ikq.RefusedError) as error:
            function(tiny_moe, n_ctx=64, devices=devices, n_gpu_layers=99, tensor_split=split)
        assert words in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_what_loading_does(name):
    for split in SPLITS.values():
        options = {"devices": TWO, "n_ctx": 700, "cache_type_k": "f32", "swa_full": bool(split), **split}
        plan = ikq.Model.plan(path(name), **options)
        with load(name, **options) as model:
            assert plan.placement == model.explain().placement
            assert plan.cache == model.sequence_bytes(700)
            assert plan.n_ctx == 700
            assert sum(plan.weights.values()) == model.memory.copied
        assert set(plan.weights) == set(TWO)
    assert ikq.Model.plan(path(name)).n_ctx == ikq.models.model_spec(reader(name)).n_ctx_train


def test_layers_are_joined():
    stages = []
    for i in range(6):
        stages.append(Placed(f"layer {i}, attention", "CPU1" if i > 3 else "CPU", 10, "a" if i else "b"))
        stages.append(Placed(f"layer {i}, experts" if i != 2 else "layer 2, FFN", "CPU", 100, "c"))
    rows = joined_layers([Placed("embedding", "CPU", 1, "d"), *stages, Placed("output", "CPU1", 2, "e")])
    assert [(r.name, r.device, r.bytes, r.why) for r in rows] == [
        ("embedding", "CPU", 1, "d"),
        ("layer 0, attention", "CPU", 10, "b"),
        ("layers 0-1, experts", "CPU", 200, "c"),
        ("layers 1-3, attention", "CPU", 30, "a"),
        ("layer 2, FFN", "CPU", 100, "c"),
        ("layers 3-5, experts", "CPU", 300, "c"),
        ("layers 4-5, attention", "CPU1", 20, "a"),
        ("output", "CPU1", 2, "e"),
    ]


@pytest.mark.parametrize("function", [ikq.Model.plan, ikq.Model.load])
def test_numbers_of_layers_that_are_none(tiny_moe, function):
    for name, value, error in (
        ("n_gpu_layers", -2, ValueError),
        ("n_gpu_layers", -(2**70), ValueError),
        ("n_gpu_layers", 1.5, TypeError),
        ("n_gpu_layers", "all", TypeError),
        ("n_cpu_moe", -1, ValueError),
        ("n_cpu_moe", 0.5, TypeError),
    ):
        with pytest.raises(error, match=re.escape(f"{name}={value!r}: expected a number of layers")):
            function(tiny_moe, n_ctx=64, devices=TWO, **{name: value})


def test_large_numbers_of_layers_are_all(tiny_moe):
    options = {"n_ctx": 64, "devices": TWO}
    placement = ikq.Model.plan(tiny_moe, **options, n_gpu_layers=-1).placement
    assert {p.device for p in placement[1:]} == {"CPU1"}
    assert ikq.Model.plan(tiny_moe, **options, n_gpu_layers=2**70).placement == placement
    experts = ikq.Model.plan(tiny_moe, **options, n_cpu_moe=2**70).placement
    assert {p.device for p in experts if "experts" in p.stage} == {"CPU"}


# Names


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["GPU0"], "devices=GPU0: there is no device GPU0; there are CPU, CPU1, ..., and GPUs, CUDA0, ..."),
        (["CPU", "CUDA+0"], "there is no device CUDA+0"),
        (["CPU1", "CUDA"], "there is no device CUDA;"),
        (["CPU1", "cpu01"], "devices=CPU1,cpu01: CPU1 stands there twice"),
        (["CUDA0", "cuda00"], "CUDA0 stands there twice"),
        (["CPU1", "none"], "there is no device none"),
    ],
)
def test_names_that_are_none(names, words, tiny_moe, capsys):
    for function in (ikq.Model.plan, ikq.Model.load):
        with pytest.raises(ikq.RefusedError) as error:
            function(tiny_moe, n_ctx=64, devices=names)
        assert words in str(error.value)
    for more in ([], ["--dry-run"]):
        assert main(["run", "-m", str(tiny_moe), "-p", "a", "-n", "1", "-dev", ",".join(names), *more]) == 2
        assert words in capsys.readouterr().err


def without_gpus(monkeypatch):
    found = {"usable": False, "reason": "no driver", "reason_code": "no-driver", "devices": []}
    monkeypatch.setattr(ikq.cuda, "status", lambda **_: found)


def with_gpus(monkeypatch, n):
    gpu = {"compute_capability": "9.0", "memory_bytes": 2**40, "free_bytes": 2**39, "usable": True}
    found = {"usable": True, "reason": None, "devices": [gpu] * n}
    monkeypatch.setattr(ikq.cuda, "status", lambda **_: found)


def test_plans_of_gpus_that_are_not_there(tiny_moe, monkeypatch, capsys):
    """Where no GPU is usable those that are named are taken to be there, and that is said; loading refuses them."""
    without_gpus(monkeypatch)
    for options, names in (
        ({"devices": ["cuda07"]}, {"CUDA7"}),
        ({"devices": ["CUDA0"], "n_gpu_layers": 2}, {"CUDA0"}),
        ({"override_tensor": "exps=cuda1"}, {"CUDA1"}),
        ({"devices": ["CUDA0"], "override_tensor": ["exps=CUDA1"]}, {"CUDA0", "CUDA1"}),
    ):
        plan = ikq.Model.plan(tiny_moe, n_ctx=64, **options)
        assert {p.device for p in plan.placement} == {"CPU", *names}
        assert set(plan.assumed) == names
        assert set(plan.buffers) == names
        with pytest.raises(ikq.DeviceError, match=r"^CUDA.*: no GPU is usable: no driver$"):
            ikq.Model.load(tiny_moe, n_ctx=64, **options)
    with pytest.raises(ikq.DeviceError, match=r"^n_gpu_layers=99: no GPU is usable: no driver$"):
        ikq.Model.plan(tiny_moe, n_ctx=64, n_gpu_layers=99)
    run = ["run", "-m", str(tiny_moe), "-p", "a", "-n", "1", "-c", "64"]
    for flags, name in ((["-dev", "cuda7"], "CUDA7"), (["-ot", "exps=CUDA07"], "CUDA7")):
        assert main([*run, *flags, "--dry-run"]) == 0
        out, err = capsys.readouterr()
        assert err == (
            f"note: the plan takes {name} to be there, with memory for all that goes there: no GPU is usable: no driver\n"
        )
        assert re.search(rf"experts +{name} ", out)
        assert main([*run, *flags]) == 1
        assert capsys.readouterr().err == f"error: {name}: no GPU is usable: no driver\n"
    # where none is named, nothing is taken to be there
    assert main([*run, "-ngl", "99", "--dry-run"]) == 1
    assert capsys.readouterr().err == (
        "error: -ngl: no GPU is usable: no driver; --fallback-cpu runs all layers on the CPU; "
        "-dev CUDA0 plans for a GPU that is not there\n"
    )


def test_gpus_among_others_that_are_not_there(tiny_moe, monkeypatch, capsys):
    with_gpus(monkeypatch, 2)
    words = "there is no device CUDA7; there are CPU, CUDA0, CUDA1"
    for options in (
        {"devices": ["CUDA7"]},
        {"devices": ["CPU", "CUDA0", "cuda07"]},
        {"override_tensor": "exps=CUDA7"},
    ):
        for function in (ikq.Model.plan, ikq.Model.load):
            with pytest.raises(ikq.DeviceError, match=words):
                function(tiny_moe, n_ctx=64, **options)
    for more in ([], ["--dry-run"]):
        assert main(["run", "-m", str(tiny_moe), "-p", "a", "-dev", "CUDA0,CUDA7", *more]) == 1
        assert words in capsys.readouterr().err


def test_which_gpus_get_layers(tiny_moe, monkeypatch, capsys):
    with_gpus(monkeypatch, 2)

    def placed(**options):
        placement = ikq.Model.plan(tiny_moe, n_ctx=64, **options).placement
        return [p.device for p in placement if "attention" in p.stage or p.stage == "output"]

    both = ["CUDA0"] * 3 + ["CUDA1"] * 2
    assert placed() == ["CPU"] * 5
    assert placed(n_gpu_layers=-1) == placed(devices=["CUDA0", "CUDA1"]) == both
    assert placed(devices=["cuda1"]) == ["CUDA1"] * 5
    assert placed(devices=["CUDA1"], n_gpu_layers=0) == ["CPU"] * 5
    for alone in (["CPU"], ["none"]):
        assert placed(devices=alone, n_gpu_layers=99) == ["CPU"] * 5
    # a device that only a rule names gets no layers, and no share
    assert placed(devices=["CUDA0"], override_tensor="exps=CUDA1") == ["CUDA0"] * 5
    assert placed(devices=["CUDA0"], override_tensor="exps=CUDA1", tensor_split=[1]) == ["CUDA0"] * 5
    assert placed(override_tensor="exps=CUDA1") == ["CPU"] * 5
    run = ["run", "-m", str(tiny_moe), "--dry-run", "-c", "64"]
    for flags, names, note in (
        (["-dev", "cuda1"], {"CPU", "CUDA1"}, ""),
        (["-ngl", str(2**70)], {"CPU", "CUDA0", "CUDA1"}, ""),
        (["-dev", "none", "-ngl", "9"], {"CPU"}, "note: -ngl ignored: -dev none is the CPU alone\n"),
        (["-dev", "cpu", "--fit"], {"CPU"}, "note: --fit ignored: -dev cpu is the CPU alone\n"),
        (["-ot", "exps=CUDA0"], {"CPU", "CUDA0"}, ""),
        (["-dev", "CUDA1", "-ngl", "0"], {"CPU"}, ""),
    ):
        assert main([*run, *flags]) == 0
        out, err = capsys.readouterr()
        assert (set(re.findall(r"^.{2,30}?  +(C[A-Z]+\d?) ", out, re.M)), err) == (names, note), flags


# The command line


def test_a_dry_run(tiny_moe, capsys):
    arguments = ["run", "-m", str(tiny_moe), "--dry-run", "-c", "300", "-dev", "CPU1", "-ngl", "99", "-cmoe"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert re.fullmatch(r"stage +device +GiB +why", lines[0])
    assert re.fullmatch(r"layers 0-3, attention +CPU1 +0\.\d{3} +n_gpu_layers=99", lines[2])
    assert re.fullmatch(
        r"layers 0-3, experts +CPU +0\.\d{3} +experts stay on the CPU, as asked for", lines[4]
    )
    assert [line.split()[:2] for line in lines[-4:-2]] == [["all", "CPU"], ["all", "CPU1"]]
    assert re.fullmatch(r"weights: 0\.015 GiB \(\d+ bytes\)", lines[-2])
    with ikq.Model.load(tiny_moe, n_ctx=300) as model:
        n = model.sequence_bytes(300)
    assert re.fullmatch(rf"cache: 0\.\d{{3}} GiB \({n} bytes\) for a text of 300 tokens", lines[-1])
    assert main([*arguments, "-ot", "exps=GPU"]) == 2
    assert "there is no device GPU" in capsys.readouterr().err


def test_shares_on_the_command_line(tiny_moe, capsys):
    arguments = ["run", "-m", str(tiny_moe), "--dry-run", "-c", "64", "-dev", "CPU1,CPU2"]
    for text in ("3,2", "3/2", "0.3,0.2"):
        assert main([*arguments, "-ngl", "all", "-ts", text]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        split = text.replace("/", ",")
        assert re.search(rf"^layers 0-2, experts +CPU1 .*n_gpu_layers=all, tensor_split={split}$", out, re.M)
        assert re.search(r"^layer 3, experts +CPU2 ", out, re.M)
    assert main([*arguments, "-ngl", "all", "-ts", "3"]) == 2
    assert "tensor_split=3: one number per device is needed" in capsys.readouterr().err
    for text in ("3,x", "nan", "1,inf", "-1,2", "0,0", ""):
        with pytest.raises(SystemExit) as error:
            main([*arguments, f"-ts={text}"])
        assert error.value.code == 2
        err = capsys.readouterr().err
        assert f"argument -ts/--tensor-split: {text!r}: expected numbers joined by commas, such as 3,1" in err
    # of any size, as they are proportions
    assert main([*arguments, "-ts", "1e308,1e308"]) == 0
    assert re.search(r"^layers 0-2, experts +CPU1 ", capsys.readouterr().out, re.M)
    # without layers to divide it says nothing
    assert main(["run", "-m", str(tiny_moe), "--dry-run", "-c", "64", "-ts", "3,2"]) == 0
    out, err = capsys.readouterr()
    assert "note: -ts ignored" in err
    assert "tensor_split" not in out


def test_explain(tiny_moe, capsys):
    assert main(["explain", str(tiny_moe), "-ot", "exps=cpu1", "-rtr"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^layers 0-3, experts +CPU1 .*override_tensor$", out, re.M)
    assert err == "note: -rtr ignored: weights are re-arranged while loading in any case\n"
    assert main(["explain", str(tiny_moe), "-c", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {p["device"] for p in found["placement"]} == {"CPU"}
    assert found["sequence_bytes"] > 0 == found["memory"]["cache"]


def test_text_from_two_devices(tiny_moe, capsys):
    arguments = ["run", "-m", str(tiny_moe), "-p", "import sys", "-n", "20", "-s", "1", "--no-perf"]
    texts = []
    for options in ([], ["-dev", "CPU1", "-ngl", "2"], ["-ot", "exps=CPU1,attn=CPU1"]):
        assert main([*arguments, *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("function", [ikq.Model.load, ikq.Model.plan])
def test_what_is_no_number_or_no_name_is_told(tiny_moe, function):
    for options, words in (
        ({"n_ctx": -1}, "n_ctx=-1: expected"),
        ({"n_ctx": 10**30}, "is too large"),
        ({"n_ubatch": -7}, "n_ubatch=-7: expected"),
        ({"n_ctx": 1.5}, "n_ctx=1.5: expected a whole number"),
        ({"devices": 1}, "devices=1: expected names of devices"),
        ({"devices": ["CPU1"], "tensor_split": "31"}, "tensor_split='31': expected numbers"),
        ({"cache_type_k": "q9"}, "cache_type_k=q9: there is no cache of this type; there are f32"),
    ):
        with pytest.raises((ValueError, TypeError, ikq.IkqError), match=re.escape(words)):
            function(tiny_moe, **({"n_ctx": 64} | options))
    # names in a text are those of the command line
    plan = ikq.Model.plan(tiny_moe, n_ctx=64, devices="CPU,CPU1")
    assert {p.device for p in plan.placement} == {"CPU", "CPU1"}
