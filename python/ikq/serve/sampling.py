"""How a request's tokens are chosen, over what the server was started with: `changed`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ikq.sampling import SamplingOptions
from ikq.serve.errors import ServiceError

__all__ = ["changed"]


def changed(base: SamplingOptions, given: Mapping[str, Any]) -> SamplingOptions:
    """Options with some of them changed.

    Args:
        base: What holds where the request says nothing.
        given: What it says, by the options' names; `None`: nothing.

    Raises:
        ServiceError: a value is out of range.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        return replace(base, **changes)
    except ValueError as error:
        sentence = str(error)
        parameter = next((name for name in changes if sentence.startswith(name)), None)
        raise ServiceError("invalid_request", sentence, parameter=parameter) from None
