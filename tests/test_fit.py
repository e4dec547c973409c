"""`fit`: the placement that fills a GPU's memory and no more. No GPU is there; what one has is said by a stand-in."""

import json
import re
import shlex
from functools import partial

import pytest
from model_files import NAMES, RECURRENT, path, reader
from mtp_files import with_head
from seeded_models import case, write_folder

import ikq
import ikq.cuda
from ikq.__main__ import main
from ikq.inference import fitting
from ikq.models import model_spec

MIB = 2**20
SMALL = {"n_ctx": 300, "n_ubatch": 8}
DENSE = ("llama/llama-bf16", "gemma3/gemma3-bf16", "qwen2/qwen2-f32")
MIXTURES = (
    "qwen3moe/qwen3moe-bf16",
    "glm4moe/glm4moe-bf16",
    "deepseek3/deepseek3-bf16",
    "gpt-oss/gpt-oss-mxfp4",
)


# small models without parts that GPUs lack, and what stays of others
WHOLE = ("bailingmoe2", "seed_oss")
MIXTURE = {"router", "experts", "shared expert"}
STAYING = {
    "cohere2moe": {"attention", "FFN", "output", *MIXTURE},
    "granite": {"attention", "FFN"},
    "hunyuan-moe": {"attention"},
    "laguna": {"attention"},
    "llama4": {"attention", *MIXTURE},
    "mimo2": {"attention"},
    "minimax-m2": {"attention"},
    "mistral4": {"attention"},
    "step35": {"attention", *MIXTURE},
}


@pytest.fixture
def gpu(monkeypatch):
    """Says how many bytes GPUs have free; they have twice as many."""

    def gpus(*sizes):
        devices = [
            {
                "name": "GPU",
                "compute_capability": "9.0",
                "memory_bytes": 2 * n,
                "free_bytes": n,
                "n_multiprocessors": 4,
                "usable": True,
            }
            for n in sizes
        ]
        found = {"usable": True, "reason": None, "reason_code": None, "devices": devices}
        monkeypatch.setattr(ikq.cuda, "status", lambda **_: found)

    return gpus


def fitted(file, **options):
    return ikq.Model.plan(file, **{"fit": True, "fit_margin": 0, **SMALL, **options})


def stages_on(plan, device, role=""):
    return [p.stage for p in plan.placement if p.device == device and p.stage.endswith(role)]


def test_a_full_gpu_holds_nothing(tiny_moe, gpu):
    gpu(0)
    with pytest.raises(ikq.DeviceError, match="CUDA0 has 0.0 MiB free"):
        fitted(tiny_moe)


@pytest.mark.parametrize("name", NAMES)
def test_what_fits_is_all_on_the_gpu(name, gpu):
    gpu(2**40)
    plan = fitted(path(name))
    assert stages_on(plan, "CPU") == ["embedding"]
    # with as many bytes as it takes it fits, with one fewer it does not
    gpu(plan.fitted.needed)
    filled = (plan.fitted.devices[0]._replace(memory=plan.fitted.needed),)
    assert fitted(path(name)) == plan._replace(fitted=plan.fitted._replace(devices=filled))
    gpu(plan.fitted.needed - 1)
    assert len(stages_on(fitted(path(name)), "CPU")) > len(stages_on(plan, "CPU"))


