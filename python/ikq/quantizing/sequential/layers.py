"""From the first layer to the last: `quantize_layers`, `quantize_sequentially`."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.arrays.quant_types import QuantType
from ikq.errors import RefusedError
from ikq.evaluate.windows import Windows
from ikq.files.gguf import GGUFReader
from ikq.models import ModelSpec, model_spec
from ikq.quantizing.options import (
    PathLike,
    QuantizeOptions,
    WorkOptions,
    effort_of,
    keywords_of,
    parse_size,
    quantize_options,
)
from ikq.quantizing.pipeline import QuantizeResult, plan_quantization
from ikq.quantizing.sequential.done import contents, described, read_done, write_done
from ikq.quantizing.sequential.in_order import take_first_inputs
from ikq.quantizing.sequential.last_product import LastProduct, last_product
from ikq.quantizing.sequential.layer_runner import LayerRunner
from ikq.quantizing.sequential.states import embedded, new_states
from ikq.statistics.calibrate.state import run_identity
from ikq.statistics.covariance import Covariances

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "ROUNDS_OF_EFFORT",
    "SequentialLayers",
    "SequentialOptions",
    "quantize_layers",
    "quantize_sequentially",
]

# Most layers have four inputs one after another: of attention, of its output, of gate and up, of down. Each
# has a round.
ROUNDS = 4
MOST_ROUNDS = 8
ROUNDS_OF_EFFORT = {"normal": ROUNDS, "max": MOST_ROUNDS}
"""Most rounds of a layer, by `--effort`."""


@dataclass(frozen=True)
class SequentialLayers:
    """The files that quantizing all layers has made.

    Attributes:
        covariances: What all layers were encoded with, for `error_feedback`.
        files: A file for each layer, for `reuse`.
    """

    covariances: Path
    files: tuple[Path, ...]


class SequentialOptions(QuantizeOptions, WorkOptions, total=False):
    """Keywords of `quantize_layers` and `quantize_sequentially`, all optional.

    Those of `quantize_file` mean the same; hidden states that take more than half of `max_ram` are in a file,
    and `on_note` is called with a sentence about every layer.
    """

    dataset: str
    """Name of the text."""
    rounds: int
    """Most rounds of a layer, 1 to 8, by default 4, or 8 with `effort="max"`. Every round takes the
    covariances of one more input behind matrices that are final. Layers with fewer inputs end earlier; the
    last round takes all that are left."""


_OWN = keywords_of(SequentialOptions) - keywords_of(QuantizeOptions)
"""Keywords that decide nothing about what a plan writes."""


@dataclass
class _Run:
    """What all layers share."""

    source: Path
    spec: ModelSpec
    folder: Path
    type: str | QuantType
    windows: Windows
    n_threads: int | None
    max_ram: int | str | None
    clamp: bool
    options: QuantizeOptions
    dataset: str
    origin: str | None
    rounds: int

    def cov(self, layer: int) -> Path:
        return self.folder / f"{layer}.cov"

    def file(self, layer: int) -> Path:
        return self.folder / f"{layer}.gguf"


def quantize_layers(
    source: PathLike,
    folder: PathLike,
    type: str | QuantType,
    windows: Windows,
    **options: Unpack[SequentialOptions],
) -> SequentialLayers:
    """Makes the layers of a model one after another, each for the input that those before it give.

    The covariances of a layer are those of its input in the model as it is quantized so far, and the wanted
    result is that for its input in the unquantized model. So each layer corrects errors of those before it.
    The last matrices of a layer correct the error of the states that their product is added to, as far as it
    goes with their input. Files in `folder` that belong to this run are not made again.

    Args:
        source: The model.
        folder: Takes covariances and layers; it is made, if it is not there.
        type: As for `quantize_file`.
        windows: The text, as `ikq.evaluate.cut` cuts it.
        **options: See `SequentialOptions`.

    Raises:
        RefusedError: `rounds` or options that do not go with it; else as `quantize_file`.
    """
    types = quantize_options(options, _OWN)
    rounds = options.get("rounds", ROUNDS_OF_EFFORT[effort_of(types)])
    max_ram, on_note = options.get("max_ram"), options.get("on_note")
    _check(rounds, types)
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with GGUFReader(source) as reader:
        spec = model_spec(reader)
        files = [shard.path for shard in reader.shards]
        origin = _ikq.model_origin(reader._opened())
        most = None if max_ram is None else parse_size(max_ram) // 4
        wanted = new_states(windows, spec.n_embd, folder / "wanted.states", most)
        met = new_states(windows, spec.n_embd, folder / "met.states", most)
        embedded(reader, spec, windows, wanted)
        met[:] = wanted
    run = _Run(
        source=source,
        spec=spec,
        folder=folder,
        type=type,
        windows=windows,
        n_threads=options.get("n_threads"),
        max_ram=max_ram,
        clamp=options.get("clamp", False),
        options=types,
        dataset=options.get("dataset", ""),
        origin=origin,
        rounds=rounds,
    )
    before = run_identity(files, windows.tokens, described(type, windows.n_ctx, rounds, types))
    done = read_done(folder)
    for layer in range(len(spec.layers)):
        if done.get(layer) == (before, contents(run.file(layer))):
            note = "is there already"
        else:
            _make(run, layer, (wanted, met))
            done[layer] = (before, contents(run.file(layer)))
            write_done(folder, done)
            note = "is done"
        before = hashlib.sha256(f"{before} {done[layer][1]}".encode()).hexdigest()
        distance = _advance(run, layer, wanted, met)
        if on_note is not None:
            on_note(f"layer {layer} of {len(spec.layers)} {note}: results {distance:.4f} from those wanted")
    covariances = folder / "sequential.cov"
    Covariances.merge([run.cov(layer) for layer in range(len(spec.layers))], covariances)
    return SequentialLayers(covariances, tuple(run.file(layer) for layer in range(len(spec.layers))))


def _check(rounds: int, options: QuantizeOptions) -> None:
    """Refuses what does not go together."""
    if not 1 <= rounds <= MOST_ROUNDS:
        raise RefusedError(f"{rounds} rounds: a layer has 1 to {MOST_ROUNDS}")
    for name in ("error_feedback", "repack", "unrepack", "only_layer"):
        if (value := options.get(name)) is not None and value is not False:
            raise RefusedError(f"--sequential goes without --{name.replace('_', '-')}")


def _make(run: _Run, layer: int, states: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """Makes the file of a layer, in as many rounds as the run has: first from the source's matrices.

    In every round one more input is that of quantized matrices which will not change any more. Matrices that
    read later ones wait for the round of their input, so nothing is made more than twice.
    """
    file, cov = run.file(layer), run.cov(layer)
    before, newer = file.with_suffix(".before.gguf"), cov.with_suffix(".newer.cov")
    n_inputs: int | None = None
    for number in range(run.rounds):
        # what the last product lacks is known when all inputs before it are final
        all_final = n_inputs is not None and number + 1 >= n_inputs
        last = last_product(run.spec.layers[layer]) if all_final else None
        _collect(run, layer, states, file if number else run.source, newer, last)
        n_inputs = len(Covariances(newer))
        if number == 0:
            newer.replace(cov)
        else:
            take_first_inputs(cov, newer, number + 1 if number + 1 < run.rounds else None)
            file.replace(before)
        of_layer: QuantizeOptions = {
            **run.options,
            "only_layer": layer,
            "error_feedback": cov,
            "keep_split": False,
            "split_max_size": None,
            "split_max_tensors": None,
            "no_tensor_first_split": False,
        }
        plan = plan_quantization(run.source, file, run.type, **of_layer)
        plan.run(
            n_threads=run.n_threads,
            max_ram=run.max_ram,
            clamp=run.clamp,
            restart=True,
            reuse=[before] if number else [],
        )
        if number + 1 >= n_inputs:
            break
    before.unlink(missing_ok=True)


def _collect(
    run: _Run,
    layer: int,
    states: tuple[NDArray[np.float32], NDArray[np.float32]],
    current: Path,
    out: Path,
    last: LastProduct | None,
) -> None:
    """Writes the covariances of a layer's inputs, of which `current` has the matrices, to `out`.

    With `last`, its matrices are those of the source, so that the states behind the layer say what its
    products lack.
    """
    windows, n_threads, spec = run.windows, run.n_threads, run.spec

    def new() -> _ikq.StatisticsCollector:
        return _ikq.StatisticsCollector(
            all_experts=False,
            similarity=False,
            output=False,
            choices=False,
            covariance_layers=(layer, layer + 1),
            n_threads=n_threads,
        )

    collectors = new(), new()
    with (
        LayerRunner(run.source, spec, layer, n_ctx=windows.n_ctx, n_threads=n_threads) as whole,
        LayerRunner(
            current,
            spec,
            layer,
            n_ctx=windows.n_ctx,
            n_threads=n_threads,
            instead=None if last is None else (run.source, last.tensors),
        ) as quantized,
    ):
        runners = whole, quantized
        for runner, collector in zip(runners, collectors, strict=True):
            runner.set_collector(collector)
        for i in range(windows.n):
            wanted, met = (r.run(windows[i].tokens, s[i]) for r, s in zip(runners, states, strict=True))
            products = None
            if last is not None:
                products = list(last.tensors), (wanted - met) / np.float32(last.factor)
            collectors[1].commit(collectors[0], products)
    collectors[1].write_covariances(str(out), [run.dataset], windows.n, windows.n_ctx, run.origin, None)


def _advance(run: _Run, layer: int, wanted: NDArray[np.float32], met: NDArray[np.float32]) -> float:
    """Takes both states behind a layer; the distance between them, as a share of those wanted."""
    windows, spec = run.windows, run.spec
    error = total = 0.0
    with (
        LayerRunner(run.source, spec, layer, n_ctx=windows.n_ctx, n_threads=run.n_threads) as whole,
        LayerRunner(run.file(layer), spec, layer, n_ctx=windows.n_ctx, n_threads=run.n_threads) as quantized,
    ):
        for i in range(windows.n):
            tokens = windows[i].tokens
            wanted[i] = whole.run(tokens, wanted[i])
            met[i] = quantized.run(tokens, met[i])
            error += float(np.square(met[i] - wanted[i], dtype=np.float64).sum())
            total += float(np.square(wanted[i], dtype=np.float64).sum())
    return float((error / total) ** 0.5) if total else 0.0


def layers_folder(destination: Path) -> Path:
    """The folder of the intermediate files for an output."""
    return destination.with_name(f"{destination.name}.layers")


def quantize_sequentially(
    source: PathLike,
    destination: PathLike,
    type: str | QuantType,
    windows: Windows,
    **options: Unpack[SequentialOptions],
) -> QuantizeResult:
    """Quantizes a model layer by layer, and writes it.

    Intermediate files are in `DESTINATION.layers`. They are removed when the output is complete, and the same
    call continues with them after an interruption.

    Args:
        source: The model.
        destination: The output.
        type: As for `quantize_file`.
        windows: The text, as `ikq.evaluate.cut` cuts it.
        **options: See `SequentialOptions`.

    Raises:
        RefusedError: As `quantize_layers`.
    """
    folder = layers_folder(Path(destination))
    layers = quantize_layers(source, folder, type, windows, **options)
    with_feedback: QuantizeOptions = {**quantize_options(options, _OWN), "error_feedback": layers.covariances}
    plan = plan_quantization(source, destination, type, **with_feedback)
    result = plan.run(
        n_threads=options.get("n_threads"),
        max_ram=options.get("max_ram"),
        clamp=options.get("clamp", False),
        reuse=layers.files,
    )
    shutil.rmtree(folder)
    return result
