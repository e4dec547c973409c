"""`DraftModel`: drafts of a smaller model with the same vocabulary."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ikq import _ikq
from ikq.errors import DeviceError, RefusedError, UnsupportedError
from ikq.inference.drafts import DraftOptions
from ikq.inference.sequence import Best, Want
from ikq.sampling.candidates import Candidates
from ikq.speculation.drafter import MANY_UNREAD, N_COMPARED, Ask, Drafting, most_probable, n_compared
from ikq.speculation.vocabulary import check_same_vocabulary

if TYPE_CHECKING:
    from ikq.inference.model import Model
    from ikq.inference.sequence import Sequence as ModelSequence

__all__ = ["DraftModel", "DraftModels"]


class DraftModel:
    """Proposes what a model finds most probable, on a sequence of its own.

    Args:
        model: The model that drafts. Its vocabulary must be the text's, see `check_same_vocabulary`.
        n_vocab: Tokens of the model that the text comes from; others are never proposed.
        p_min: A draft ends before a token that the draft model gives less than this probability.
    """

    needs_hidden = False

    def __init__(self, model: Model, n_vocab: int, p_min: float) -> None:
        self._model = model
        self._n_vocab = n_vocab
        self._p_min = p_min
        # a vocabulary may be padded by tokens that the text's model has not
        is_larger = model.spec.n_vocab > n_vocab
        self._n_best = max(n_compared(p_min), N_COMPARED if is_larger else 1)
        self._sequence: ModelSequence | None = None
        # beginning of the text that the sequence holds
        self._n_held = 0

    def n_unread(self, tokens: Sequence[int]) -> int:
        """As `Drafter.n_unread`."""
        return len(tokens) - self._n_held

    def read(self, tokens: Sequence[int], n: int) -> Drafting:
        """As `Drafter.read`; all but the last token, which says what is drafted."""
        n = min(n, len(tokens) - 1, self._model.n_ctx)
        if n - self._n_held >= MANY_UNREAD:
            sequence, step = self._placed(tokens), self._model.n_ubatch
            while self._n_held < n:
                part = list(tokens[self._n_held : min(n, self._n_held + step)])
                yield Ask(_Runner(self._model), sequence, part, n_best=0)
                self._n_held += len(part)
        return []

    def propose(self, tokens: Sequence[int], n: int) -> Drafting:
        """As `Drafter.propose`; nothing when the draft model's context is full."""
        n = min(n, self._model.n_ctx - len(tokens))
        if n <= 0:
            return []
        sequence = self._placed(tokens)
        best = yield Ask(_Runner(self._model), sequence, list(tokens[self._n_held :]), self._n_best)
        self._n_held = len(tokens)
        draft: list[int] = []
        while True:
            best = best.take(np.flatnonzero(best.ids < self._n_vocab), is_sorted=True)
            if len(best.ids) == 0:
                break
            token, p = most_probable(best)
            if p < self._p_min:
                break
            draft.append(token)
            if len(draft) == n:
                break
            best = yield Ask(_Runner(self._model), sequence, [token], self._n_best)
            self._n_held += 1
        return draft

    def _placed(self, tokens: Sequence[int]) -> ModelSequence:
        """The sequence, holding a beginning of the text but not all."""
        if self._sequence is None:
            self._sequence, self._n_held = self._begun(list(tokens))
        sequence = self._sequence
        # an interruption may have come before what was computed was noted
        self._n_held = sequence.rewindable(min(self._n_held, len(tokens) - 1, sequence.n_past))
        sequence.truncate(self._n_held)
        return sequence

    def _begun(self, tokens: list[int]) -> tuple[ModelSequence, int]:
        """A sequence that an earlier text left, and how many of the tokens it holds; or a new one."""
        batcher = self._model._batcher
        found, n = batcher.kept.find(tokens, ())
        taken = None if found is None else batcher.spared(partial(batcher.kept.take, found, n, tokens))
        if taken is None:
            return self._model.new_sequence(), 0
        return taken, taken.n_past

    def observe(self, tokens: Sequence[int], first: int, hidden: NDArray[np.float32]) -> None:
        """Does nothing: hidden states are not needed."""

    def keep(self, n: int) -> None:
        """Tokens of the draft behind these are computed anew."""
        self._n_held = min(self._n_held, n)

    def shift(self, n_keep: int, n_discard: int) -> None:
        """As `Drafter.shift`; where it cannot follow, what comes behind the kept tokens is computed anew."""
        sequence, n = self._sequence, min(self._n_held, n_keep)
        if sequence is not None and n_keep + n_discard <= self._n_held <= sequence.n_past:
            with contextlib.suppress(RefusedError, UnsupportedError):
                sequence.truncate(self._n_held)
                sequence.shift(n_keep, n_discard)
                n = self._n_held - n_discard
        self._n_held = n

    def close(self) -> None:
        """Keeps the sequence for texts with the same beginning."""
        if self._sequence is not None:
            self._model._batcher.kept.add(self._sequence)
            self._sequence = None


@dataclass(frozen=True)
class _Runner:
    """Computes asks of all texts that a model drafts for."""

    model: Model

    def run(self, asks: Sequence[Ask]) -> list[Candidates | None]:
        """As `Runner.run`: the largest logits."""
        entries: list[tuple[ModelSequence, list[int], Want | Best]] = [
            (a.sequence, a.tokens, Best(a.n_best) if a.n_best else "none") for a in asks
        ]
        found = self.model._batcher.spared(lambda: self.model.step(entries))
        return [best[-1] if isinstance(best, list) else None for best in found]


class DraftModels:
    """Models that draft for a model: those whose files were given are loaded once, and closed with it.

    Attributes:
        options: How files are loaded.

    Args:
        options: See there.
    """

    def __init__(self, options: DraftOptions) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._by_path: dict[Path, Model] = {}
        self._checked: weakref.WeakSet[Model] = weakref.WeakSet()

    def get(self, given: Model | str | os.PathLike[str], model: Model) -> Model:
        """The draft model that was given, or of whose file the name was.

        Args:
            given: See there.
            model: The model whose texts it is to draft.

        Raises:
            RefusedError: it has another vocabulary.
            OSError, FormatError, ShapeError, UnsupportedError: as `Model.load`, for a file.
        """
        with self._lock:
            name = "the draft model"
            if isinstance(given, (str, os.PathLike)):
                path, name = Path(given).resolve(), str(given)
                if path not in self._by_path:
                    self._by_path[path] = self._loaded(given, type(model))
                given = self._by_path[path]
            if given not in self._checked:
                n_vocab = model.spec.n_vocab, given.spec.n_vocab
                check_same_vocabulary(model.metadata, given.metadata, n_vocab, name)
                self._checked.add(given)
            return given

    @property
    def loaded(self) -> list[Model]:
        """Those whose files were given."""
        with self._lock:
            return list(self._by_path.values())

    def _loaded(self, path: str | os.PathLike[str], kind: type[Model]) -> Model:
        options = self.options.of(path)
        try:
            model = kind.load(path, **options)
            if self.options.rooms:
                _ikq.limit_caches(model._engine, list(self.options.rooms))
            return model
        except DeviceError as error:
            # nobody has asked for this device
            if self.options.device not in (options.get("devices") or ()) or self.options.given:
                raise
            raise DeviceError(
                f"the draft model {path} goes where its model is: {error}; draft_options (-devd, -ngld) "
                "place it elsewhere, -ngld 0 on the CPU"
            ) from None

    def close(self) -> None:
        """Frees those that were loaded for it."""
        with self._lock:
            for model in self._by_path.values():
                model.close()
            self._by_path.clear()
