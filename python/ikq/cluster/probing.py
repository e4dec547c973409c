"""Sensitivities measured by nodes: `probe_on_cluster`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ikq.cluster.chunks import chunk_values
from ikq.cluster.files import NodeFile
from ikq.cluster.paths import PathRule, mapped, whole
from ikq.recipes.mixes import Meter, Mixes
from ikq.recipes.probes import N_WINDOWS, Experiment, Probes, concluded, plan_probe
from ikq.recipes.recipe import Recipe

__all__ = ["probe_on_cluster"]


@dataclass(frozen=True)
class _Measuring:
    """What every node needs for runs of an experiment.

    Attributes:
        source: The model.
        imatrix: Its activation statistics, if there are any.
        mixes: The runs.
        n_threads: Threads; None is one per CPU.
        folder: Where the driver would write files; a node that has no such folder takes its own for that.
        rules: Where the driver's paths lie on nodes.
    """

    source: NodeFile
    imatrix: NodeFile | None
    mixes: Mixes
    n_threads: int | None
    folder: str
    rules: tuple[PathRule, ...]

    def __call__(self, names: Sequence[str]) -> Callable[[int], float]:
        """Writes and loads what runs need, once; gives what measures a run."""
        # all files are looked at before minutes of work
        source = self.source.on_node(self.rules, names)
        imatrix = None if self.imatrix is None else self.imatrix.on_node(self.rules, names)
        folder = Path(mapped(self.folder, self.rules, names))
        is_usable = folder.is_dir() and os.access(folder, os.W_OK)
        # files that are open outlive their names; nobody tidies up behind a process that is killed
        with tempfile.TemporaryDirectory(prefix="ikq-probe-", dir=folder if is_usable else None) as scratch:
            return Meter(self.mixes, source, imatrix, Path(scratch), self.n_threads)


def probe_on_cluster(
    recipe: Recipe,
    text: str,
    n_runs: int,
    address: str,
    *,
    n_windows: int = N_WINDOWS,
    n_ctx: int = 512,
    n_threads: int | None = None,
    folder: Path | None = None,
    path_map: Sequence[PathRule] = (),
    on_note: Callable[[str], None] | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> Probes:
    """`probe` on the nodes of a Ray cluster: the same results, bit for bit.

    Every node writes the two files and the distributions of the source once, and then measures runs; those
    of a node that dies are measured by others.

    Args:
        recipe: As for `probe`. Nodes open its source and its activation statistics by path.
        text: See there.
        n_runs: See there.
        address: `local`, or `HOST:PORT` of the head of a cluster.
        n_windows: As for `probe`.
        n_ctx: See there.
        n_threads: Threads of a node, and CPUs of a `local` cluster; None is one per CPU.
        folder: Where nodes write files meanwhile, if they have it; else, and for None, in their own place
            for that.
        path_map: Where files lie on nodes that have them elsewhere.
        on_note: Called with what the user should know, among it how fast nodes are.
        progress: As for `probe`; runs come in order.

    Raises:
        ikq.errors.UnsupportedError: Ray is not installed.
        ikq.errors.RefusedError: As for `probe`; no cluster is there; a node has another model or other
            statistics.
        ikq.errors.IkqError: As `Model.load` and `quantize_file`, by node; workers die again and again.
        OSError: A file is not there on a node, by name.
    """
    experiment = plan_probe(recipe, text, n_runs, n_windows=n_windows, n_ctx=n_ctx)
    windows = experiment.mixes.windows
    values = chunk_values(
        _job(experiment, n_threads, folder, path_map),
        0,
        n_runs,
        address,
        n_tokens=windows.n * windows.n_ctx,
        unit="run",
        n_cpus=n_threads,
        on_note=on_note,
    )
    return concluded(experiment, values, progress)


def _job(
    experiment: Experiment, n_threads: int | None, folder: Path | None, path_map: Sequence[PathRule]
) -> _Measuring:
    problem = experiment.recipe.costs.problem
    return _Measuring(
        source=NodeFile.model(problem.source),
        imatrix=None if problem.imatrix is None else NodeFile.other(problem.imatrix.path),
        mixes=experiment.mixes,
        n_threads=n_threads,
        folder=whole(folder or tempfile.gettempdir()),
        rules=tuple(path_map),
    )
