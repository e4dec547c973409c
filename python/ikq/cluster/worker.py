"""What runs on nodes: `look` and `work`."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ikq import _ikq
from ikq.cluster.connect import ray_library
from ikq.cluster.job import FILES, Batch, Failure, Job
from ikq.cluster.paths import mapped
from ikq.errors import IkqError, RefusedError
from ikq.quantizing.pipeline import plan_quantization

__all__ = ["Spot", "look", "node_names", "work"]

Spot = tuple[int, int, int]
"""A unit: its number, the output file's number, and where in that."""

# a process works for one run at a time
_opened: dict[str, _ikq.PlanWorker] = {}
_names: list[str] = []

# a folder of another machine may show a new file late
_PROBE_SECONDS = 15.0


def node_names() -> list[str]:
    """Names of the node that this process is on; the first is for people."""
    if not _names:
        ray = ray_library()
        here = ray.get_runtime_context().get_node_id()
        node: dict[str, Any] = next((n for n in ray.nodes() if n["NodeID"] == here), {})
        address, given = node.get("NodeManagerAddress", ""), node.get("NodeName", "")
        names = [given, address, node.get("NodeManagerHostname", ""), socket.gethostname()]
        _names[:] = list(dict.fromkeys(name for name in names if name)) or ["unknown"]
    return _names


def look(job: Job) -> Batch:
    """Opens a run's files and compares them with the driver's; nothing is made."""
    return _safely(lambda node: _open(job) and Batch(node))


def work(job: Job, spots: Sequence[Spot]) -> Batch:
    """Makes units."""
    return _safely(lambda node: _work(job, spots, node))


def _safely(what: Callable[[str], Batch]) -> Batch:
    """Errors that have a sentence travel as such; all else is Ray's to tell."""
    node = node_names()[0]
    try:
        return what(node)
    except (IkqError, OSError, MemoryError) as e:
        return Batch(node, failure=Failure.of(e, node))


def _work(job: Job, spots: Sequence[Spot], node: str) -> Batch:
    opened = _open(job)
    start = time.perf_counter()
    units: list[tuple[int, bytes, bytes | None]] = []
    n_bytes = 0
    files: dict[int, int] = {}
    try:
        for number, file, offset in spots:
            record, made = opened.unit(number)
            n_bytes += len(made)
            if job.partials:
                if file not in files:
                    # never made here: a path that leads elsewhere must not look like the output. Only for
                    # writing: pages that were read might be written back over what others have changed since
                    files[file] = os.open(mapped(job.partials[file], job.rules, node_names()), os.O_WRONLY)
                _write(files[file], made, offset)
            units.append((number, record, None if job.partials else made))
        for descriptor in files.values():
            os.fsync(descriptor)
    finally:
        for descriptor in files.values():
            os.close(descriptor)
    return Batch(node, time.perf_counter() - start, n_bytes, units)


def _write(descriptor: int, made: bytes, offset: int) -> None:
    view = memoryview(made)
    while view:
        n = os.pwrite(descriptor, view, offset)
        view, offset = view[n:], offset + n


def _open(job: Job) -> _ikq.PlanWorker:
    found = _opened.get(job.key)
    if found is not None:
        return found
    names = node_names()
    options: dict[str, Any] = dict(job.options)
    for name in FILES:
        if options.get(name) is not None:
            options[name] = mapped(options[name], job.rules, names)
    source = mapped(job.source, job.rules, names)
    plan = plan_quantization(source, None, job.type, **options)
    opened = _ikq.PlanWorker(plan._core, isa_name=None, measure_errors=job.measure_errors, clamp=job.clamp)
    if opened.identity != job.identity:
        raise RefusedError(
            f"{source} is not what the driver has, or imatrix, covariances, recipe or version of ikq differ"
        )
    if job.probe:
        _find(mapped(job.probe, job.rules, names))
    _opened.clear()
    _opened[job.key] = opened
    return opened


def _find(probe: str) -> None:
    """Looks for the file that says that a folder is the driver's.

    Raises:
        RefusedError: it is not there.
    """
    until = time.monotonic() + _PROBE_SECONDS
    while not Path(probe).exists():
        if not Path(probe).parent.is_dir() or time.monotonic() > until:
            raise RefusedError(
                f"{Path(probe).parent} is not the driver's folder of the output: --shared-output is for a "
                "file system that all nodes have"
            )
        time.sleep(0.2)
