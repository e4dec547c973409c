"""`Failures`: models that could not be loaded, so that nothing makes room for them in vain again."""

from __future__ import annotations

import time

from ikq.errors import IkqError
from ikq.serve.errors import ServiceError
from ikq.serve.folder import Stamp
from ikq.serve.request_log import LOG

__all__ = ["Failures", "unexpected", "unloadable"]

# Seconds for which an error is remembered that a later try may not meet, the files being as they are.
_PATIENCE = 60.0


class Failures:
    """Models that could not be loaded, by name: what their files were then, and why."""

    def __init__(self) -> None:
        # until when, as `time.monotonic` counts
        self._known: dict[str, tuple[Stamp, ServiceError, float]] = {}

    def find(self, name: str, stamp: Stamp) -> ServiceError | None:
        """Why a model could not be loaded from these very files; `None`: it has not been tried of late."""
        known, error, end = self._known.get(name, (None, None, 0.0))
        return error if known == stamp and time.monotonic() < end else None

    def note(self, name: str, stamp: Stamp, error: BaseException) -> ServiceError:
        """Remembers that a model could not be loaded; what clients hear of it."""
        if isinstance(error, IkqError):
            told, end = unloadable(name, str(error)), float("inf")
        elif isinstance(error, OSError):
            told, end = unloadable(name, error.strerror or str(error)), time.monotonic() + _PATIENCE
        else:
            told, end = unexpected(name, error), time.monotonic() + _PATIENCE
        self._known[name] = (stamp, told, end)
        return told


def unloadable(name: str, sentence: str) -> ServiceError:
    """An error of a model that trying again does not bring."""
    return ServiceError("unloadable", f"{name} cannot be loaded: {sentence}", parameter="model")


def unexpected(name: str, error: BaseException) -> ServiceError:
    """What clients hear of an error that is not theirs; the log has it whole."""
    LOG.error("%s cannot be loaded", name, exc_info=error)
    return ServiceError("internal", f"{name} cannot be loaded; the server's log says why")