@pytest.mark.parametrize("name", STAYING | dict.fromkeys(WHOLE))
def test_what_gpus_do_not_compute_stays(name, gpu, tmp_path):
    """And is refused by name where it shall go there: of new architectures by their small models."""
    file = tmp_path / "x.gguf"
    ikq.convert_checkpoint(write_folder(tmp_path / "hf", case(name)), file, "f32")
    gpu(2**40)
    plan = fitted(file)
    staying = {stage.split(", ")[-1] for stage in stages_on(plan, "CPU") if stage != "embedding"}
    if name in WHOLE:
        assert not staying
        return
    assert staying == STAYING[name]
    with pytest.raises(ikq.DeviceError, match="is not computed on GPUs yet; leave it on the CPU"):
        ikq.Model.plan(file, **SMALL, devices=["CPU", "CUDA0"], n_gpu_layers=99)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_leave_from_the_last_layer_backwards(name, gpu):
    """As few as need be: with one layer's experts more the GPU would be too small."""
    gpu(2**40)
    everything = fitted(path(name))
    with_experts = stages_on(everything, "CUDA0", "experts")
    sizes = {p.stage: p.bytes for p in everything.placement}
    needed = everything.fitted.needed
    for n in range(1, len(with_experts) + 1):
        memory = needed - 1  # too small for what was there before
        gpu(memory)
        plan = fitted(path(name))
        assert stages_on(plan, "CPU")[1:] == with_experts[len(with_experts) - n :]
        needed = plan.fitted.needed
        assert needed <= memory < needed + 1.25 * sizes[with_experts[-n]] + MIB
    # then the output and the first layers go, experts staying in RAM
    n_layers = len(model_spec(reader(name)).layers)
    for n in range(n_layers, 0, -1):
        gpu(needed - 1)
        plan = fitted(path(name))
        assert plan.fitted.n_gpu_layers == n
        assert stages_on(plan, "CUDA0", "experts") == []
        assert stages_on(plan, "CUDA0", "attention") == [
            f"layer {i}, attention" for i in range(n_layers - n, n_layers)
        ]
        assert plan.fitted.needed < needed
        needed = plan.fitted.needed
    gpu(needed - 1)
    with pytest.raises(ikq.DeviceError, match=r"even one layer takes .* beside the margin of 0 MiB"):
        fitted(path(name))


@pytest.mark.parametrize("name", DENSE)
def test_layers_of_dense_models_leave_from_the_first(name, gpu):
    gpu(2**40)
    needed = fitted(path(name)).fitted.needed
    for n in range(len(model_spec(reader(name)).layers), 0, -1):
        gpu(needed - 1)
        plan = fitted(path(name))
        assert (plan.fitted.n_gpu_layers, plan.fitted.override_tensor) == (n, ())
        assert "output" in stages_on(plan, "CPU")
        needed = plan.fitted.needed
    gpu(needed - 1)
    with pytest.raises(ikq.DeviceError, match="even one layer"):
        fitted(path(name))


@pytest.mark.parametrize("name", RECURRENT)
def test_states_of_recurrent_layers_are_counted(name, gpu):
    """A text has a state, the one before its last step, and snapshots: one per 512 positions, four, and one that is added."""
    gpu(2**40)
    page, states = {}, {}
    for n_ctx in (256, 512, 1024, 2560, 8192):
        plan = fitted(path(name), n_ctx=n_ctx)
        with ikq.Model.load(path(name), n_ctx=n_ctx) as model:
            assert ikq.Model.plan(path(name), n_ctx=n_ctx).cache == model.sequence_bytes(n_ctx)
        states[n_ctx] = plan.cache
        page[n_ctx] = n_ctx // 256
    per_page = (states[8192] - states[2560]) // (page[8192] - page[2560])
    state = (states[256] - per_page) // 2
    for n_ctx, n_states in ((256, 2), (512, 3), (1024, 4), (2560, 7), (8192, 7)):
        assert states[n_ctx] == page[n_ctx] * per_page + n_states * state


@pytest.mark.parametrize(
    "name", ["llama/llama-bf16", "qwen3next/qwen3next-bf16", "deepseek2-lite/deepseek2-lite-bf16"]
)
def test_a_cache_in_ram_is_not_counted(name, gpu):
    """Its layers' matrices are on the GPU; latent attention and recurrent layers stay in RAM as a whole."""
    gpu(2**40)
    kinds = [layer.attention.kind for layer in model_spec(reader(name)).layers]
    plan, everything = fitted(path(name), kv_offload=False), fitted(path(name))
    parted = [i for i, kind in enumerate(kinds) if kind == "gqa"]
    assert stages_on(plan, "CUDA0", "attention") == [f"layer {i}, attention" for i in parted]
    assert stages_on(plan, "CPU", "cache") == [f"layer {i}, cache" for i in parted]
    assert stages_on(plan, "CPU", "attention") == [
        f"layer {i}, attention" for i in range(len(kinds)) if i not in parted
    ]
    assert plan.fitted.cache == 0 < plan.cache
    is_parted = len(parted) == len(kinds)
    assert (plan.fitted.weights == everything.fitted.weights) == is_parted
    assert plan.fitted.step <= everything.fitted.step
    assert {p.why for p in plan.placement if p.stage.endswith("cache")} <= {
        "the cache stays on the CPU, as asked for"
    }
    # where the matrices are in RAM there is nothing to part
    some = ikq.Model.plan(path(name), **SMALL, devices=["CPU", "CUDA0"], n_gpu_layers=1, kv_offload=False)
    last = len(kinds) - 1
    assert stages_on(some, "CPU", "cache") == [f"layer {i}, cache" for i in parted if i == last]


