"""Looking for a driver, GPUs and NVRTC: every machine gives an answer, none an exception or a crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulator import GXX, cache_folder, needs_gxx
from standin import environment, ikq_command, libraries, run, status

import ikq
import ikq.cuda


def without_gpu(**more: str | None) -> dict[str, str]:
    """An environment without the stand-ins, for machines that may have a GPU."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("IKQ_")}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(ikq.__file__).parents[1]), str(Path(__file__).parent)])
    return env | {k: v for k, v in more.items() if v is not None}


def test_importing_loads_nothing_of_cuda():
    code = "import ikq, ikq.cli, ikq.cuda; print('libcuda' in (m := open('/proc/self/maps').read()), 'nvrtc' in m)"
    assert run(code, without_gpu()).split() == ["False", "False"]


def test_a_status_is_never_an_error():
    found = ikq.cuda.status()
    assert found["usable"] == (found["reason"] is None) == (found["reason_code"] is None)
    if not found["usable"]:
        with pytest.raises(ikq.DeviceError, match="no GPU is usable"):
            ikq.cuda.require()


def test_switched_off():
    found = status(without_gpu(IKQ_CUDA="0"))
    assert (found["usable"], found["reason_code"]) == (False, "disabled")
    assert "IKQ_CUDA=0" in found["reason"]


def library(name: str, text: str, *flags: str) -> Path:
    """A folder with a library of this text as libcuda.so."""
    folder = cache_folder() / f"no-driver-{name}-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    (folder / "library.cpp").write_text(text)
    subprocess.run(
        [GXX, "-shared", "-fPIC", *flags, folder / "library.cpp", "-o", folder / "libcuda.so"], check=True
    )
    return folder


@needs_gxx
def test_a_library_that_is_no_driver():
    folder = library("empty", 'extern "C" int cuInit(unsigned) { return 0; }')
    found = status(environment(LD_LIBRARY_PATH=str(folder)))
    assert (found["usable"], found["reason_code"]) == (False, "not-a-driver")
    assert "it has no cu" in found["reason"]


@needs_gxx
@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ({"IKQ_STANDIN_INIT": "34"}, "stub", "LD_LIBRARY_PATH"),
        ({"IKQ_STANDIN_INIT": "100"}, "no-device", "CUDA_VISIBLE_DEVICES"),
        ({"IKQ_STANDIN_INIT": "803"}, "init", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ({"IKQ_STANDIN_DEVICES": "0"}, "no-device", "no GPU"),
        ({"IKQ_STANDIN_CUDA": "11080"}, "old-driver", "CUDA 11.8, but 12.0 is needed"),
        ({"IKQ_STANDIN_SM": "61"}, "old-devices", "7.5"),
        ({"IKQ_NVRTC": "/nowhere"}, "no-nvrtc", "pip install ikq[cuda]`"),
        ({"IKQ_NVRTC": "/nowhere", "IKQ_STANDIN_CUDA": "12040"}, "no-nvrtc", "pip install ikq[cuda12]`"),
        # NVRTC of a newer CUDA than the driver's
        ({"IKQ_STANDIN_CUDA": "12040"}, "no-nvrtc", "needs a driver of CUDA 13"),
    ],
)
def test_reasons(setting, code, words):
    # packages of NVIDIA that are installed here are not looked at
    env = environment(**setting)
    hide = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'nvidia' else f(n, *a)\n"
    text = run(
        hide + "import ikq.cuda; s = ikq.cuda.status(); print(s['usable'], s['reason_code'], s['reason'])",
        env,
    )
    if code == "no-nvrtc" and text.startswith("True"):
        pytest.skip("the loader's own search finds an NVRTC here")
    assert text.startswith(f"False {code} ")
    assert words in text


@needs_gxx
def test_the_stand_in_is_usable():
    found = status(environment(IKQ_STANDIN_DEVICES="2", IKQ_STANDIN_SM="86"))
    assert found["usable"]
    assert found["emulated"]
    assert (found["cuda_version"], found["nvrtc_version"]) == ("13.0", "13.0")
    assert found["nvrtc"] == str(libraries() / "libnvrtc.so.13")
    assert [d["name"] for d in found["devices"]] == ["ikq emulator 0", "ikq emulator 1"]
    assert {d["compute_capability"] for d in found["devices"]} == {"8.6"}


@needs_gxx
def test_free_memory_is_told():
    """What other programs and this one have does not count; a question leaves nothing behind."""
    code = """
import ikq, ikq.cuda, json, numpy as np, sys
def told(**how): return [[d["memory_bytes"], d["free_bytes"]] for d in ikq.cuda.status(**how)["devices"]]
found = [told(memory=False), told()]
with ikq.Model.load(sys.argv[1], n_ctx=64, override_tensor="output=CUDA1") as model:
    weights = ikq.Model.plan(sys.argv[1], override_tensor="output=CUDA1").weights
    held = told()
    model.logits([1, 2, 3])
print(json.dumps([*found, held, told(), weights["CUDA1"]]))
"""
    env = environment(
        IKQ_STANDIN_DEVICES="2", IKQ_STANDIN_MEMORY="5000000,64000000", IKQ_STANDIN_USED="1000,2000"
    )
    tiny = Path(__file__).parents[1] / "data/tiny-moe-bf16.gguf"
    unasked, before, held, after, weights = json.loads(run(code, env, str(tiny)))
    assert unasked == [[5_000_000, None], [64_000_000, None]]
    assert before == after == [[5_000_000, 4_999_000], [64_000_000, 63_998_000]]
    assert held == [before[0], [64_000_000, 63_998_000 - weights]]
    # too old to be used, and so not asked
    found = status(environment(IKQ_STANDIN_SM="61"))
    assert found["devices"][0]["free_bytes"] is None


