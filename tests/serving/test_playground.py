"""The playground in a headless Chromium: `UNMASK_CHROMIUM` names the executable, `-m browser` selects these tests."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served import Served, serving, wait_until

from unmask.decoding.language_model import LanguageModel
from unmask.serving.settings import Settings

pytestmark = pytest.mark.browser

LANES = (".lane >> nth=0", ".lane >> nth=1")
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright (pip install 'unmask[browser]')"
    )
    executable = os.environ.get("UNMASK_CHROMIUM")
    if executable is None:
        pytest.skip("UNMASK_CHROMIUM does not name a Chromium")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=executable, args=flags, timeout=WAIT_MS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must neither raise nor be refused anything by its content security policy."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    troubles: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if "Policy" in message.text else None)
    page.on("request", lambda request: requests.append(request.url))
    yield page
    hosts = {url.split("/")[2].split(":")[0] for url in requests}
    context.close()
    assert not troubles
    assert hosts == {"127.0.0.1"}


def open_page(page: Any, url: str, *, max_tokens: int = 24) -> None:
    page.goto(url)
    page.wait_for_selector(f"{LANES[0]} >> .mode option", state="attached")
    page.fill("#max_tokens", str(max_tokens))
    page.fill("#block_length", "4")


def finish(page: Any, *, states: tuple[str, str] = ("done", "done")) -> None:
    for lane, state in zip(LANES, states, strict=True):
        page.wait_for_selector(f"{lane} >> css=.state:text-is('{state}')")


def text_of(page: Any, lane: str) -> str:
    return str(page.text_content(f"{lane} >> .canvas"))


def test_two_modes_fill_their_canvases_with_what_the_api_answers(page: Any, served: Served) -> None:
    open_page(page, served.url)
    page.fill("#prompt", "abc")
    page.select_option(f"{LANES[0]} >> .mode", "speculative")
    page.select_option(f"{LANES[1]} >> .mode", "diffusion")
    page.click("#run")
    finish(page)
    for lane, mode in zip(LANES, ("speculative", "diffusion"), strict=True):
        body = {"messages": [{"role": "user", "content": "abc"}], "temperature": 0, "seed": 0}
        answer = served.post("/v1/chat/completions", **body, max_tokens=24, mode=mode, block_length=4).json()
        choice = answer["choices"][0]
        assert text_of(page, lane) == choice["message"]["content"]
        shown = page.text_content(f"{lane} >> .per-forward")
        assert shown == f"{choice['unmask']['tokens_per_forward']:.2f}"
        bars = page.locator(f"{lane} >> .forwards rect").count()
        assert bars == choice["unmask"]["num_decode_forwards"]
    assert "24 tokens" in page.text_content("#status")


def test_a_canvas_is_seen_while_it_is_open(page: Any, served: Served) -> None:
    open_page(page, served.url, max_tokens=8)
    page.evaluate(
        """() => {
          window.seen = {boxes: 0, decided: 0};
          new MutationObserver(() => {
            window.seen.boxes = Math.max(window.seen.boxes, document.querySelectorAll(".box").length);
            window.seen.decided = Math.max(window.seen.decided, document.querySelectorAll(".canvas-token").length);
          }).observe(document.querySelector("#lanes"), {childList: true, subtree: true});
        }"""
    )
    page.select_option(f"{LANES[0]} >> .mode", "diffusion")
    page.select_option(f"{LANES[1]} >> .mode", "off")
    page.fill("#rule", "random")
    page.click("#run")
    page.wait_for_selector(f"{LANES[0]} >> css=.state:text-is('done')")
    seen = page.evaluate("window.seen")
    assert 0 < seen["boxes"] <= 4
    assert 0 < seen["decided"] < 4
    assert page.locator(".box").count() == 0


def test_a_hole_is_filled_between_what_stands_around_it(page: Any, served: Served) -> None:
    open_page(page, served.url)
    page.click("text=Fill a hole")
    page.fill("#prompt", "ab____yz")
    page.fill("#max_tokens", "4")
    page.click("#run")
    page.wait_for_selector(f"{LANES[0]} >> css=.state:text-is('done')")
    body = {"prompt": "ab", "suffix": "yz", "max_tokens": 4, "temperature": 0, "seed": 0, "mode": "diffusion"}
    hole = served.post("/v1/completions", **body).json()["choices"][0]["text"]
    assert text_of(page, LANES[0]) == f"ab{hole}yz"
    assert not page.is_visible(f"{LANES[1]} >> .canvas")
    page.fill("#prompt", "no hole")
    page.click("#run")
    page.wait_for_selector("#error:visible")
    assert page.get_attribute("#prompt", "aria-invalid") == "true"


def test_the_colour_is_the_step_or_the_confidence(page: Any, served: Served) -> None:
    open_page(page, served.url)
    page.click("#run")
    finish(page)
    colour = "element => getComputedStyle(element).backgroundColor"
    tokens = page.locator(f"{LANES[1]} >> .decided .t")
    assert page.inner_text(f"{LANES[1]} >> .mode option:checked") == "ar"
    steps = [tokens.nth(place).evaluate(colour) for place in range(3)]
    assert len(set(steps)) == 3  # the prefill's token and two forwards'
    page.click("text=confidence")
    levels = {tokens.nth(place).get_attribute("class").split()[-1] for place in range(tokens.count())}
    assert levels <= {"c0", "c1", "c2", "c3", "c4"}
    assert "probability" in tokens.nth(1).get_attribute("title")
    page.click("#colours >> text=none")
    assert tokens.nth(1).evaluate(colour) == "rgba(0, 0, 0, 0)"


def test_cancelling_gives_the_pages_back(page: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    step = served.engine.step
    monkeypatch.setattr(served.engine, "step", lambda: time.sleep(0.2) or step())
    open_page(page, served.url, max_tokens=2000)
    page.select_option("#order", "together")
    page.click("#run")
    for lane in LANES:
        page.wait_for_selector(f"{lane} >> .decided .t >> nth=1", state="attached")
    page.keyboard.press("Escape")
    finish(page, states=("cancelled", "cancelled"))
    assert page.text_content("#status") == "Cancelled."
    assert page.is_enabled("#run")
    wait_until(lambda: served.is_idle)


def test_a_refused_field_is_named_and_marked(page: Any, served: Served) -> None:
    open_page(page, served.url)
    page.select_option(f"{LANES[0]} >> .mode", "diffusion")
    page.fill("#rule", "nonsense")
    page.click("#run")
    page.wait_for_selector("#error:visible")
    body = {"messages": [{"role": "user", "content": "a"}], "mode": "diffusion", "rule": "nonsense"}
    refusal = served.post("/v1/chat/completions", **body).json()["error"]["message"]
    assert page.inner_text("#error") == refusal
    assert page.get_attribute("#rule", "aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "rule"
    page.fill("#rule", "")
    page.click("#run")
    finish(page)
    assert page.is_hidden("#error")
    assert page.get_attribute("#rule", "aria-invalid") is None


def test_a_server_that_is_gone_is_said_to_be(page: Any, model: LanguageModel) -> None:
    with serving(model, Settings("tiny")) as served:
        open_page(page, served.url)
    page.click("#run")
    page.wait_for_selector("#error:visible")
    assert "does not answer" in page.inner_text("#error")
    assert page.is_enabled("#run")


def test_a_key_is_asked_for_and_kept_nowhere(page: Any, model: LanguageModel) -> None:
    with serving(model, Settings("tiny", api_keys=("open sesame",))) as served:
        page.goto(served.url)
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-error:visible")
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog:not([open])", state="attached")
        page.fill("#max_tokens", "4")
        page.click("#run")
        finish(page)
        assert "$UNMASK_API_KEY" in page.text_content("#code")
        stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        assert "sesame" not in stored + page.text_content("#code")
        page.reload()
        page.wait_for_selector("#key-dialog[open]")


def test_a_busy_server_says_when_to_try_again(page: Any, served: Served) -> None:
    open_page(page, served.url)
    busy = '{"error": {"message": "the server is busy", "param": null}}'
    headers = {"Retry-After": "2", "Content-Type": "application/json"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, headers=headers, body=busy))
    page.click("#run")
    page.wait_for_selector("#error:visible")
    page.wait_for_function("document.querySelector('#error').textContent.includes('opens again in')")
    assert "the server is busy" in page.inner_text("#error")
    assert page.is_disabled("#run")
    page.unroute("**/v1/chat/completions")
    page.wait_for_selector("#run:enabled")
    page.click("#run")
    finish(page)


def test_the_keyboard_is_enough(page: Any, served: Served) -> None:
    open_page(page, served.url, max_tokens=6)
    page.focus("#prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("abc")
    page.keyboard.press("Control+Enter")
    finish(page)
    reached: set[str] = set()
    page.focus("#open-key")
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
              const element = document.activeElement, style = getComputedStyle(element.nextElementSibling ?? element);
              const own = getComputedStyle(element);
              const isSeen = own.outlineStyle !== "none" || style.outlineStyle !== "none";
              return [element.id || element.name || element.className, isSeen];
            }"""
        )
        assert focused[1], f"no focus is to be seen on {focused[0]}"
        reached.add(focused[0])
        if focused[0] == "copy":
            break
    wanted = {
        "theme",
        "task",
        "prompt",
        "max_tokens",
        "temperature",
        "seed",
        "run",
        "colour",
        "mode",
        "canvas",
    }
    assert wanted | {"code-lane", "language", "copy"} <= reached