def test_what_is_counted(tiny_moe, gpu):
    """Weights and cache are the core's; the margin, more texts, larger contexts and steps take their part."""
    gpu(2**40)
    plan = fitted(tiny_moe)
    found = plan.fitted
    assert found.weights == plan.weights["CUDA0"]
    assert found.cache == plan.cache * 5 // 4
    assert {"CUDA0": found.step} == plan.buffers
    assert fitted(tiny_moe, fit_sequences=3).fitted.cache == 3 * found.cache
    assert fitted(tiny_moe, n_ctx=600).fitted.cache > found.cache
    assert fitted(tiny_moe, n_ubatch=16).fitted.step > found.step
    assert fitted(tiny_moe, cache_type_k="f32").fitted.cache > found.cache
    gpu(found.needed + 7 * MIB)
    assert stages_on(fitted(tiny_moe, fit_margin=7), "CPU") == ["embedding"]
    assert stages_on(fitted(tiny_moe, fit_margin=8), "CPU") == ["embedding", "layer 3, experts"]
    # of half of the layers, half of the cache
    half = fitted(tiny_moe, n_gpu_layers=2)
    assert (half.fitted.n_gpu_layers, half.fitted.cache) == (2, found.cache // 2)
    assert stages_on(half, "CUDA0", "experts") == ["layer 2, experts", "layer 3, experts"]


@pytest.mark.parametrize(
    "name", ["qwen3moe/qwen3moe-bf16", "llama/llama-bf16", "deepseek3/deepseek3-bf16", "gemma3/gemma3-bf16"]
)
def test_several_gpus_are_filled(name, gpu, monkeypatch):
    """The first holds as many layers as it can, and so on; together they hold what the placement has."""
    answer = fitting._Search.fitted

    def checked(search, level, is_all):
        split = search.split(level)
        for i, gpu in enumerate(search._gpus):
            # one layer more would be too much for any but the last
            after = next((j for j in range(i + 1, len(split)) if split[j]), None)
            if after is not None:
                with_more = list(split)
                with_more[i], with_more[after] = split[i] + 1, split[after] - 1
                assert search.taken(level, tuple(with_more))[i].needed > gpu.free
        return answer(search, level, is_all)

    monkeypatch.setattr(fitting._Search, "fitted", checked)
    gpu(2**40)
    whole = fitted(path(name)).fitted
    n_units = whole.n_gpu_layers
    for shares in ((0.6, 0.6), (0.3, 0.5, 0.4), (0.0, 0.8, 0.1), (0.2, 2.0)):
        gpu(*(int(share * whole.needed) + whole.step for share in shares))
        plan = fitted(path(name))
        found = plan.fitted
        assert [d.device for d in found.devices] == [f"CUDA{i}" for i in range(len(shares))]
        assert all(d.needed <= d.memory for d in found.devices)
        assert sum(found.tensor_split) == found.n_gpu_layers
        # what is told of each is what the core tells of the placement, and layers follow one another
        for d in found.devices:
            assert (d.weights, d.step) == (plan.weights[d.device], plan.buffers[d.device])
        order = [p.device for p in plan.placement if p.device != "CPU" and "attention" in p.stage]
        assert order == sorted(order)
    # a GPU that holds nothing has no share
    gpu(1000, 2**40)
    assert fitted(path(name)).fitted.tensor_split == (0, n_units)
    gpu(1000, 1000)
    with pytest.raises(ikq.DeviceError, match=r"CUDA0 has 0.0 MiB free and CUDA1 has 0.0 MiB free, and even"):
        fitted(path(name))


def test_a_context_that_nobody_asked_for(tiny_moe, gpu):
    """Its cache takes at most a quarter of the memory."""
    trained = {"override_kv": {"qwen3moe.context_length": 8192}}
    whole = ikq.Model.plan(tiny_moe, **trained)
    assert whole.n_ctx == 8192
    memory = 5 * whole.cache  # as it grows by a quarter more than is needed
    for size, n_ctx in ((2**40, 8192), (memory, 8192), (memory - 4, 4096), (memory // 8, 1024)):
        gpu(size)
        plan = fitted(tiny_moe, n_ctx=None, **trained)
        assert plan.n_ctx == plan.fitted.n_ctx == n_ctx
    assert fitted(tiny_moe, n_ctx=None, fit_sequences=2, **trained).n_ctx == 512


def test_few_predictions_are_made(gpu, monkeypatch):
    """They are searched by halves: the model has 26 layers, so 53 placements."""
    name = "deepseek2-lite/deepseek2-lite-bf16"
    gpu(2**40)
    needed = fitted(path(name)).fitted.needed
    counted = []
    plan = fitting._Search._plan
    monkeypatch.setattr(fitting._Search, "_plan", lambda *a: counted.append(a) or plan(*a))
    gpu(needed // 2)
    assert fitted(path(name)).fitted.cpu_moe
    assert len(counted) <= 6 + 1  # the answer is looked up once more
    # of four GPUs the first three are filled by halves as well
    gpu(*([needed // 8] * 4))
    counted.clear()
    assert fitted(path(name)).fitted.cpu_moe
    assert len(counted) <= 6 * (3 * 5 + 1) + 1


def test_options_that_do_not_go_together(tiny_moe, gpu):
    gpu(2**40)
    for options in (
        {"override_tensor": "exps=CPU"},
        {"cpu_moe": True},
        {"n_cpu_moe": 1},
        {"tensor_split": [1]},
    ):
        with pytest.raises(ikq.RefusedError, match="fit decides what goes where"):
            fitted(tiny_moe, **options)
        with pytest.raises(ikq.RefusedError, match="fit decides what goes where"):
            ikq.Model.load(tiny_moe, fit=True, **options)
    for devices in (["CPU", "CPU1"], ["CPU", "CUDA0", "CPU1"]):
        with pytest.raises(ikq.RefusedError, match="fit is for GPUs, such as CUDA0, not for CPU1"):
            fitted(tiny_moe, devices=devices)
    with pytest.raises(ikq.DeviceError, match="there is no device CUDA3; there are CPU, CUDA0"):
        fitted(tiny_moe, devices=["CPU", "CUDA3"])
    for options in ({"fit_margin": -1}, {"fit_sequences": 0}):
        with pytest.raises(ikq.RefusedError, match="expected"):
            fitted(tiny_moe, **options)
    for name, what in (("fit_margin", "MiB"), ("fit_sequences", "texts")):
        for function in (fitted, partial(ikq.Model.load, fit=True)):
            with pytest.raises(TypeError, match=f"{name}=1.5: expected a whole number of {what}"):
                function(tiny_moe, **{name: 1.5})


def test_without_a_gpu(tiny_moe, monkeypatch):
    found = {"usable": False, "reason": "no driver", "reason_code": "no-driver", "devices": []}
    monkeypatch.setattr(ikq.cuda, "status", lambda **_: found)
    with pytest.raises(ikq.DeviceError, match="no GPU is usable: no driver"):
        fitted(tiny_moe)
    with pytest.raises(ikq.DeviceError, match="no GPU is usable: no driver"):
        ikq.Model.load(tiny_moe, fit=True)


# The command line


def dry_run(capsys, *arguments):
    """Placement table and notes of a command that must work."""
    assert main(["run", "--dry-run", *map(str, arguments)]) == 0
    return capsys.readouterr()


def table(out):
    """Rows without the reasons, and the lines below."""
    return [line.split("  ")[:1] + re.findall(r"CPU|CUDA\d|\d+\.\d+", line) for line in out.splitlines()]


@pytest.mark.parametrize("share", [1.0, 0.8, 0.5, 0.25])
@pytest.mark.parametrize(
    "name", ["deepseek2-lite/deepseek2-lite-bf16", "qwen3next/qwen3next-bf16", "gemma3/gemma3-bf16"]
)
def test_the_printed_options_say_the_same(name, share, gpu, capsys):
    gpu(10**12)
    needed = fitted(path(name)).fitted.needed
    # one GPU; the second of two; both, of which each has
    for sizes, where in (([share], []), ([0.01, share], ["-dev", "CUDA1"]), ([share, share / 2], [])):
        gpu(*(int(size * needed) for size in sizes))
        out, err = dry_run(capsys, "-m", path(name), "--fit", "--fit-margin", 0, "-c", 300, "-ub", 8, *where)
        printed = re.fullmatch(r"note: --fit: the same as (-c 300 .*): CUDA\d holds .*\n", err)
        assert ("-ts" in printed[1]) == (len(sizes) == 2 and not where)
        again, silence = dry_run(capsys, "-m", path(name), "-ub", 8, *shlex.split(printed[1]))
        assert table(again) == table(out)
        assert silence == ""


def test_the_command(tiny_moe, gpu, capsys):
    gpu(2**40)
    needed = fitted(tiny_moe).fitted.needed
    gpu(needed + 7 * MIB)
    common = ["-m", tiny_moe, "-c", 300, "-ub", 8]
    out, err = dry_run(capsys, *common, "--fit", "--fit-margin", 8)
    assert re.search(r"^layers 0-2, experts +CUDA0 ", out, re.M)
    assert re.search(r"^layer 3, experts +CPU ", out, re.M)
    assert r"-c 300 -ngl 5 -ot 'blk\.3\.ffn_.*_exps=CPU': CUDA0 holds weights of 0.0" in err
    # with -ngl at most so many layers; `off` is as if it were not there
    _, err = dry_run(capsys, *common, "--fit", "--fit-margin", 0, "-ngl", 2)
    assert "-c 300 -ngl 2: CUDA0" in err
    _, err = dry_run(capsys, *common, "--fit", "off", "-ot", "exps=CPU")
    assert err == ""
    for more in (["-ot", "exps=CPU"], ["-ts", "1"], ["-cmoe"], ["-ncmoe", "1"], ["--fit-margin", "-1"]):
        assert main(["run", "--dry-run", *map(str, common), "--fit", *more]) == 2
        assert capsys.readouterr().err.startswith("error: --fit")
    # the margin is all of the memory
    assert main(["run", "--dry-run", *map(str, common), "--fit"]) == 2
    assert "beside the margin of 1024 MiB" in capsys.readouterr().err
    assert main(["bench", "-m", str(tiny_moe), "--fit", "-ncmoe", "1"]) == 2
    assert "--fit decides what goes where" in capsys.readouterr().err


def test_the_command_without_a_gpu(tiny_moe, monkeypatch, capsys):
    found = {"usable": False, "reason": "no driver", "reason_code": "no-driver", "devices": []}
    monkeypatch.setattr(ikq.cuda, "status", lambda **_: found)
    arguments = ["run", "--dry-run", "-m", str(tiny_moe), "-c", "64", "--fit"]
    assert main(arguments) == 1
    words = "--fit: no GPU is usable: no driver; --fallback-cpu runs all layers on the CPU"
    assert capsys.readouterr().err == f"error: {words}\n"
    assert main([*arguments, "--fallback-cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == "note: --fit: no GPU is usable: no driver; all layers run on the CPU\n"
    assert "CUDA" not in out
    assert main(["explain", str(tiny_moe), "-c", "64", "--json", "--fit", "--fallback-cpu"]) == 0
    assert {p["device"] for p in json.loads(capsys.readouterr().out)["placement"]} == {"CPU"}
    with pytest.raises(SystemExit):
        main(["run", "-m", str(tiny_moe), "--fit", "perhaps"])
    assert "expected on or off" in capsys.readouterr().err


# What drafts


@pytest.fixture
def with_a_head(tmp_path):
    file = tmp_path / "head.gguf"
    with_head("glm4moe/glm4moe-bf16").write(file)
    return file


def kinds(plan, gpu="CUDA0"):
    """What a plan takes of a GPU, its cache grown by a quarter."""
    return plan.weights[gpu] + plan.caches[gpu] * 5 // 4 + plan.buffers[gpu]


def test_a_draft_model_takes_its_room(gpu):
    """As much as it would by itself with the model's context; with a byte less, less of the model is there."""
    file, small = path("qwen3moe/qwen3moe-bf16"), path("llama/llama-bf16")
    gpu(2**40)
    alone = fitted(file)
    draft = ikq.Model.plan(small, **SMALL, devices=["CPU", "CUDA0"], n_gpu_layers=99)
    plan = fitted(file, draft_model=small)
    assert plan.draft_model == draft._replace(placement=plan.draft_model.placement)
    assert [p[:3] for p in plan.draft_model.placement] == [p[:3] for p in draft.placement]
    assert plan.placement == alone.placement
    assert plan.fitted.drafts == kinds(draft) > 0 == alone.fitted.drafts
    needed = plan.fitted.needed
    assert needed == alone.fitted.needed + kinds(draft)
    assert "what drafts of" in plan.fitted.sentence
    assert "drafts" not in alone.fitted.sentence
    gpu(needed)
    assert fitted(file, draft_model=small).placement == plan.placement
    gpu(needed - 1)
    assert len(stages_on(fitted(file, draft_model=small), "CPU")) > len(stages_on(plan, "CPU"))
    assert fitted(file).placement == plan.placement
    # each text has one of its own
    gpu(2**40)
    three = fitted(file, draft_model=small, fit_sequences=3)
    assert three.fitted.drafts - plan.fitted.drafts == 2 * (draft.caches["CUDA0"] * 5 // 4)


def test_a_draft_model_elsewhere_takes_none(gpu):
    file, small = path("qwen3moe/qwen3moe-bf16"), path("llama/llama-bf16")
    gpu(2**40, 2**40)
    for options in ({"devices": ["CPU"], "n_gpu_layers": 0}, {"n_gpu_layers": 0}):
        plan = fitted(file, draft_model=small, draft_options=options)
        assert plan.fitted.drafts == 0
        assert {p.device for p in plan.draft_model.placement} == {"CPU"}
    there = fitted(file, draft_model=small, draft_options={"devices": ["CPU", "CUDA1"], "n_gpu_layers": 99})
    assert [d.drafts > 0 for d in there.fitted.devices] == [False, True]
    with pytest.raises(ikq.RefusedError, match="fit is an option of the model that is drafted for"):
        fitted(file, draft_model=small, draft_options={"fit": True})


def test_it_is_where_the_last_layers_are(gpu):
    """Of two GPUs the second one, if the first does not hold all."""
    file, small = path("qwen3moe/qwen3moe-bf16"), path("llama/llama-bf16")
    gpu(2**40, 2**40)
    whole = fitted(file, draft_model=small)
    assert [d.drafts > 0 for d in whole.fitted.devices] == [True, False]
    gpu(whole.fitted.devices[0].needed - 1, 2**40)
    parted = fitted(file, draft_model=small)
    assert [d.drafts > 0 for d in parted.fitted.devices] == [False, True]
    assert {p.device for p in parted.draft_model.placement} == {"CPU", "CUDA1"}


def test_a_head_takes_its_room(gpu, with_a_head):
    gpu(2**40)
    alone, plan = fitted(with_a_head), fitted(with_a_head, mtp=True)
    assert plan.fitted.drafts == kinds(plan.mtp) == plan.fitted.needed - alone.fitted.needed > 0
    gpu(plan.fitted.needed - 1)
    assert len(stages_on(fitted(with_a_head, mtp=True), "CPU")) > len(stages_on(plan, "CPU"))
    assert fitted(with_a_head).placement == plan.placement
    with pytest.raises(ikq.RefusedError, match="has no head for further tokens"):
        fitted(path("llama/llama-bf16"), mtp=True)


def test_commands_tell_what_drafts_take(gpu, with_a_head, tiny_moe, capsys):
    gpu(2**40)
    small = ["-c", "300", "-ub", "8"]
    assert main(["run", "-m", str(with_a_head), "--mtp", "--dry-run", "--fit", *small]) == 0
    told = capsys.readouterr()
    plan = fitted(with_a_head, mtp=True, fit_margin=1024)
    assert f"what drafts of {plan.fitted.drafts / 2**30:.3f} GiB" in told.err
    model, head = told.out.split("head for further tokens:\n")
    assert f"({plan.buffers['CUDA0']} bytes)" in model
    assert f"({plan.mtp.buffers['CUDA0']} bytes)" in head
    assert f"({plan.mtp.cache} bytes)" in head
    assert main(["run", "-m", str(tiny_moe), "-md", str(tiny_moe), "--dry-run", "-ngl", "99", *small]) == 0
    model, draft = capsys.readouterr().out.split("draft model:\n")
    assert model.replace("n_gpu_layers=99", "n_gpu_layers=all") == draft
    assert main(["explain", str(tiny_moe), "-md", str(tiny_moe), *small]) == 0
    told = capsys.readouterr().out
    assert told.count("for 300 positions") == 2
    assert "draft model, architecture" in told
    assert main(["explain", str(with_a_head), "--mtp", "--json", *small]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {p["device"] for p in found["mtp"]} == {"CPU"}
