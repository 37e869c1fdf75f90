"""Fixtures of the page's tests: servers and a browser."""

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from modernbert import ModernBert

if TYPE_CHECKING:
    from browser import Page, Served


@pytest.fixture(scope="module")
def serve() -> "Iterator[Callable[..., Served]]":
    """Serve models on local sockets."""
    import uvicorn
    from browser import Served

    from modernbert.serving.app import ServeSettings, make_app
    from modernbert.serving.request_guard import Limits
    from modernbert.serving.scheduler import Scheduler

    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(bert: ModernBert, max_queued_tokens: int = 100_000, **limits: Any) -> "Served":
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        scheduler = Scheduler(bert, budget_tokens=500, max_queued_tokens=max_queued_tokens)
        app = make_app(bert, scheduler, ServeSettings("a/model", Limits(log=False, **limits), warm_up=False))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
        return Served(f"http://127.0.0.1:{listener.getsockname()[1]}", scheduler)

    yield serve
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def masked(serve: "Callable[..., Served]", small_bert: ModernBert) -> "Served":
    return serve(small_bert)


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


@pytest.fixture
def page(browser: Any) -> "Iterator[Page]":
    from browser import Page

    page = Page(browser)
    yield page
    page.leave()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
