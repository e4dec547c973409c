"""Bodies of requests, checked: `Body` and `check`."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ikq.serve.errors import ServiceError

__all__ = ["Body", "Part", "check"]

T = TypeVar("T", bound=BaseModel)

_OBJECT_TYPES = ("model_type", "dict_type")


class Part(BaseModel):
    """Something inside a body: values are what they are, nothing is converted; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Body(Part):
    """The whole of a body: a field that nobody knows is refused, because it is a slip or a wish unheard."""

    model_config = ConfigDict(extra="forbid")


def check(model: type[T], body: object) -> T:
    """A body as one of `model`.

    Args:
        model: What it should be.
        body: What JSON held.

    Raises:
        ServiceError: it is something else; the sentence names the place in it.
    """
    try:
        return model.model_validate(body)
    except ValidationError as e:
        # of the alternatives of a field the one that fits best is the one that failed deepest inside
        def place_of(error: ErrorDetails) -> list[int | str]:
            return _place(body, error["loc"], is_missing=error["type"] == "missing")

        error = max(e.errors(include_url=False), key=lambda error: len(place_of(error)))
        place = ".".join(map(str, place_of(error)))
        # the original's sentence names a class
        said = "Input should be an object" if error["type"] in _OBJECT_TYPES else error["msg"]
        sentence = f"{place}: {said}" if place else said
        raise ServiceError("invalid_request", sentence, parameter=place or None) from None


def _place(body: Any, loc: tuple[int | str, ...], *, is_missing: bool) -> list[int | str]:  # noqa: ANN401  # JSON
    """The steps of `loc` that lead somewhere in the body; the others name alternatives of a field."""
    place: list[int | str] = []
    for n, step in enumerate(loc):
        inside = step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int)
        if inside and not (isinstance(body, list) and step >= len(body)):  # type: ignore[operator]
            body = body[step]
            place.append(step)
        elif isinstance(body, dict) and n == len(loc) - 1 and is_missing:
            place.append(step)
    return place
