"""The page in a browser: keyboard use, light and dark schemes, small screens, and errors."""

import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from modernbert import ModernBert

pytest.importorskip("fastapi")
from browser import Page, Served, tuned  # noqa: E402

from modernbert.serving.scheduler import Scheduler  # noqa: E402
from modernbert.tokenizer.input_templates import EncodedText

pytestmark = pytest.mark.filterwarnings("ignore")
PANELS = ("masks", "search", "compare", "tokens")


def test_the_api_page_shows_every_route(page: Page, masked: Served) -> None:
    page.leave()
    page.driver.get(f"{masked.url}/docs")
    page.url = masked.url
    paths = page.js(
        "return fetch('openapi.json').then((answer) => answer.json()).then((all) => Object.keys(all.paths))"
    )
    page.until(lambda: page.js("return document.querySelectorAll('.opblock').length") >= len(paths))
    shown = page.js("return [...document.querySelectorAll('.opblock-summary-path')].map((each) => each.dataset.path)")
    assert len(paths) > 15 and set(paths) == set(shown)
    page.find("[data-path='/rerank'] button, [data-path='/rerank']").click()
    page.until(lambda: page.texts_of(".opblock.is-open .opblock-description"))
    (described,) = page.texts_of(".opblock.is-open .opblock-description")
    assert described.startswith("Return the scores of texts for a query, best first.")
    page.find(".opblock.is-open .try-out__btn").click()
    page.until(lambda: page.texts_of(".opblock.is-open textarea"))
    page.find(".opblock.is-open .execute").click()
    page.until(lambda: page.texts_of(".opblock.is-open .live-responses-table .response-col_status"))
    assert '"score":' in "".join(page.texts_of(".opblock.is-open .live-responses-table .microlight"))


def test_the_page_works_without_a_mouse(page: Page, masked: Served) -> None:
    page.open(masked.url, "masks")
    page.press("TAB")
    assert page.focused() == "tab-masks"
    for key, tab in (("RIGHT", "search"), ("END", "tokens"), ("RIGHT", "masks"), ("LEFT", "tokens"), ("HOME", "masks")):
        page.press(f"ARROW_{key}" if key in ("LEFT", "RIGHT") else key)
        assert page.focused() == f"tab-{tab}" and page.find(f"#{tab}").is_displayed()
    page.press("TAB")
    page.press("a", control=True)
    page.press("The [MASK] of rivers")
    page.press("ENTER", control=True)
    page.until(lambda: page.texts(".masks h3") == ["Mask 1"])
    page.press("TAB", "TAB", "TAB")
    assert page.focused().startswith("Fill mask 1 with")
    page.press("ENTER")
    page.until(lambda: page.status == "All masks are filled." and page.focused() == "masks-undo")
    assert "[MASK]" not in page.find("#masks-text").get_property("value")
    page.press("ENTER")
    page.until(lambda: page.texts(".masks h3") == ["Mask 1"])
    page.open(masked.url, "tokens")
    while page.js("return document.activeElement.role") != "option":
        page.press("TAB")
    told, seen = page.texts(".token-details")[0], page.texts(".window")[0]
    page.press("ARROW_RIGHT")
    told_of_next = page.texts(".token-details")[0]
    assert told_of_next != told and page.focused().split(", ")[1] in told_of_next.lower()
    page.press("ARROW_DOWN", "ARROW_UP", "HOME")
    assert page.texts(".token-details")[0].startswith("Token 1 of")
    page.press("TAB", "ARROW_RIGHT", "ARROW_RIGHT")
    assert page.texts(".window")[0] != seen and "Layer 4 is global" in page.texts(".window")[0]


@pytest.mark.parametrize("panel", PANELS)
def test_every_control_is_reached_by_tab(panel: str, page: Page, masked: Served) -> None:
    page.open(masked.url, panel)
    page.js(
        "window.reached = new Set(); document.addEventListener('focusin', (event) => window.reached.add(event.target))"
    )
    page.press(*["TAB"] * 40)
    left = page.js(
        "return [...document.querySelectorAll('a, button, input, textarea, summary, pre')].filter((each) =>"
        " each.checkVisibility() && !window.reached.has(each) && each.tabIndex >= 0)"
        # Arrow keys move from the checked radio button.
        ".filter((each) => each.type !== 'radio' || each.checked)"
        ".map((each) => each.outerHTML)"
    )
    assert left == []
    names = page.js(
        "return [...document.querySelectorAll('input, textarea')].filter((each) => each.checkVisibility())"
        ".map((each) => each.labels.length > 0 || each.ariaLabel)"
    )
    assert all(names)