@needs_gxx
def test_a_fork_of_a_process_that_used_a_gpu():
    code = """
import os, ikq.cuda
assert ikq.cuda.status()["usable"]
if (child := os.fork()) == 0:
    print(ikq.cuda.status()["reason_code"], flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    assert run(code, environment()).split() == ["forked"]


# The command line


def test_layers_for_a_gpu_that_is_not_there(tiny_moe):
    env = without_gpu(IKQ_CUDA="0")
    arguments = ("run", "-m", str(tiny_moe), "-p", "import", "-n", "1", "--no-perf")
    done = ikq_command(env, *arguments, "-ngl", "99")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: -ngl: no GPU is usable: GPUs are switched off by IKQ_CUDA=0; ")
    assert "--fallback-cpu" in done.stderr
    done = ikq_command(env, *arguments, "-ngl", "99", "--fallback-cpu")
    assert done.returncode == 0
    assert "note: -ngl: no GPU is usable" in done.stderr
    done = ikq_command(env, *arguments, "-dev", "CUDA0", "--fallback-cpu")
    assert done.returncode == 0
    assert "note: -dev CUDA0: no GPU is usable" in done.stderr
    # a second CPU takes them, whatever GPUs there are
    assert ikq_command(env, *arguments, "-ngl", "99", "-dev", "CPU1").returncode == 0


def test_info_and_status():
    env = without_gpu(IKQ_CUDA="0")
    done = ikq_command(env, "info", "F16", "--no-self-test")
    assert done.returncode == 0
    assert "no GPU is usable: GPUs are switched off" in done.stdout
    done = ikq_command(env, "cuda")
    assert (done.returncode, done.stdout.startswith("no GPU is usable")) == (1, True)
    done = ikq_command(env, "cuda", "status", "--json")
    assert '"reason_code": "disabled"' in done.stdout


@needs_gxx
def test_status_of_the_stand_in():
    done = ikq_command(environment(), "cuda")
    assert done.returncode == 0
    assert (
        "GPU: ikq emulator 0, compute capability 9.0, 1.0 of 1.0 GiB free, 4 multiprocessors" in done.stdout
    )
    assert "NVRTC: 13.0" in done.stdout


@needs_gxx
def test_warming(tiny_moe, tmp_path):
    """Kernels are compiled once, kept, compiled again where what was kept is damaged, and also where nothing can be."""
    env = environment(tmp_path)
    arguments = ("cuda", "warm", str(tiny_moe))
    first = ikq_command(env, *arguments)
    assert first.returncode == 0, first.stderr
    assert "sm_90 mmv.cu [IKQ_TYPE=bf16]: compiled" in first.stdout
    again = ikq_command(env, *arguments)
    assert ": compiled" not in again.stdout
    assert "sm_90: 0 compiled" in again.stdout
    kept = sorted((tmp_path / "cubin").iterdir())
    assert {f.suffix for f in kept} == {".cubin"}
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    assert "sm_90: 1 compiled" in ikq_command(env, *arguments).stdout
    # another architecture is other code, and an unknown one an error
    assert ": compiled" in ikq_command(env, *arguments, "--arch", "sm_80").stdout
    for same in ("90", "9.0", "SM_90"):
        assert "sm_90: 0 compiled" in ikq_command(env, *arguments, "--arch", same).stdout
    wrong = ikq_command(env, *arguments, "--arch", "sm_1")
    assert wrong.returncode == 2
    assert "there is no architecture `sm_1`" in wrong.stderr
    (tmp_path / "file").write_text("")
    nowhere = ikq_command(environment(tmp_path / "file"), *arguments)
    assert (nowhere.returncode, ": compiled" in nowhere.stdout) == (0, True)


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="NVRTC is a library for x86-64"
)
def test_a_real_nvrtc_compiles(tmp_path):
    """Needs NVIDIA's package, but no GPU."""
    places = [p for p in ikq.cuda.places_of_nvrtc() if p.exists()]
    if not places:
        pytest.skip("NVRTC is not installed (`pip install ikq[cuda]`)")
    env = without_gpu(IKQ_CACHE_DIR=str(tmp_path), IKQ_NVRTC=os.environ.get("IKQ_NVRTC"))
    code = "import ikq.cuda; print(ikq.cuda.warm(['Q4_K', 'F16'], 'sm_90'))"
    assert "mmv.cu [IKQ_TYPE=q4_k]" in run(code, env)
    assert all(f.read_bytes()[16:20] == b"\x7fELF" for f in (tmp_path / "cubin").iterdir())
    # seven files that know no type, heads of floats and of the cache, attention by two kernels; of both types products with
    # few columns, fused up and gate, and down; products with many columns, also fused, and decoding of the one that is no
    # float; products with many columns of the one that is
    assert len(list((tmp_path / "cubin").iterdir())) == 7 + 2 + 2 + 2 * 3 + 3 + 1
