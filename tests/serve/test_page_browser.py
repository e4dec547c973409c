"""The page in headless Chromium, against a server that says what the test tells it."""

from __future__ import annotations

import os
import shutil

import pytest
from scripted import ScriptedService, eventually, running, scripted_app
from serving import serving

from ikq.serve.errors import ServiceError
from ikq.serve.events import Finished, Piece

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IS_REQUIRED = os.environ.get("IKQ_BROWSER") == "required"

if not IS_REQUIRED:
    pytest.importorskip(
        "playwright", reason="playwright is not installed: `make test-page` tests the page in a browser"
    )
    if BROWSER is None:
        pytest.skip("no Chromium here: `make test-page` tests the page in a browser", allow_module_level=True)

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402  # it may be missing


@pytest.fixture(scope="module")
def server():
    service = ScriptedService()
    with running(scripted_app(service, ("secret",))) as url:
        yield service, url


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def service(server):
    server[0].says_text("Hello!")
    return server[0]


@pytest.fixture
def page(server, browser):
    yield from opened(browser, server[1])


def opened(browser: Browser, url: str, *, model: str = "scripted", **options):
    context = browser.new_context(**options)
    page = context.new_page()
    problems, addresses = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: problems.append(message.text) if "Content Security" in message.text else None,
    )
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(url)
    set_key(page)
    expect(page.get_by_label("Model")).to_have_value(model)
    yield page
    context.close()
    assert problems == []
    assert all(address.startswith((url, "data:")) for address in addresses)