# The lowest contrast of a visible text and its element; a canvas converts colors to numbers.
CONTRAST = """
const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function drawn(colors) {
  context.clearRect(0, 0, 1, 1);
  for (const color of colors) { context.fillStyle = color; context.fillRect(0, 0, 1, 1); }
  const [red, green, blue] = [...context.getImageData(0, 0, 1, 1).data].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}
const found = [];
for (const each of document.querySelectorAll("body, body *")) {
  const hasText = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || each.value;
  if (!hasText || !each.checkVisibility() || each.matches("noscript, template, input[type=radio]")) continue;
  const grounds = [];
  for (let at = each; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
  const [ground, ink] = [drawn(["white", ...grounds]), drawn(["white", ...grounds, getComputedStyle(each).color])];
  const ratio = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
  found.push([ratio, `${each.tagName}.${each.className} ${each.textContent.slice(0, 30)}`]);
}
const [body] = [drawn([getComputedStyle(document.body).backgroundColor])];
return {body, count: found.length, worst: found.sort((one, other) => one[0] - other[0])[0]};
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_both_schemes(
    scheme: str, page: Page, serve: Callable[..., Served], masked: Served, small_bert: ModernBert
) -> None:
    page.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    tagger = serve(tuned(small_bert, "tag", ["O", "B-x", "I-x"]))
    for url, panel in [*((masked.url, panel) for panel in PANELS), (tagger.url, "classify")]:
        page.open(url, panel)
        found = page.js(CONTRAST)
        assert found["count"] > 15 and found["worst"][0] >= 4.5, found
        assert found["body"] < 0.05 if scheme == "dark" else found["body"] > 0.8
    assert page.texts("mark")
    page.open(masked.url, "tokens")
    page.run(text="x " * 1_200)
    assert page.js(CONTRAST)["worst"][0] >= 4.5
    page.open(masked.url, "masks")
    page.run(text="none")
    assert page.alert and page.js(CONTRAST)["worst"][0] >= 4.5
    page.js("document.querySelector('#masks .answer').classList.add('is-running')")
    moving = "return getComputedStyle(document.querySelector('#masks .status'), '::before').animationName"
    assert page.js(moving) == "none"
    page.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="no-preference")
    assert page.js(moving) == "turn"


def test_it_fits_a_telephone(page: Page, masked: Served) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
    )
    for panel in PANELS:
        page.open(masked.url, panel)
        assert page.js("return document.documentElement.scrollWidth") == 360, panel


def test_hostile_text_stays_text(
    page: Page, serve: Callable[..., Served], masked: Served, small_bert: ModernBert
) -> None:
    hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    fields = {
        "masks": {"text": f"{hostile} [MASK]"}, "search": {"query": hostile, "text": f"{hostile}\n\n{hostile}"},
        "compare": {"text": f"{hostile}\n{hostile} again"}, "tokens": {"text": hostile},
    }  # fmt: skip
    url = serve(tuned(small_bert, "classify", ["no", hostile])).url
    for panel, texts in [*fields.items(), ("classify", {"text": hostile})]:
        page.open(url if panel == "classify" else masked.url, panel)
        page.run(**texts)
        shown = "".join(page.texts(".result"))
        assert hostile.replace(" ", "·" if panel == "tokens" else " ") in shown
        assert page.js("return document.images.length + document.scripts.length") == 1
        assert page.driver.title == "a/model · modernbert"


def test_a_refusal_is_shown_in_one_line(page: Page, masked: Served) -> None:
    page.open(masked.url, "masks")
    page.run(text="nothing is hidden")
    assert page.alert == "text 0: has no [MASK], expected at least one"
    assert page.status == "" and page.texts(".result > *, .timings > *") == []
    page.open(masked.url, "search")
    page.run(text="short\n\n" + "word " * 1_500)
    assert re.fullmatch(r"text 1: has [\d,]+ tokens, expected at most 1,000.*", page.alert)
    page.write("search-text", "short")
    assert page.alert == ""
    page.run()
    assert page.alert == "" and page.texts(".place p") == ["short"]
    page.open(masked.url, "tokens")
    page.js("document.getElementById('tokens-text').value = 'a \\ud800'")
    page.run()
    assert "unpaired surrogate" in page.alert


def hold(scheduler: Scheduler) -> threading.Event:
    """Keep a scheduler busy until the event is set."""
    begun, over = threading.Event(), threading.Event()

    def finish(*_: Any) -> list[None]:
        begun.set()
        over.wait(20)
        return [None]

    scheduler.submit([EncodedText(np.array([5]))], finish)
    begun.wait(20)
    return over


def test_typing_stops_a_request_and_a_busy_server_says_when(
    page: Page, serve: Callable[..., Served], small_bert: ModernBert
) -> None:
    served = serve(small_bert, max_queued_tokens=5)
    page.open(served.url, "masks")
    over = hold(served.scheduler)
    page.find("#masks .run").click()
    page.until(lambda: served.scheduler.queued_tokens)
    assert page.status == "Asking"
    page.open(served.url, "compare")
    assert re.fullmatch(r"too many tokens are waiting, try again in \d+ s", page.alert)
    over.set()
    page.until(lambda: not served.scheduler.queued_tokens)

    page.open(served.url, "masks")
    over = hold(served.scheduler)
    before = page.texts(".result")
    page.find("#masks .run").click()
    page.until(lambda: served.scheduler.queued_tokens)
    page.find("#masks-text").send_keys("x")
    assert page.status == "Stopped, the text has changed. Ctrl+Enter asks again."
    over.set()
    page.until(lambda: not served.scheduler.queued_tokens)
    assert page.texts(".result") == before and page.status.startswith("Stopped")


def test_a_key_is_required_and_kept_in_the_tab(
    page: Page, serve: Callable[..., Served], small_bert: ModernBert
) -> None:
    url = serve(small_bert, api_key="clé").url
    page.open(url, "masks", answers=False)
    page.until(lambda: page.focused() == "key")
    assert page.find("#trouble").text == "" and not page.find("#masks").is_displayed()
    page.press("wrong", "ENTER")
    page.until(lambda: page.find("#trouble").text == "this is not the server's key")
    page.press("clé", "ENTER")
    page.wait_for_answer()
    assert not page.find("#key-form").is_displayed() and page.find("#trouble").text == ""
    page.driver.refresh()
    page.wait_for_answer()
    assert page.js("return [localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
    page.find("#key-forget").click()
    page.until(lambda: page.find("#key-form").is_displayed())
    assert page.js("return sessionStorage.length") == 0
