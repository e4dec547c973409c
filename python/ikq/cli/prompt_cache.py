"""`run --prompt-cache`: what the model has read of a prompt, kept in a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ikq

__all__ = ["PromptCache", "add_prompt_cache"]


def add_prompt_cache(group: argparse._ActionsContainer) -> None:
    """Adds the options; names are those of llama.cpp."""
    group.add_argument(
        "--prompt-cache", metavar="FILE", help="begin with what FILE holds of the prompt, and write it there"
    )
    group.add_argument("--prompt-cache-all", action="store_true", help="write what is generated, too")
    group.add_argument("--prompt-cache-ro", action="store_true", help="write nothing")


class PromptCache:
    """A sequence that comes from a file and goes there.

    Attributes:
        sequence: For the keyword of `Model.generate`; `None` if no file is named.

    A file that cannot be written later, on a full disk for example, ends nothing: standard error tells it.

    Raises:
        RefusedError: options without a file, or a folder for it that is not there.
        FormatError: the file holds no sequence of this model.
        OSError: it cannot be read.
    """

    def __init__(self, model: ikq.Model, args: argparse.Namespace) -> None:
        if args.prompt_cache is None and (args.prompt_cache_all or args.prompt_cache_ro):
            raise ikq.RefusedError(
                "which file? --prompt-cache-all and --prompt-cache-ro need --prompt-cache FILE"
            )
        self._path = args.prompt_cache
        self._writes_all = args.prompt_cache_all
        self._writes = not args.prompt_cache_ro
        self._is_told = False
        self._n_written = 0
        self.sequence: ikq.Sequence | None = None
        if self._path is not None:
            if self._writes and not Path(self._path).resolve().parent.is_dir():
                raise ikq.RefusedError(f"--prompt-cache {self._path}: there is no such folder; make it first")
            self.sequence = self._load(model)

    def _load(self, model: ikq.Model) -> ikq.Sequence:
        if not Path(self._path).exists():
            return model.new_sequence()
        try:
            return model.load_sequence(self._path)
        except ikq.FormatError as error:
            raise ikq.FormatError(f"{error}; remove it, or name another file") from None

    def prompt_done(self, generation: ikq.Generation) -> None:
        """A prompt was computed; after the first one the file is written."""
        if self.sequence is None or self._is_told:
            return
        self._is_told = True
        n_held = generation.stats.n_reused
        n_all = n_held + generation.stats.n_prompt
        print(f"note: {self._path} held {n_held} of the prompt's {n_all} tokens", file=sys.stderr)
        if self._writes:
            self._save(self.sequence)

    def finish(self) -> None:
        """All is over."""
        if self.sequence is not None and self._is_told and self._writes and self._writes_all:
            n = self.sequence.rewindable(self.sequence.n_unshifted)
            # after a context was shifted, less may be left than the file has
            if n > self._n_written:
                self.sequence.truncate(n)
                self._save(self.sequence)

    def _save(self, sequence: ikq.Sequence) -> None:
        try:
            sequence.save(self._path)
        except OSError as error:
            print(
                f"note: {self._path} was not written: {error.strerror or error}; the text goes on",
                file=sys.stderr,
            )
        else:
            self._n_written = sequence.n_past