def test_every_control_has_a_name(page: Any, served: Served) -> None:
    open_page(page, served.url)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("main input, main select, main textarea, header select, dialog input")]
          .filter((element) => !element.labels?.length || !element.labels[0].textContent.trim())
          .map((element) => element.id || element.className)"""
    )
    assert nameless == []
    live = page.evaluate(
        "[...document.querySelectorAll('[role=status], [aria-live]')].map((each) => each.id)"
    )
    assert live == ["status"]


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_all_of_it(page: Any, served: Served, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 780})
    open_page(page, served.url)
    page.click("#run")
    finish(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    left, right = (page.locator(lane).bounding_box() for lane in LANES)
    assert left["y"] + left["height"] <= right["y"]


def test_dark_follows_the_system_and_the_switch(page: Any, served: Served) -> None:
    open_page(page, served.url)
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    assert dark != light
    page.select_option("#theme", "light")
    assert page.evaluate(paper) == light
    page.reload()
    assert page.evaluate(paper) == light
    page.emulate_media(color_scheme="light")
    page.select_option("#theme", "dark")
    assert page.evaluate(paper) == dark


def test_the_shown_python_sends_the_same_request(
    page: Any, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    open_page(page, served.url)
    page.fill("#prompt", 'it\'s "odd" \\ é\n')
    page.click("#run")
    finish(page)
    page.click("text=Python")
    exec(page.text_content("#code"), {})
    assert capsys.readouterr().out == text_of(page, LANES[0])
