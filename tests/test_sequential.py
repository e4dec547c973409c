"""Layer by layer: what it gains, that it goes on where it was, and that nothing else decides its bytes."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from covariance_files import write_covariances

import ikq
from ikq.evaluate import Windows
from ikq.models import model_spec
from ikq.models.spec import DenseFfn, Moe
from ikq.quantizing.sequential import quantize_layers
from ikq.quantizing.sequential.done import read_done
from ikq.quantizing.sequential.in_order import take_first_inputs
from ikq.quantizing.sequential.last_product import last_product
from ikq.quantizing.sequential.layer_runner import LayerRunner
from ikq.quantizing.sequential.states import embedded, new_states
from ikq.statistics.calibrate import windows_of

TYPE = "IQ3_K"
OPTIONS = {"pure": True, "token_embedding_type": "q8_0", "output_tensor_type": "q8_0"}


@pytest.fixture(scope="module")
def windows(tiny_moe: Path) -> Windows:
    text = " ".join(path.read_text() for path in sorted(Path(ikq.__file__).parent.glob("e*.py")))
    with ikq.GGUFReader(tiny_moe) as reader:
        return windows_of(ikq.Tokenizer.from_reader(reader), text, n_ctx=64, chunks=24)


@pytest.fixture(scope="module")
def made(tiny_moe: Path, windows: Windows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out.gguf"
    ikq.quantize_sequentially(tiny_moe, out, TYPE, windows, n_threads=2, **OPTIONS)
    return out


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def error(source: Path, path: Path, windows: Windows) -> float:
    """Squared distance of the last hidden states from those of the source."""
    with ikq.Model.load(source, n_ctx=64) as a, ikq.Model.load(path, n_ctx=64) as b:
        total = 0.0
        for i in range(windows.n):
            found = []
            for model in (a, b):
                model.truncate(0)
                found.append(model.eval(windows[i].tokens, want="hidden"))
            total += float(np.square(found[1] - found[0]).sum())
    return total


def test_layers_by_themselves_are_the_model(tiny_moe: Path, windows: Windows, tmp_path: Path) -> None:
    with ikq.GGUFReader(tiny_moe) as reader:
        spec = model_spec(reader)
        states = new_states(windows, spec.n_embd, tmp_path / "states", 0)
        embedded(reader, spec, windows, states)
        norm = np.array(reader.tensors[spec.output_norm].dequantize())
    for layer in range(len(spec.layers)):
        with LayerRunner(tiny_moe, spec, layer, n_ctx=64) as runner:
            for i in range(3):
                states[i] = runner.run(windows[i].tokens, states[i])
    with ikq.Model.load(tiny_moe, n_ctx=64) as model:
        for i in range(3):
            model.truncate(0)
            expected = model.eval(windows[i].tokens, want="hidden")
            scale = np.sqrt(np.square(states[i]).mean(-1, keepdims=True) + spec.norm_eps)
            assert np.allclose(states[i] / scale * norm, expected, rtol=1e-5, atol=1e-6)


def test_it_is_nearer_to_the_whole_model(
    tiny_moe: Path, windows: Windows, made: Path, tmp_path: Path
) -> None:
    with ikq.Model.load(tiny_moe, n_ctx=64) as model:
        with model.collect_activations(covariance_layers=range(4)) as collector:
            for i in range(windows.n):
                model.truncate(0)
                model.eval(windows[i].tokens, want="none")
        collector.write_covariances(tmp_path / "m.cov")
    fed = tmp_path / "fed.gguf"
    ikq.quantize_file(tiny_moe, fed, TYPE, error_feedback=tmp_path / "m.cov", **OPTIONS)
    assert error(tiny_moe, made, windows) < 0.95 * error(tiny_moe, fed, windows)
    # nothing is left of the way
    assert [p.name for p in made.parent.iterdir()] == [made.name]


def test_the_last_product_mends_the_states(
    tiny_moe: Path, windows: Windows, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.gguf"
    monkeypatch.setattr("ikq.quantizing.sequential.layers.last_product", lambda layer: None)
    ikq.quantize_sequentially(tiny_moe, out, TYPE, windows, **OPTIONS)
    assert error(tiny_moe, made, windows) < 0.95 * error(tiny_moe, out, windows)


def test_which_products_end_a_layer(tiny_moe: Path) -> None:
    with ikq.GGUFReader(tiny_moe) as reader:
        layer = model_spec(reader).layers[1]
    ffn = layer.ffn
    assert isinstance(ffn, Moe)
    down = ("blk.1.ffn_down_exps.weight",)
    assert last_product(layer) == (down, 1.0)
    scaled = replace(ffn, routing=replace(ffn.routing, scale=2.5))
    assert last_product(replace(layer, ffn=scaled, ffn_factor=2.0)) == (down, 5.0)
    dense = DenseFfn(gate=ffn.gate, up=ffn.up, down=ffn.down)
    assert last_product(replace(layer, ffn=dense, ffn_factor=0.5)) == (down, 0.5)
    for other in (
        replace(layer, post_ffn_norm="norm"),
        replace(layer, scale="scale"),
        replace(layer, ffn=replace(ffn, shared=dense)),
        replace(layer, ffn=replace(ffn, weighs_input=True)),
        replace(layer, ffn=replace(ffn, routing=replace(ffn.routing, normalize=False))),
        replace(layer, ffn=replace(ffn, down=replace(ffn.down, scale="scale"))),
    ):
        assert last_product(other) is None


def test_threads_memory_and_kills_do_not_show(
    tiny_moe: Path, windows: Windows, made: Path, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill_after(layer: str) -> None:
        if layer.startswith("layer 1"):
            raise Killed

    out = tmp_path / "out.gguf"
    with pytest.raises(Killed):
        ikq.quantize_sequentially(
            tiny_moe, out, TYPE, windows, n_threads=1, on_note=kill_after, max_ram="64M", **OPTIONS
        )
    notes: list[str] = []
    ikq.quantize_sequentially(tiny_moe, out, TYPE, windows, n_threads=3, on_note=notes.append, **OPTIONS)
    assert ["already" in note for note in notes] == [True, True, False, False]
    assert sha256(out) == sha256(made)


def test_what_is_there_of_another_run_is_not_taken(
    tiny_moe: Path, windows: Windows, made: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    folder = tmp_path / "layers"
    one = ikq.evaluate.cut(windows.tokens, n_ctx=64, chunks=2)

    def layers(type: str, **options: object) -> list[bool]:
        notes.clear()
        quantize_layers(tiny_moe, folder, type, one, on_note=notes.append, **OPTIONS, **options)
        return ["already" in note for note in notes]

    assert layers(TYPE) == [False] * 4
    assert layers(TYPE) == [True] * 4
    shutil.copy(folder / "1.gguf", folder / "2.gguf")
    assert layers(TYPE) == [True, True, False, True]
    assert layers("Q4_0") == [False] * 4
    assert layers("Q4_0", rounds=1) == [False] * 4


def test_inputs_are_taken_in_their_order(tmp_path: Path) -> None:
    def written(name: str, value: float, *inputs: str) -> Path:
        sums = np.full((1, 4, 4), value, np.float32)
        return write_covariances(tmp_path / name, {each: (sums, [value]) for each in inputs})

    def taken(newer: Path, n: int | None) -> list[float]:
        old = written("old.cov", 1.0, "blk.0.a.weight", "blk.0.b.weight")
        take_first_inputs(old, newer, n)
        assert not newer.exists()
        found = ikq.Covariances(old)
        assert all((site.sums == site.counts[0]).all() for site in found)
        return [float(site.counts[0]) for site in found]

    both = "blk.0.a.weight", "blk.0.b.weight"
    assert taken(written("new.cov", 2.0, *both), 1) == [2.0, 1.0]
    assert taken(written("new.cov", 2.0, *both), 2) == [2.0, 2.0]
    assert taken(written("new.cov", 2.0, *both), 3) == [2.0, 2.0]
    assert taken(written("new.cov", 2.0, *both), None) == [2.0, 2.0]
    assert taken(written("new.cov", 2.0, "blk.0.a.weight"), 1) == [2.0]


def test_rounds_beyond_the_inputs_change_nothing(
    tiny_moe: Path, windows: Windows, made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    ikq.quantize_sequentially(tiny_moe, out, TYPE, windows, rounds=8, **OPTIONS)
    assert sha256(out) == sha256(made)


def test_kills_do_not_show(tiny_moe: Path, tmp_path: Path) -> None:
    """Killed wherever it may be, while layers are made or the output is written: it goes on to the same bytes."""
    (tmp_path / "text").write_text(
        "It returns an object which can be read line by line, or written to. " * 60
    )
    out = tmp_path / "out.gguf"

    def command(destination: Path) -> list[str]:
        words = ["quantize", "--sequential", "-f", tmp_path / "text", "-c", 64, "--chunks", 4]
        return [sys.executable, "-m", "ikq", *map(str, [*words, tiny_moe, destination, "Q4_0", 2])]

    def started(destination: Path) -> subprocess.Popen[bytes]:
        """The command, as soon as it makes layers."""
        folder = destination.with_name(f"{destination.name}.layers")
        there = folder.exists()
        process = subprocess.Popen(command(destination), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        # when it goes on, the folder is there before it starts
        while not there and not folder.exists() and process.poll() is None:
            time.sleep(0.002)
        return process

    with started(tmp_path / "whole.gguf") as process:
        begun = time.monotonic()
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    duration, expected = time.monotonic() - begun, sha256(tmp_path / "whole.gguf")
    rng = random.Random(3)
    n_kills = n_ended = n_layers = 0
    # the last kill leaves something to go on with
    while n_kills < 6 or n_layers == 0:
        with started(out) as process:
            time.sleep(rng.uniform(0.0, duration))
            process.kill()
            printed, _ = process.communicate()
        if process.returncode == 0 or out.exists():
            # it may be killed when the output is whole, while intermediate files are removed
            assert sha256(out) == expected
            out.unlink()
            shutil.rmtree(tmp_path / "out.gguf.layers", ignore_errors=True)
            n_ended, n_layers = n_ended + 1, 0
            if process.returncode == 0:
                duration /= 2  # the machine was busier when it was measured
            assert n_ended < 6, "it ends before it can be killed"
            continue
        assert process.returncode == -signal.SIGKILL, printed
        n_kills += 1
        assert n_kills < 20, "no layer is done before a kill"
        n_layers = len(read_done(tmp_path / "out.gguf.layers"))
    done = subprocess.run(command(out), capture_output=True, text=True, check=True)
    assert done.stdout.count("is there already") == n_layers
    assert done.stdout.count("is done") == 4 - n_layers
    assert sha256(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "text", "whole.gguf"]


def test_more_effort_goes_nearer(tiny_moe: Path, windows: Windows, tmp_path: Path) -> None:
    """Behind the first layer; what experts of later ones are chosen goes by chance, too."""

    def distance(effort: str) -> float:
        class Found(Exception):
            pass

        def stop(note: str) -> None:
            raise Found(note)

        with pytest.raises(Found) as found:
            quantize_layers(
                tiny_moe, tmp_path / effort, TYPE, windows, effort=effort, on_note=stop, **OPTIONS
            )
        first = re.search(r"layer 0 .* results ([\d.]+) from", str(found.value))
        assert first is not None
        return float(first[1])

    # 0.0466 and 0.0492
    assert distance("max") < 0.98 * distance("normal")


def test_the_command(tiny_moe: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("The module provides a function to open a file. " * 40)
    command = [sys.executable, "-m", "ikq", "quantize", "--sequential", "-f", str(tmp_path / "text")]
    command += ["-c", "64", "--chunks", "3", str(tiny_moe), str(tmp_path / "o.gguf"), "IQ4_KS", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "layer 3 of 4 is done" in done.stdout
    assert "error feedback: " in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.gguf", "text"]
    for words, match in (
        (["--sequential"], "needs a text"),
        (["--effort", "max"], "goes with --error-feedback or --sequential"),
        (["--sequential", "-f", str(tmp_path / "text"), "--error-feedback", "x"], "x"),
    ):
        refused = [
            sys.executable,
            "-m",
            "ikq",
            "quantize",
            *words,
            str(tiny_moe),
            str(tmp_path / "p"),
            "Q4_0",
        ]
        done = subprocess.run(refused, capture_output=True, text=True, check=False)
        assert done.returncode in (1, 2)
        assert match in done.stderr