def set_key(page: Page, **values: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for label, value in {"API key": "secret", **values}.items():
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Save").click()


def send(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def piece(kind: str, text: str) -> Piece:
    return Piece(index=0, kind=kind, text=text)


END = Finished(index=0, reason="stop")


def reply(page: Page):
    return page.get_by_role("article", name="Reply").last


def test_a_chat(page, service):
    service.says(piece("content", "**He"), 0.1, piece("content", "llo**\n\n- a\n- b"), END)
    send(page, "Hi")
    expect(reply(page).locator("strong")).to_have_text("Hello")
    expect(reply(page).locator("li")).to_have_text(["a", "b"])
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    service.says_text("Fine.")
    send(page, "How are you?")
    expect(reply(page)).to_contain_text("Fine.")
    assert [m["content"] for m in service.asked[-1].messages] == [
        "Hi",
        "**Hello**\n\n- a\n- b",
        "How are you?",
    ]


def test_text_comes_as_it_is_written_and_can_be_stopped(page, service):
    service.says(piece("content", "The first part"), 60, END)
    send(page, "Hi")
    expect(reply(page)).to_contain_text("The first part")
    expect(page.get_by_role("button", name="Send")).to_be_hidden()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(reply(page)).to_contain_text("The first part")
    assert eventually(lambda: service.replies[-1].is_closed)
    service.says_text("Again.")
    page.get_by_role("button", name="Regenerate").click()
    expect(reply(page)).to_contain_text("Again.")
    expect(page.get_by_role("article")).to_have_count(2)
    assert len(service.asked[-1].messages) == 1


def test_escape_stops(page, service):
    service.says(piece("content", "x"), 60, END)
    send(page, "Hi")
    expect(reply(page)).to_contain_text("x")
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped.")


def test_thoughts_are_folded(page, service):
    service.says(piece("reasoning", "I think."), piece("content", "Yes."), END)
    send(page, "Hi")
    expect(reply(page)).to_contain_text("Yes.")
    expect(page.get_by_text("I think.")).to_be_hidden()
    page.get_by_text("Thoughts").click()
    expect(page.get_by_text("I think.")).to_be_visible()


def test_a_message_is_edited(page, service):
    send(page, "Helo")
    expect(reply(page)).to_contain_text("Hello!")
    send(page, "More")
    expect(page.get_by_role("article")).to_have_count(4)
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_role("log").get_by_label("Your message").fill("Hello")
    page.get_by_role("log").get_by_role("button", name="Send").click()
    expect(page.get_by_role("article")).to_have_count(2)
    expect(reply(page)).to_contain_text("Hello!")
    assert [m["content"] for m in service.asked[-1].messages] == ["Hello"]


def test_conversations_stay(page, service):
    send(page, "First")
    expect(reply(page)).to_contain_text("Hello!")
    page.get_by_role("button", name="New").click()
    expect(page.get_by_role("article")).to_have_count(0)
    send(page, "Second")
    expect(reply(page)).to_contain_text("Hello!")
    page.reload()
    expect(page.get_by_role("article").first).to_contain_text("Second")
    page.get_by_role("navigation").get_by_role("button", name="First", exact=True).click()
    expect(page.get_by_role("article").first).to_contain_text("First")
    page.get_by_role("button", name="Delete First").click()
    expect(page.get_by_role("article").first).to_contain_text("Second")


def test_settings_are_sent(page, service):
    set_key(page, **{"System prompt": "Be kind.", "Temperature": "0.5", "Most tokens of a reply": "7"})
    send(page, "Hi")
    expect(reply(page)).to_contain_text("Hello!")
    asked = service.asked[-1]
    assert asked.messages[0] == {"role": "system", "content": "Be kind."}
    assert (asked.sampling.temperature, asked.max_tokens) == (0.5, 7)


def test_errors_are_told(page, service):
    service.script = ServiceError("overloaded", "Too many wait.", retry_after=3)
    send(page, "Hi")
    expect(page.get_by_role("alert")).to_have_text("Too many wait. (try again in 3 s)")
    service.says(piece("content", "x"), ServiceError("internal", "The device is gone."))
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("alert")).to_have_text("The device is gone.")


def test_nothing_in_a_reply_runs(page, service):
    from test_page_markdown import ATTACKS

    for attack in ("\n\n".join(ATTACKS), *ATTACKS):
        service.says(piece("reasoning", attack), piece("content", attack), piece("content", "\n\nend"), END)
        page.get_by_role("button", name="New").click()
        send(page, attack)
        expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
        assert (
            page.locator("#log :is(script, img, iframe, svg, object, embed, style, link, base, form)").count()
            == 0
        )
        addresses = page.locator("#log a").evaluate_all("links => links.map(link => link.protocol)")
        assert set(addresses) <= {"http:", "https:", "mailto:"}
        on = "elements => elements.flatMap(e => e.getAttributeNames()).filter(name => name.startsWith('on'))"
        assert page.locator("#log *").evaluate_all(on) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(server, service, browser, scheme):
    phone = {
        "viewport": {"width": 360, "height": 640},
        "is_mobile": True,
        "has_touch": True,
        "color_scheme": scheme,
    }
    for page in opened(browser, server[1], **phone):
        long = "x" * 300
        service.says_text(f"{long}\n\n```\n{long}\n```\n\n|{long}|b|\n|-|-|\n|1|2|")
        page.get_by_label("Your message").fill("Hi")
        page.get_by_role("button", name="Send").tap()
        expect(reply(page).locator("td")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth <= 360 && window.innerWidth <= 360")
        expect(page.get_by_role("navigation")).to_be_hidden()
        page.get_by_role("button", name="Chats").tap()
        expect(page.get_by_role("navigation")).to_be_visible()
        page.get_by_role("navigation").get_by_role("button", name="Hi", exact=True).tap()
        expect(page.get_by_role("navigation")).to_be_hidden()
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
        if folder := os.environ.get("IKQ_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/phone-{scheme}.png")


def test_a_small_model(browser):
    with serving(api_keys=("secret",)) as server:
        for page in opened(browser, server.url, model="tiny-moe-bf16"):
            set_key(page, **{"Temperature": "0", "Most tokens of a reply": "12"})
            send(page, "import os\nimport")
            expect(page.get_by_role("status")).to_have_text("12 tokens, cut off at the limit")
            first = reply(page).locator(".text").text_content()
            page.get_by_role("button", name="Regenerate").click()
            expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
            expect(reply(page).locator(".text")).to_have_text(first)


def test_every_control_has_a_name(page, service):
    send(page, "Hi")
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    nameless = """elements => elements.filter(e => !(e.textContent.trim() || e.getAttribute('aria-label')
        || (e.labels && [...e.labels].some(label => label.textContent.trim())))).map(e => e.outerHTML)"""
    assert page.locator("button, input, textarea, select, a, summary").evaluate_all(nameless) == []
    assert page.evaluate("document.documentElement.lang") == "en"
    if folder := os.environ.get("IKQ_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/desktop.png")


def test_only_the_keyboard(page, service):
    page.get_by_label("Your message").focus()
    page.keyboard.type("Hi")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("you")
    page.keyboard.press("Enter")
    expect(reply(page)).to_contain_text("Hello!")
    assert service.asked[-1].messages[-1]["content"] == "Hi\nyou"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(browser, server, service, scheme):
    for page in opened(browser, server[1], color_scheme=scheme):
        service.says(piece("reasoning", "t"), piece("content", "a `b` [c](https://d)\n\n> e"), END)
        send(page, "Hi")
        expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
        ratios = page.locator("p, a, code, button, summary, #state, blockquote, h1").evaluate_all(CONTRAST)
        assert min(ratios) >= 4.5


CONTRAST = """elements => {
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const back = e => {
    for (; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  return elements.filter(e => e.checkVisibility() && e.textContent.trim()).map(e => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(back(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
}"""
