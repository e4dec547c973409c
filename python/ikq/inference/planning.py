"""What loading would place where and take: `plan`."""

from __future__ import annotations

import os
from dataclasses import replace

from ikq.inference.beside import Beside, planned
from ikq.inference.explaining import LoadingPlan
from ikq.inference.fitting import FitOptions, fit
from ikq.inference.loading import Drafts, FileOptions, PlacementOptions

__all__ = ["plan"]


def plan(
    path: str | os.PathLike[str],
    n_ctx: int | None,
    n_ubatch: int,
    file_options: FileOptions,
    options: PlacementOptions,
    room: FitOptions | None,
    drafts: Drafts,
    assumed: tuple[str, ...] = (),
) -> LoadingPlan:
    """As `Model.plan`; without `room` nothing is fitted. `assumed` are GPUs that there are not."""
    with file_options.open(path) as reader:
        spec = file_options.spec(reader)
        beside = Beside.of(reader, file_options, drafts)
        found = None if room is None else fit(reader, spec, n_ctx, options, room, beside)
        if found is not None:
            n_ctx, options = found.n_ctx, replace(options, **found.placement)
        n_ctx = min(spec.n_ctx_train, spec.n_ctx_most or spec.n_ctx_train) if n_ctx is None else n_ctx
        model = planned(reader, spec, n_ctx, n_ubatch, options)._replace(fitted=found, assumed=assumed)
        return beside.added(reader, model, n_ubatch, options)
