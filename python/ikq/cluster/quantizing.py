"""`quantize_on_cluster`: a plan, carried out by the nodes of a Ray cluster."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikq import _ikq
from ikq.cluster import worker
from ikq.cluster.connect import connected
from ikq.cluster.dispatch import REPEATS, Dispatch
from ikq.cluster.job import Job, travelling
from ikq.cluster.paths import PathRule, whole
from ikq.cluster.rates import Rates
from ikq.errors import IkqError
from ikq.quantizing.options import QuantizeFileOptions, RunOptions, keywords_of, quantize_options, run_options
from ikq.quantizing.pipeline import QuantizePlan, QuantizeResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["quantize_on_cluster"]


def quantize_on_cluster(
    plan: QuantizePlan,
    type: str,
    address: str,
    *,
    path_map: Sequence[PathRule] = (),
    shared_output: bool = False,
    **options: Unpack[QuantizeFileOptions],
) -> QuantizeResult:
    """Carries a plan out on a Ray cluster; the bytes are those that `plan.run` writes, and so is the journal.

    A worker or node that dies costs what it had in hand, which others repeat. Where this process dies, the
    same call (or the same command on one machine) goes on.

    Args:
        plan: What `plan_quantization` made.
        type: The type that it was made for.
        address: `local`, or `HOST:PORT` of the head of a cluster.
        path_map: Where files lie on nodes that have them elsewhere.
        shared_output: Nodes write into the output themselves; its folder is on a file system that all have.
        **options: See `RunOptions`, and `QuantizeOptions` as the plan was made with them. `n_threads` is CPUs
            of a `local` cluster, and threads here for what is only copied; `max_ram` is for this process;
            `on_note` is also told how fast the nodes are.

    Raises:
        ikq.errors.UnsupportedError: Ray is not installed.
        ikq.errors.RefusedError: No cluster is there; a node has other files, or not the output's folder.
        ikq.errors.IkqError: As `QuantizePlan.run`, by node; workers die again and again.
        OSError: A file is not there on a node, by name.
    """
    how = run_options(options)
    measure_errors, clamp, on_note = (
        how.get("measure_errors", False),
        how.get("clamp", False),
        how.get("on_note"),
    )
    own = _ikq.PlanWorker(plan._core, isa_name=None, measure_errors=measure_errors, clamp=clamp)
    with (
        connected(address, how.get("n_threads"), on_note) as ray,
        _probe(plan, shared_output) as probe,
    ):
        job = Job(
            key=uuid.uuid4().hex,
            source=whole(plan.source),
            type=type,
            options=travelling(quantize_options(options, keywords_of(RunOptions))),
            rules=tuple(path_map),
            measure_errors=measure_errors,
            clamp=clamp,
            identity=own.identity,
            partials=_partials(plan) if shared_output else (),
            probe=probe,
        )
        _look(ray, job, on_note)
        remote = ray.remote(num_cpus=1, max_retries=REPEATS)(worker.work)

        def submit(numbers: Sequence[int]) -> Any:
            return remote.remote(job, [(number, *own.spot(number)) for number in numbers])

        rates = Rates(on_note)
        dispatch = Dispatch(ray, submit, rates, on_note)
        try:
            result = plan.run(**how, _outside=dispatch)
        finally:
            dispatch.end()
        summary = rates.summary()
        if summary is not None and on_note is not None:
            on_note(summary)
        return result


def _look(ray: Any, job: Job, on_note: Callable[[str], None] | None) -> None:
    """Lets every node open its files before anything is written; one that dies meanwhile is left out.

    Raises:
        Exception: what a node says.
    """
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    remote = ray.remote(num_cpus=0, max_retries=REPEATS)(worker.look)
    nodes = _alive(ray)
    looks = [remote.options(scheduling_strategy=strategy(n["NodeID"], soft=False)).remote(job) for n in nodes]
    for node, reference in zip(nodes, looks, strict=True):
        name = node.get("NodeName") or node["NodeManagerAddress"]
        try:
            found = ray.get(reference)
        except ray.exceptions.RayTaskError as e:
            raise IkqError(
                f"node {name} cannot run ikq, which must be there as it is here: {e.cause!r}"
            ) from None
        except ray.exceptions.RayError as e:
            # a node is in the list until others have missed it for some seconds
            if node["NodeID"] in {n["NodeID"] for n in _alive(ray)}:
                raise IkqError(f"node {name} cannot work: {e}") from None
            if on_note is not None:
                on_note(f"cluster: node {name} has died")
            continue
        if found.failure is not None:
            raise found.failure.exception()


def _alive(ray: Any) -> list[dict[str, Any]]:
    """The nodes that work, as far as is known."""
    return [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]


def _partials(plan: QuantizePlan) -> tuple[str, ...]:
    return tuple(whole(path) for path in _ikq.partial_files(plan._core, plan.destination))


@contextmanager
def _probe(plan: QuantizePlan, shared_output: bool) -> Iterator[str]:
    """A file in the output's folder that nodes look for: a folder of their own of that name has none."""
    if not shared_output:
        yield ""
        return
    path = Path(whole(plan.destination)).parent / f".ikq-{uuid.uuid4().hex}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(exist_ok=False)
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)
