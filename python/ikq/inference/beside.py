"""The memory of what drafts a model's texts: `Beside`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ikq import _ikq
from ikq.errors import RefusedError
from ikq.files.gguf import GGUFReader
from ikq.inference.drafts import DraftOptions, last_device
from ikq.inference.explaining import LoadingPlan, Placed
from ikq.inference.loading import PLANNED, Drafts, FileOptions, PlacementOptions
from ikq.models import ModelSpec

__all__ = ["Beside", "planned"]


def planned(
    reader: GGUFReader, spec: ModelSpec, n_ctx: int, n_ubatch: int, options: PlacementOptions
) -> LoadingPlan:
    """Where a model would be placed, and the memory that it would take, without what drafts for it."""
    placement, taken = _ikq.Engine.plan(
        reader._opened(), spec.to_json(), n_ctx=n_ctx, n_ubatch=n_ubatch, **vars(options)
    )
    return LoadingPlan(
        placement=tuple(Placed(*p) for p in placement),
        weights={device: weights for device, weights, _, _ in taken},
        caches={device: cache for device, _, cache, _ in taken},
        n_ctx=n_ctx,
        fitted=None,
        buffers={device: step for device, _, _, step in taken if device.startswith("CUDA")},
    )


@dataclass(frozen=True)
class Beside:
    """What drafts a model's texts.

    Attributes:
        head: The model's own head for further tokens, if that drafts.
        drafts: What else does.
    """

    head: ModelSpec | None
    drafts: Drafts
    # of draft models: a search asks for the same ones again and again, and reading a vocabulary takes long
    _planned: dict[tuple[str, int, int], LoadingPlan] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, reader: GGUFReader, file_options: FileOptions, drafts: Drafts) -> Beside:
        """What was asked for.

        Raises:
            RefusedError: the file has no head.
        """
        head = file_options.mtp_spec(reader) if drafts.mtp else None
        if drafts.mtp and head is None:
            raise RefusedError("mtp: the model's file has no head for further tokens (`nextn` tensors)")
        return cls(head, drafts)

    def added(
        self, reader: GGUFReader, model: LoadingPlan, n_ubatch: int, options: PlacementOptions
    ) -> LoadingPlan:
        """A plan with where that would be placed, and the memory that it would take.

        Args:
            reader: The model's file.
            model: How the model would be placed.
            n_ubatch: Most tokens of a step.
            options: How the model would be loaded.
        """
        mtp = draft_model = None
        if self.head is not None:
            mtp = planned(reader, self.head, model.n_ctx, n_ubatch, options)
        if (path := self.drafts.draft_model) is not None:
            device = last_device(p.device for p in model.placement)
            key = device, model.n_ctx, n_ubatch
            if key not in self._planned:
                self._planned[key] = self._plan(path, *key, options)
            draft_model = self._planned[key]
        return model._replace(mtp=mtp, draft_model=draft_model)

    def _plan(
        self, path: str | os.PathLike[str], device: str, n_ctx: int, n_ubatch: int, options: PlacementOptions
    ) -> LoadingPlan:
        """The draft model's plan: it is a model like any other."""
        from ikq.inference.model import Model

        shared = {
            "n_ctx": n_ctx,
            "n_ubatch": n_ubatch,
            "cache_type_k": options.cache_type_k,
            "cache_type_v": options.cache_type_v,
        }
        keywords = DraftOptions(shared, device, self.drafts.draft_options or {}).of(path)
        return Model.plan(path, **{k: v for k, v in keywords.items() if k in PLANNED})
