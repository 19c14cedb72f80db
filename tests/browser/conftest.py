"""Fixtures for tests of the live page: a headless Chromium, and servers in this process."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from e3d_deploy.data.write import write_clips
from e3d_deploy.runtime import Predictor, load
from e3d_deploy.serve.offers import offers_of
from e3d_deploy.serve.run import Running, serving
from e3d_deploy.serve.settings import ServerSettings
from tests.browser.page import FOREIGN_HOST, Page

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
INSTALL = "apt-get install -y --no-install-recommends chromium chromium-driver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1440,900",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    f"--host-resolver-rules=MAP {FOREIGN_HOST} 127.0.0.1",
)


@pytest.hookimpl(tryfirst=True)  # so that the marks are set before pytest selects by marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    missing = [path for path in (CHROMIUM, DRIVER) if not Path(path).exists()]
    for item in items:
        if not item.path.is_relative_to(here):
            continue
        item.add_marker(pytest.mark.browser)
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"needs a browser: {INSTALL}; then make test-browser"))
        elif "browser" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="drives a browser: make test-browser"))


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Chrome]:
    """Yield a browser that all tests share, because each start takes a second."""
    profile = tmp_path_factory.mktemp("profile")
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Selenium downloads nothing if it is given a driver; these variables also forbid it.
    environment = {**os.environ, "HOME": str(profile), "SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    with Chrome(options=options, service=Service(DRIVER, env=environment)) as chrome:
        chrome.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield chrome
    shutil.rmtree(profile, ignore_errors=True)  # 10 MB


@pytest.fixture(scope="session")
def predictor(exported: Path) -> Iterator[Predictor]:
    with load(exported / "tiny.e3d", "onnxruntime", threads=1) as predictor:
        yield predictor


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a video of 30 s at 20 pictures per second, in which a bright square moves, and return its path."""
    return square_film(tmp_path_factory.mktemp("films") / "square.mp4", 600)


def square_film(path: Path, length: int) -> Path:
    """Write a video in which a bright square moves, and return its path."""
    frames = np.zeros((1, length, 1, 32, 48), np.float32)
    for t in range(length):
        frames[0, t, 0, 10:20, t % 38 : t % 38 + 10] = 0.5 + 0.5 * (t % 7) / 7
    write_clips(path, frames, frames_per_second=20)
    return path


class Host:
    """Starts the servers of one test, which are stopped after the test."""

    def __init__(self, predictor: Predictor, stack: ExitStack) -> None:
        self._predictor, self._stack = predictor, stack

    def start(self, *films: Path, port: int = 0, **changes: object) -> Running:
        """Start a server that offers films; port 0 selects a free port."""
        offers = offers_of([str(film) for film in films], lambda _: None)
        plain = {"name": "tiny", "precision": "fp32", "horizon": 3, "renewal": "none"}
        settings = ServerSettings(**{**plain, "port": port, "offers": offers, **changes})  # type: ignore[arg-type]
        return self._stack.enter_context(serving(self._predictor, settings))


@pytest.fixture
def host(predictor: Predictor) -> Iterator[Host]:
    with ExitStack() as stack:
        yield Host(predictor, stack)


@pytest.fixture
def page(driver: Chrome) -> Iterator[Page]:
    """Yield a page that is not opened yet; after the test, close all windows of the browser except an empty one."""
    driver.get_log("browser")  # discards the entries of earlier tests
    driver.get_log("performance")
    yield Page(driver)
    first, *others = driver.window_handles
    for window in others:
        driver.switch_to.window(window)
        driver.close()
    driver.switch_to.window(first)
    driver.get("about:blank")


@pytest.fixture
def live(host: Host, page: Page, film: Path) -> Page:
    """Return a page that plays a film."""
    page.open(host.start(film).address)
    page.wait_for_state("Live")
    page.wait_until_moving("now")
    return page
