"""Bodies of requests, checked: `Body` and `check`."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails

from ikq.serve.errors import ServiceError

__all__ = ["Body", "Part", "check"]

T = TypeVar("T", bound=BaseModel)

# Of so many errors the one is looked for that says most; a body with more is refused as a whole.
_MOST_ERRORS = 1000
# No API has as many.
_MOST_FIELDS = 1000


def _fail_fast(schema: Any) -> None:  # noqa: ANN401  # parts of a schema, and what else stands in it
    """Has all lists of a schema read up to the first element that is wrong."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _fail_fast(part)
    elif isinstance(schema, (list, tuple)):
        for part in schema:
            _fail_fast(part)


class Part(BaseModel):
    """Something inside a body: values are what they are, nothing is converted; unknown fields are ignored.

    A list is read up to its first element that is wrong: to tell of a million of them would take a minute.
    """

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The schema of it as pydantic makes it, but for lists."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


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
    if isinstance(body, dict) and len(body) > _MOST_FIELDS:
        raise ServiceError("invalid_request", f"the body has {len(body)} fields, more than {_MOST_FIELDS}")
    try:
        return model.model_validate(body)
    except ValidationError as e:
        if e.error_count() > _MOST_ERRORS:
            sentence = f"{e.error_count()} values of the body are not as they should be"
            raise ServiceError("invalid_request", sentence) from None

        # of the alternatives of a field the one that fits best is the one that failed deepest inside
        def place_of(error: ErrorDetails) -> list[int | str]:
            return _place(body, error["loc"], is_missing=error["type"] == "missing")

        error = max(e.errors(include_url=False), key=lambda error: len(place_of(error)))
        place = ".".join(map(str, place_of(error)))
        sentence = f"{place}: {_said(error)}" if place else _said(error)
        raise ServiceError("invalid_request", sentence, parameter=place or None) from None


def _said(error: ErrorDetails) -> str:
    """What is wrong, in words of JSON: pydantic's own have names of classes where an object is expected."""
    if error["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return "Input should be an object"
    return error["msg"].removeprefix("Value error, ")


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
