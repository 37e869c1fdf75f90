"""The page, in a real browser: what it shows is what the library says, by mouse and by keys, in the light and the dark."""

import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert import ModernBert
from modernbert.model.heads import MaskedLM, start_classifier

pytest.importorskip("fastapi")
import uvicorn  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from modernbert.serve.app import ServeSettings, make_app  # noqa: E402
from modernbert.serve.engine import Engine, Request  # noqa: E402
from modernbert.serve.guard import Limits  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
PANELS = ("masks", "search", "compare", "tokens")
EMOJI = "A 👩‍🚀 and a naïve 🎈 in the land 京."


@dataclass
class Served:
    url: str
    engine: Engine


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Served]]:
    """Serve models on sockets of this machine, as people do."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(bert: ModernBert, most_queued_tokens: int = 100_000, **limits: Any) -> Served:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        engine = Engine(bert, budget_tokens=500, most_queued_tokens=most_queued_tokens)
        app = make_app(bert, engine, ServeSettings("a/model", Limits(log=False, **limits), warm_up=False))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
        return Served(f"http://127.0.0.1:{listener.getsockname()[1]}", engine)

    yield serve
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def masked(serve: Callable[..., Served], small_bert: ModernBert) -> Served:
    return serve(small_bert)


def tuned(bert: ModernBert, task: str, labels: list[str]) -> ModernBert:
    assert isinstance(bert.model, MaskedLM)
    return ModernBert(bert.tokenizer, start_classifier(bert.model, task, labels, seed=3).eval())


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium and chromedriver are not on the PATH")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in (
        "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync disable-dev-shm-usage window-size=1280,900"
    ).split():
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


class Page:
    """What a person does with the page; whatever it is left for, its console was quiet and it asked nobody else."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.url = ""
        self.panel = ""

    def open(self, url: str, panel: str, *, answers: bool = True) -> None:
        self.leave()
        self.driver.get(f"{url}/" if panel == "masks" else f"{url}/#{panel}")
        self.url, self.panel = url, panel
        if answers:
            self.wait_for_answer()

    def leave(self) -> None:
        """Check what the browser noted; a status that is no answer is noted by it, and is shown by the page."""
        notes = [each["message"] for each in self.driver.get_log("browser")]
        assert [note for note in notes if "responded with a status of 4" not in note] == []
        asked = self.js("return performance.getEntriesByType('resource').map((each) => each.name)")
        assert all(each.startswith((self.url, "data:")) for each in asked), asked
        self.driver.get("about:blank")

    def js(self, code: str, *words: Any) -> Any:
        return self.driver.execute_script(code, *words)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of elements of the panel."""
        code = "return [...document.querySelectorAll(`#${arguments[0]} ${arguments[1]}`)].map((each) => each.textContent)"
        return self.js(code, self.panel, selector)

    @property
    def status(self) -> str:
        return self.texts(".status")[0]

    @property
    def alert(self) -> str:
        return self.texts(".alert")[0]

    def until(self, holds: Callable[[], Any]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 10, 0.02).until(lambda _: holds())

    def wait_for_answer(self) -> None:
        self.until(lambda: self.texts(".answer:not(.is-running)") and (self.status or self.alert))

    def write(self, name: str, text: str) -> None:
        self.js(
            "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', {bubbles: true}))", name, text,
        )  # fmt: skip

    def run(self, **fields: str) -> None:
        """Write into the fields of the panel, and ask."""
        for name, text in fields.items():
            self.write(f"{self.panel}-{name}", text)
        self.find(f"#{self.panel} .run").click()
        self.wait_for_answer()

    def press(self, *keys: str, control: bool = False) -> None:
        from selenium.webdriver import ActionChains, Keys

        chain = ActionChains(self.driver)
        if control:
            chain = chain.key_down(Keys.CONTROL)
        for key in keys:
            chain = chain.send_keys(getattr(Keys, key, key))
        (chain.key_up(Keys.CONTROL) if control else chain).perform()

    def focused(self) -> str:
        """Return what has the focus: its id, or what it says."""
        return self.js("const it = document.activeElement; return it.id || it.ariaLabel || it.value || it.textContent")

    def emulate(self, **features: str) -> None:
        rows = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": rows})


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    page = Page(browser)
    yield page
    page.leave()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_is_three_files_that_ask_nobody_else(small_bert: ModernBert) -> None:
    app = make_app(small_bert, Engine(small_bert), ServeSettings("m", Limits(log=False, api_key="secret"), False))
    with TestClient(app) as client:
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            found = client.get(path)
            assert found.status_code == 200 and found.headers["content-type"] == f"{kind}; charset=utf-8"
            policy = found.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            assert found.headers["x-content-type-options"] == "nosniff"
            # The one address there is names the form of the icon, and is never asked.
            assert re.findall(r"https?://[^'\"\s]+", found.text) in ([], ["http://www.w3.org/2000/svg"])
            assert client.head(path).status_code == 200
            assert client.put(path).status_code == 401 and client.post(path, json={"inputs": "a"}).status_code == 401
        assert client.post("/embed", json={"inputs": "a"}).status_code == 401
        assert client.get("/info").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        np.testing.assert_allclose(
            client.post("/", json={"inputs": "a"}, headers=headers).json(), small_bert.embed(["a"]), atol=1e-5
        )
        assert client.put("/", headers=headers).status_code == 405
    packaged = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(f'"serve/*.{kind}"' in packaged for kind in ("html", "css", "js"))


def test_info_says_what_a_model_is_made_for(small_bert: ModernBert) -> None:
    def info(bert: ModernBert) -> Any:
        with TestClient(make_app(bert, Engine(bert), ServeSettings("m", Limits(log=False), False))) as client:
            return client.get("/info").json()

    found = info(small_bert)
    assert found["answers"] == ["fill-mask", "rerank", "similarity"] and found["scores"] == "cosine"
    assert found["attention"] == {"layers": 4, "global_every": 3, "window": 128}
    assert found["mask"] == {"text": "[MASK]", "takes_blank": True}
    assert info(tuned(small_bert, "tag", ["O", "B-x"]))["answers"] == ["predict"]
    assert info(tuned(small_bert, "extract", ["start", "end"]))["answers"] == []
    ranker = info(tuned(small_bert, "rerank", ["score"]))
    assert ranker["answers"] == ["rerank"] and ranker["scores"] == "probability"


def test_masks_are_filled_with_what_the_library_guesses(page: Page, masked: Served, small_bert: ModernBert) -> None:
    page.open(masked.url, "masks")
    assert page.texts(".masks h3") == ["Mask 1", "Mask 2"]
    text = "The capital of country 5 is [MASK], in a [MASK] of rivers."
    page.run(text=text)
    expected: Any = small_bert.fill_mask(text, 8)
    assert page.texts(".masks .number") == [f"{100 * guess.probability:.1f}%" for row in expected for guess in row]
    tokens = dict(zip(*(page.texts(f".timings {tag}") for tag in ("dt", "dd")), strict=True))
    assert tokens["Tokens"] == str(small_bert.count_tokens(text)[0])
    assert re.fullmatch(r"\d+ ms", tokens["Seen here"]) and {"Server", "Waited", "Computed"} < set(tokens)
    chosen = expected[1][2].text
    page.driver.find_elements("css selector", "#masks .masks > div:nth-child(2) button")[2].click()
    page.until(lambda: page.texts(".masks h3") == ["Mask 1"])
    filled = f"The capital of country 5 is [MASK], in a{chosen} of rivers."
    assert page.find("#masks-text").get_property("value") == filled
    page.find("#masks-undo").click()
    page.until(lambda: len(page.texts(".masks h3")) == 2)
    assert page.find("#masks-text").get_property("value") == text
    page.write("masks-text", "")
    page.find("#masks-insert").click()
    assert page.find("#masks-text").get_property("value") == "[MASK]" and page.focused() == "masks-text"


@pytest.mark.parametrize("task", ["mask", "rerank"])
def test_passages_stand_in_the_order_of_the_library(
    task: str, page: Page, serve: Callable[..., Served], masked: Served, small_bert: ModernBert
) -> None:
    bert = small_bert if task == "mask" else tuned(small_bert, "rerank", ["score"])
    page.open((masked if task == "mask" else serve(bert)).url, "search")
    passages = ["One of\ntwo lines.", "🎈 the land", "rivers", "The capital of country 7."]
    page.run(query="capital", text="\n\n  \n".join(passages) + "\n\n")
    expected = bert.rerank("capital", passages)
    assert page.texts(".ranks .words") == [passages[each.index] for each in expected]
    shown = [float(each) for each in page.texts(".ranks .number")]
    np.testing.assert_allclose(shown, [each.score for each in expected], atol=5.1e-4)
    assert page.texts(".place p") == passages and page.texts(".place .is-chosen") == [passages[expected[0].index]]
    page.driver.find_elements("css selector", "#search .ranks button")[2].click()
    assert page.texts(".place .is-chosen") == [passages[expected[2].index]]
    page.run(text="a line\nanother line\n")
    assert sorted(page.texts(".place p")) == ["a line", "another line"]


def test_the_matrix_is_that_of_the_library(page: Page, masked: Served, small_bert: ModernBert) -> None:
    page.open(masked.url, "compare")
    sentences = ["The capital of country 3.", "The capital of country 4.", "x", "rivers 🎈"]
    page.run(text="\n".join(sentences))
    shown = np.array([float(each) for each in page.texts("tbody td")]).reshape(4, 4)
    expected = small_bert.similarity(sentences, sentences)
    np.testing.assert_allclose(shown, expected, atol=0.0051)
    np.fill_diagonal(expected, -1)
    row, column = sorted(np.unravel_index(expected.argmax(), expected.shape))
    assert page.status.startswith(f"Most alike: {row + 1} and {column + 1}, cosine")
    page.run(text="alone")
    assert page.alert == "sentences: found 1, expected 2 to 16" and not page.texts("td")


def test_labels_are_those_of_the_library(page: Page, serve: Callable[..., Served], small_bert: ModernBert) -> None:
    bert = tuned(small_bert, "classify", ["no", "yes", "maybe"])
    page.open(serve(bert).url, "classify")
    assert page.js("return [...document.querySelectorAll('[role=tab]')].map((tab) => tab.textContent)") == [
        "Classify", "Tokens",
    ]  # fmt: skip
    for text, second in (("The land", ""), ("The land", "rivers")):
        page.run(text=text, pair=second)
        known: Any = bert.classify((text, second) if second else text)
        rows = zip(page.texts(".score > span:first-child"), page.texts(".score .number"), strict=True)
        assert list(rows) == [(label, f"{100 * share:.1f}%") for label, share in known.items()]


def test_spans_are_marked_at_their_characters(
    page: Page, serve: Callable[..., Served], small_bert: ModernBert
) -> None:
    bert = tuned(small_bert, "tag", ["O", "B-x", "I-x"])
    page.open(serve(bert).url, "classify")
    text = f"{EMOJI} 🎈🎈 The capital of {EMOJI}"
    page.run(text=text)
    spans: Any = bert.tag(text)
    assert spans and page.texts(".tagged mark") == [
        f"{span.text}{span.label} {100 * span.score:.1f}%" for span in spans
    ]
    bare = "return [...document.querySelectorAll('.tagged small')].forEach((each) => each.remove())"
    page.js(bare)
    assert page.texts(".tagged") == [text]


def test_tokens_are_pieces_of_the_text(page: Page, masked: Served, small_bert: ModernBert) -> None:
    page.open(masked.url, "tokens")
    page.run(text=EMOJI)
    located = small_bert.tokenizer.located(EMOJI)
    pieces = [EMOJI[slice(*place)] if place else small_bert.tokenizer.name_of(token) for token, place in located]
    assert page.texts(".piece") == [piece.replace(" ", "·") for piece in pieces]
    assert len(page.texts(".piece.is-special")) == 2
    assert page.status == f"{len(pieces)} tokens of at most 1,000."
    for number, (token, place) in enumerate(located):
        page.js("document.querySelectorAll('.piece')[arguments[0]].click()", number)
        told = page.texts(".told")[0]
        assert told.startswith(f"Token {number + 1} of {len(pieces)} · id {token} · ")
        assert place is None or f" {place[0] + 1}" in told
    page.run(text="x " * 1_200)
    assert page.status == "1,202 tokens of at most 1,000, 202 too many." or "too many" in page.status


def test_the_window_is_what_a_layer_attends_to(page: Page, masked: Served, small_bert: ModernBert) -> None:
    page.open(masked.url, "tokens")
    text = "x" * 298
    assert small_bert.count_tokens(text) == [300]
    page.run(text=text)
    layers = page.driver.find_elements("css selector", "#tokens .layers input")
    assert [layer.accessible_name.split(", ")[1] for layer in layers] == ["global", "local", "local", "global"]

    def seen(layer: int, token: int) -> list[int]:
        layers[layer].click()
        page.js("document.querySelectorAll('.piece')[arguments[0]].click()", token)
        found = page.js(
            "return [...document.querySelectorAll('.piece')].flatMap((e, n) => e.matches('.is-seen') ? [n] : [])"
        )
        assert page.texts(".window strong") == [str(len(found))]
        return found

    left, right = small_bert.config.window
    for layer in range(4):
        for token in (0, 10, 150, 299):
            is_global = small_bert.config.is_global(layer)
            expected = [n for n in range(300) if is_global or -left <= n - token <= right]
            assert seen(layer, token) == expected
    assert len(seen(1, 150)) == 129 and len(seen(3, 150)) == 300
    seen(1, 150)
    assert page.texts(".spread .number") == ["129 tokens", "257 tokens", "300 tokens"]


def test_one_can_do_without_a_mouse(page: Page, masked: Served) -> None:
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
    page.press(*["TAB"] * 4)
    told, seen = page.texts(".told")[0], page.texts(".window")[0]
    page.press("ARROW_RIGHT")
    assert page.texts(".told")[0] != told and page.focused().split(", ")[1] in page.texts(".told")[0].replace("Token", "token")
    page.press("ARROW_DOWN", "ARROW_UP", "HOME")
    assert page.texts(".told")[0].startswith("Token 1 of")
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
        " each.checkVisibility() && !window.reached.has(each) && each.tabIndex >= 0 && !(each.type === 'radio' && !each.checked))"
        ".map((each) => each.outerHTML)"
    )
    assert left == []
    names = page.js(
        "return [...document.querySelectorAll('input, textarea')].filter((each) => each.checkVisibility())"
        ".map((each) => each.labels.length > 0 || each.ariaLabel)"
    )
    assert all(names)


# The worst contrast of any text that is shown, and where: colours of any form become numbers on a canvas.
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
def test_every_text_can_be_read_in_both_schemes(scheme: str, page: Page, masked: Served) -> None:
    page.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    for panel in PANELS:
        page.open(masked.url, panel)
        found = page.js(CONTRAST)
        assert found["count"] > 20 and found["worst"][0] >= 4.5, found
        assert found["body"] < 0.05 if scheme == "dark" else found["body"] > 0.8
    page.run(text="x " * 1_200)
    page.open(masked.url, "masks")
    page.run(text="none")
    assert page.alert and page.js(CONTRAST)["worst"][0] >= 4.5


def test_it_fits_a_telephone(page: Page, masked: Served) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
    )
    for panel in PANELS:
        page.open(masked.url, panel)
        assert page.js("return document.documentElement.scrollWidth") == 360, panel


def test_hostile_text_stays_text(page: Page, serve: Callable[..., Served], masked: Served, small_bert: ModernBert) -> None:
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


def test_what_the_server_refuses_is_one_line(page: Page, masked: Served) -> None:
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
    assert "lone surrogate" in page.alert


def hold(engine: Engine) -> tuple[threading.Event, Request]:
    """Keep an engine at work until the event is set."""
    begun, over = threading.Event(), threading.Event()

    def finish(*_: Any) -> list[None]:
        begun.set()
        over.wait(20)
        return [None]

    job = engine.submit([np.array([5])], finish)
    begun.wait(20)
    return over, job


def test_typing_stops_a_request_and_a_busy_server_says_when(
    page: Page, serve: Callable[..., Served], small_bert: ModernBert
) -> None:
    served = serve(small_bert, most_queued_tokens=5)
    page.open(served.url, "masks")
    over, _ = hold(served.engine)
    page.find("#masks .run").click()
    page.until(lambda: served.engine.queued_tokens)
    assert page.status == "Asking"
    page.open(served.url, "compare")
    assert re.fullmatch(r"too many tokens are waiting, try again in \d+ s", page.alert)
    over.set()
    page.until(lambda: not served.engine.queued_tokens)

    page.open(served.url, "masks")
    over, _ = hold(served.engine)
    before = page.texts(".result")
    page.find("#masks .run").click()
    page.until(lambda: served.engine.queued_tokens)
    page.find("#masks-text").send_keys("x")
    assert page.status == "Stopped, the text has changed. Ctrl+Enter asks again."
    over.set()
    page.until(lambda: not served.engine.queued_tokens)
    assert page.texts(".result") == before and page.status.startswith("Stopped")


def test_a_key_is_asked_for_and_kept_in_the_tab(page: Page, serve: Callable[..., Served], small_bert: ModernBert) -> None:
    url = serve(small_bert, api_key="clé").url
    page.open(url, "masks", answers=False)
    page.until(lambda: page.focused() == "key")
    assert page.find("#trouble").text == "expected the header Authorization: Bearer KEY"
    assert not page.find("#masks").is_displayed()
    for key in ("wrong", "clé"):
        page.press(key, "ENTER")
        page.until(lambda: page.find("#key").get_property("value") == "")
    page.wait_for_answer()
    assert not page.find("#key-form").is_displayed() and page.find("#trouble").text == ""
    page.driver.refresh()
    page.wait_for_answer()
    assert page.js("return [localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
    page.find("#key-forget").click()
    page.until(lambda: page.find("#key-form").is_displayed())
    assert page.js("return sessionStorage.length") == 0
