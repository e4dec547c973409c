"""The description of the server's paths in OpenAPI's form, made from the endpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.responses import JSONResponse, Response

from ikq._ikq import __version__
from ikq.serve.endpoint import Call, Endpoint
from ikq.serve.openai_errors import OPENAI_ERRORS

__all__ = ["description", "endpoint_of"]


def endpoint_of(endpoints: Sequence[Endpoint]) -> Endpoint:
    """`/openapi.json`, which describes these endpoints."""
    found = description(endpoints)

    async def handle(call: Call) -> Response:
        return JSONResponse(found)

    return Endpoint(
        method="GET",
        path="/openapi.json",
        handle=handle,
        errors=OPENAI_ERRORS,
        summary="This description.",
        needs_key=False,
    )


def description(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Paths, and what their requests hold."""
    bodies = {e.body: None for e in endpoints if e.body is not None}
    schemas, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for e in endpoints:
        path = re.sub(r"{(\w+):path}", r"{\1}", e.path)
        operation: dict[str, Any] = {
            "summary": e.summary,
            "responses": {"200": {"description": "done"}, "default": {"description": "an error"}},
        }
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ]
        parameters += [
            {"name": name, "in": "query", "required": e.needs_query, "schema": dict(schema)}
            for name, schema in e.query.items()
        ]
        if parameters:
            operation["parameters"] = parameters
        if e.body is not None:
            content = {"application/json": {"schema": schemas[(e.body, "validation")]}}
            operation["requestBody"] = {"required": e.needs_body, "content": content}
        paths.setdefault(path, {})[e.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "ikq", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {})},
    }
