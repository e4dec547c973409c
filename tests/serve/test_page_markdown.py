"""Markdown as the page shows it: what it means, and that nothing in it can run."""

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_scripts import call, modules

ENGINE = modules("markdown.js")
TAGS = {
    *("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "pre", "code"),
    *("strong", "em", "del", "a", "br", "table", "tr", "th", "td"),
}


def parse(text: str) -> list:
    return call(ENGINE, "parseMarkdown", text)


def html(nodes: list) -> str:
    """A short form of a tree; texts in it are escaped, so that no tag here is a text there."""
    out = ""
    for node in nodes:
        if isinstance(node, str):
            out += node.replace("&", "&amp;").replace("<", "&lt;")
            continue
        extra = "".join(f" {name}={node[name]}" for name in ("href", "text", "start") if name in node)
        out += f"<{node['tag']}{extra}>{html(node['children'])}</{node['tag']}>"
    return out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
        ("# A\n### B ###\n#no", "<h1>A</h1><h3>B</h3><p>#no</p>"),
        (
            "**a** *b* __c__ _d_ ~~e~~",
            "<p><strong>a</strong> <em>b</em> <strong>c</strong> <em>d</em> <del>e</del></p>",
        ),
        ("***a*** *b **c** d*", "<p><strong><em>a</em></strong> <em>b <strong>c</strong> d</em></p>"),
        ("snake_case_name 2 * 3 * 4 **open", "<p>snake_case_name 2 * 3 * 4 **open</p>"),
        ("`a*b*` ``c`d``", "<p><code>a*b*</code> <code>c`d</code></p>"),
        ("```py\nif a < b:\n\n    *x*\n```\nz", "<pre text=py>if a &lt; b:\n\n    *x*</pre><p>z</p>"),
        ("```\nnot closed yet", "<pre text=>not closed yet</pre>"),
        ("~~~~\n~~~\n~~~~", "<pre text=>~~~</pre>"),
        ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", "<ol start=3><li>a</li><li>b</li></ol>"),
        ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
        ("1. a\n   ```\n   x\n   ```\n2. b", "<ol start=1><li>a<pre text=>x</pre></li><li>b</li></ol>"),
        ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
        ("a\n---\n***", "<p>a</p><hr></hr><hr></hr>"),
        ("a  \nb\\\nc", "<p>a<br></br>b<br></br>c</p>"),
        (r"\*a\* \\ \q", r"<p>*a* \ \q</p>"),
        (
            "|a|b|\n|:-|--:|\n|1|2\\|3|\n|4|\n\nz",
            "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2|3</td></tr><tr><td>4</td><td></td></tr></table><p>z</p>",
        ),
        ('[a *b*](https://x/(y) "t")', "<p><a href=https://x/(y)>a <em>b</em></a></p>"),
        ("![cat](https://x/y.png)", "<p><a href=https://x/y.png>cat</a></p>"),
        (
            "see https://x/y. (http://z)",
            "<p>see <a href=https://x/y>https://x/y</a>. (<a href=http://z>http://z</a>)</p>",
        ),
        (
            "<https://x> mailto: [m](mailto:a@b)",
            "<p><a href=https://x>https://x</a> mailto: <a href=mailto:a@b>m</a></p>",
        ),
        ("[no](link", "<p>[no](link</p>"),
    ],
)
def test_markdown(text, expected):
    assert html(parse(text)) == expected


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](<java\tscript:alert(1)>)",
    "[x](\u0001javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:msgbox(1))",
    "[x](//evil.example)",
    "[x](file:///etc/passwd)",
    "![x](javascript:alert(1))",
    '![x](https://a" onerror="alert(1))',
    "<javascript:alert(1)>",
    "[a](https://x' onclick='alert(1))",
    "`<script>`<script>alert(1)</script>",
    "```html\n<script>alert(1)</script>\n```",
    '```x" onload="alert(1)\n```',
    "# <b onmouseover=alert(1)>x",
    "|<script>|\n|-|\n|<img src=x onerror=alert(1)>|",
    "&lt;script&gt;",
]


def check_safe(nodes: list) -> str:
    """Checks that a tree has no tags and addresses but harmless ones; returns its texts."""
    texts = ""
    for node in nodes:
        if isinstance(node, str):
            texts += node
            continue
        assert node["tag"] in TAGS
        assert set(node) <= {"tag", "children", "href", "text", "start"}
        if "href" in node:
            assert node["tag"] == "a"
            assert node["href"].lower().startswith(("http://", "https://", "mailto:"))
        texts += check_safe(node["children"])
    return texts


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_can_run(attack):
    texts = check_safe(parse(attack))
    # what looks like HTML is shown as it is
    if "<script>" in attack and "](" not in attack:
        assert "<script>" in texts


ALPHABET = st.sampled_from(
    [*"[]()<>!*_~`#|-+>\\\n \t:/.1ab", "](", "http://", "javascript:", "```", "  \n", "- ", "> ", *ATTACKS]
)


@given(st.lists(ALPHABET, max_size=60).map("".join))
def test_nothing_can_run_whatever_is_written(text):
    check_safe(parse(text))


@given(st.text(string.ascii_letters + string.digits + " ,;", min_size=1))
def test_plain_texts_stay_what_they_are(text):
    assert check_safe(parse(text)) == text.strip()


@pytest.mark.parametrize(
    "part",
    [
        "[",
        "*a",
        "`",
        "> ",
        "- ",
        "**",
        "[a](",
        "_a*b",
        "|",
        "<",
        "a\n",
        "- a\n",
        "\\",
        "![",
        "http://",
        " ",
        "~~a",
    ],
)
def test_long_texts_take_no_long_time(part):
    began = time.process_time()
    parse(part * (50_000 // len(part)))
    assert time.process_time() - began < 5
