"""The web page at `/`: files of the folder `static`, which load nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.responses import Response

from ikq.serve.endpoint import Call, Endpoint, Handler
from ikq.serve.openai_errors import OPENAI_ERRORS

__all__ = ["ENDPOINTS", "PAGE_FILES"]

PAGE_FILES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "main.js": "text/javascript",
    "client.js": "text/javascript",
    "conversation.js": "text/javascript",
    "markdown.js": "text/javascript",
    "sse.js": "text/javascript",
    "view.js": "text/javascript",
}
"""The files and what they are."""

# what the page does not need, the browser refuses: were a reply ever taken for HTML, it could do nothing
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@cache
def _content(name: str) -> bytes:
    return (files("ikq.serve") / "static" / name).read_bytes()


def _file(name: str, media_type: str) -> Handler:
    async def handle(call: Call) -> Response:
        return Response(_content(name), media_type=media_type, headers=_HEADERS)

    return handle


ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/" if name == "index.html" else f"/page/{name}",
        handle=_file(name, media_type),
        errors=OPENAI_ERRORS,
        summary="The web page.",
        needs_key=False,
    )
    for name, media_type in PAGE_FILES.items()
]
