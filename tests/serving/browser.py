"""A headless browser for the tests of the playground page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modernbert import ModernBert
from modernbert.model.heads import MaskedLM
from modernbert.serving.scheduler import Scheduler
from modernbert.tasks.task import start_classifier


@dataclass
class Served:
    url: str
    scheduler: Scheduler


def tuned(bert: ModernBert, task: str, labels: list[str]) -> ModernBert:
    assert isinstance(bert.model, MaskedLM)
    return ModernBert(bert.tokenizer, start_classifier(bert.model, task, labels, seed=3).eval())


class Page:
    """The page in a browser; `leave` checks that the console is empty and that only the server was asked."""

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
        """Check the log of the browser; an error status is logged there and shown on the page."""
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
        code = (
            "return [...document.querySelectorAll(`#${arguments[0]} ${arguments[1]}`)].map((each) => each.textContent)"
        )
        return self.js(code, self.panel, selector)

    def texts_of(self, selector: str) -> list[str]:
        """Return the texts of elements anywhere on the page."""
        return [each.text for each in self.driver.find_elements("css selector", selector)]

    @property
    def status(self) -> str:
        return self.texts(".status")[0]

    @property
    def alert(self) -> str:
        return self.texts(".alert")[0]

    def until(self, holds: Callable[[], Any]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 30, 0.02).until(lambda _: holds())

    def wait_for_answer(self) -> None:
        self.until(lambda: self.texts(".answer:not(.is-running)") and (self.status or self.alert))

    def write(self, name: str, text: str) -> None:
        self.js(
            "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', {bubbles: true}))", name, text,
        )  # fmt: skip

    def run(self, **fields: str) -> None:
        """Fill in the fields of the panel and submit it."""
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
        """Return the id or the label of the focused element."""
        return self.js("const it = document.activeElement; return it.id || it.ariaLabel || it.value || it.textContent")

    def emulate(self, **features: str) -> None:
        rows = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": rows})
