"""`Speculation`: how drafts of a text are made."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from ikq.errors import RefusedError
from ikq.speculation.depth import Depth, FixedDepth
from ikq.speculation.draft_model import DraftModel
from ikq.speculation.drafter import Drafter
from ikq.speculation.lookup import Lookup
from ikq.speculation.mtp import Mtp
from ikq.speculation.text import TextSpeculation

if TYPE_CHECKING:
    from ikq.inference.model import Model
    from ikq.text.model import TextModel

__all__ = ["Speculation", "SpeculationKeywords"]


class SpeculationKeywords(TypedDict, total=False):
    """The fields of `Speculation` as keywords of `Model.generate` and `Model.chat`, all optional."""

    draft_model: Model | str | os.PathLike[str] | None
    lookup: bool | int
    mtp: bool
    draft_max: int
    draft_min: int
    draft_p_min: float
    draft_adapt: bool


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """How drafts of a text are made, and how long they are. They never change the text, only the time.

    Attributes:
        draft_model: A smaller model of the same vocabulary, or its file.
        lookup: Draft what followed the last tokens earlier in the text; a number: at least so many last
            tokens.
        mtp: Draft with the model's own multi-token prediction head (`nextn`), if its file has one.
        draft_max: The largest number of tokens of a draft.
        draft_min: Shorter drafts are not used.
        draft_p_min: A draft ends before a token that its model gives less than this probability among its 16
            most probable ones; not for `lookup`.
        draft_adapt: Draft as many tokens as save time by what is measured; otherwise always `draft_max`.

    Raises:
        ValueError: a value is out of range, or more than one of the first three is given.
    """

    draft_model: Model | str | os.PathLike[str] | None = None
    lookup: bool | int = False
    mtp: bool = False
    draft_max: int = 8
    draft_min: int = 0
    draft_p_min: float = 0.5
    draft_adapt: bool = True

    def __post_init__(self) -> None:
        given = [name for name in ("draft_model", "lookup", "mtp") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: one of them can draft, not several")
        if self.lookup < 0:
            raise ValueError(f"lookup={self.lookup}: expected true, false, or a number of tokens")
        if self.draft_max < 1:
            raise ValueError(f"draft_max={self.draft_max}: expected 1 or more")
        if not 0 <= self.draft_min <= self.draft_max:
            raise ValueError(f"draft_min={self.draft_min}: expected 0 to draft_max, {self.draft_max}")
        if not 0 <= self.draft_p_min <= 1:
            raise ValueError(f"draft_p_min={self.draft_p_min}: expected 0 to 1")

    def text(self, model: TextModel) -> TextSpeculation | None:
        """Speculation for a text of a model; `None` if nothing is to draft it.

        Raises:
            RefusedError: the draft model has another vocabulary, or the file has no head for further tokens.
            OSError, FormatError, ShapeError, UnsupportedError: as `Model.load`, for a draft model's file.
        """
        drafter, kind = self._drafter(model)
        if drafter is None:
            return None
        batcher = model._batcher
        experience = batcher.experiences.of(kind)
        depth: Depth = FixedDepth(self.draft_max)
        if self.draft_adapt:
            depth = experience.depth(self.draft_max, self.draft_min, batcher.step_times)
        return TextSpeculation(drafter, depth, experience.draft_times, self.draft_min)

    def _drafter(self, model: TextModel) -> tuple[Drafter | None, Hashable]:
        """What drafts a text, and what has the same costs."""
        if self.lookup:
            n_min = 2 if self.lookup is True else self.lookup
            return Lookup(n_min, max(4, n_min)), "lookup"
        if self.draft_model:
            model = _whole(model)
            draft = model._draft_models.get(self.draft_model, model)
            return DraftModel(draft, model.spec.n_vocab, self.draft_p_min), id(draft)
        if self.mtp:
            head = _whole(model).mtp
            if head is None:
                raise RefusedError("mtp: the model's file has no head for further tokens (`nextn` tensors)")
            return Mtp(head, self.draft_p_min), "mtp"
        return None, None


def _whole(model: TextModel) -> Model:
    """A model that is one, not only speaks like one."""
    from ikq.inference.model import Model

    assert isinstance(model, Model)
    return model
