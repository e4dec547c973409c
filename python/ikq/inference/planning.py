"""What loading would place where and take: `plan`."""

from __future__ import annotations

import os
from dataclasses import replace

from ikq import _ikq
from ikq.inference.explaining import LoadingPlan, Placed
from ikq.inference.fitting import FitOptions, fit
from ikq.inference.loading import FileOptions, PlacementOptions

__all__ = ["plan"]


def plan(
    path: str | os.PathLike[str],
    n_ctx: int | None,
    n_ubatch: int,
    file_options: FileOptions,
    options: PlacementOptions,
    room: FitOptions | None,
) -> LoadingPlan:
    """As `Model.plan`; without `room` nothing is fitted."""
    with file_options.open(path) as reader:
        spec = file_options.spec(reader)
        found = None if room is None else fit(reader, spec, n_ctx, options, room)
        if found is not None:
            n_ctx, options = found.n_ctx, replace(options, **found.placement)
        n_ctx = min(spec.n_ctx_train, spec.n_ctx_most or spec.n_ctx_train) if n_ctx is None else n_ctx
        placement, taken = _ikq.Engine.plan(
            reader._opened(), spec.to_json(), n_ctx=n_ctx, n_ubatch=n_ubatch, **vars(options)
        )
    return LoadingPlan(
        placement=tuple(Placed(*p) for p in placement),
        weights={device: weights for device, weights, _, _ in taken},
        cache=sum(cache for _, _, cache, _ in taken),
        n_ctx=n_ctx,
        fitted=found,
        buffers={device: step for device, _, _, step in taken if device.startswith("CUDA")},
    )
