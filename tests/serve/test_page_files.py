"""The page as files: complete, closed, nothing from elsewhere."""

import re
from importlib.resources import files

import httpx
import pytest
from scripted import ScriptedService, running, scripted_app

from ikq.serve.routes.page import PAGE_FILES


@pytest.fixture(scope="module")
def url():
    with running(scripted_app(ScriptedService(), ("secret",))) as url:
        yield url


def text(name: str) -> str:
    return (files("ikq.serve") / "static" / name).read_text(encoding="utf-8")


def test_all_files_are_served_without_a_key(url):
    assert {file.name for file in (files("ikq.serve") / "static").iterdir()} == set(PAGE_FILES)
    for name, media_type in PAGE_FILES.items():
        response = httpx.get(url + ("/" if name == "index.html" else f"/page/{name}"))
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(media_type)
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.text == text(name)


@pytest.mark.parametrize(
    "path", ["/page/", "/page/x.js", "/page/../app.py", "/page/%2e%2e/app.py", "/page/main.js/", "/static"]
)
def test_nothing_else_is(url, path):
    assert httpx.get(url + path).status_code == 404


@pytest.mark.parametrize("name", PAGE_FILES)
def test_nothing_comes_from_elsewhere(name):
    found = re.findall(r"""(?:src|href|from|url|import|fetch)\s*[=( ]\s*["'`(]+([^"'`)]*)""", text(name))
    assert all(address.startswith(("page/", "./", "v1/", "data:,")) for address in found), found


@pytest.mark.parametrize("name", [name for name in PAGE_FILES if name.endswith(".js")])
def test_texts_never_become_html(name):
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|setHTML"
    )
    assert not re.search(forbidden, text(name))
