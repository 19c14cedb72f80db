"""Pictures, forecasts, charts and controls of the live page."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from e3d_deploy.data.form import Form
from e3d_deploy.data.play import play
from e3d_deploy.runtime import Predictor
from tests.browser.conftest import Host, square_film
from tests.browser.page import Page

ROUNDING = 1
"""Maximum difference between a batched stream and a single stream (gray levels)."""


def test_pictures_forecast_and_difference_move(live: Page) -> None:
    for canvas in ("now", "forecast", "difference"):
        live.wait_until_moving(canvas)
    live.wait(lambda: live.number("error-now") is not None and live.number("copy-now") is not None)
    live.wait(lambda: live.number("novelty-now") is not None)
    for chart in ("error-chart", "novelty-chart"):
        live.wait_until_moving(chart)


@pytest.mark.parametrize("horizon", [1, 3])
def test_forecast_is_that_of_the_runtime_at_the_chosen_horizon(
    horizon: int, host: Host, page: Page, film: Path, predictor: Predictor
) -> None:
    page.open(host.start(film).address)
    page.wait_for_state("Live")
    page.wait(lambda: (page.number("age") or 0) > 5)
    other = {1: Keys.ARROW_LEFT, 3: Keys.ARROW_RIGHT}[horizon]
    page.find("horizon").send_keys(other * 3)
    page.wait(lambda: page.text("forecast-text").startswith(f"{horizon} frame"))
    page.click("pause")
    page.wait_for_state("Paused")
    index = page.settled_index()

    config = predictor.config
    pictures = play(film, Form(image_size=config.image_size, channels=config.channels)).pictures
    stream = predictor.stream(renewal="none")
    for _ in range(index + 1):
        now = next(pictures)
        stream.push(now)
    assert np.array_equal(page.picture("now")[..., :1], now)
    forecast = stream.predict(3)[horizon - 1]
    assert np.abs(page.picture("forecast")[..., :1].astype(int) - forecast).max() <= ROUNDING


def test_slider_changes_the_forecast_while_it_plays(live: Page) -> None:
    live.find("horizon").send_keys(Keys.ARROW_LEFT * 3)
    live.wait(lambda: live.text("forecast-text").startswith("1 frame ahead"))
    live.find("horizon").send_keys(Keys.ARROW_RIGHT)
    assert live.text("horizon-text").startswith("2 frames ahead")
    live.wait(lambda: live.text("forecast-text").startswith("2 frames ahead"))


def test_pause_stops_the_pictures_and_resume_continues(live: Page) -> None:
    live.click("pause")
    live.wait_for_state("Paused")
    assert live.text("pause") == "Resume"
    index = live.settled_index()
    live.click("pause")
    live.wait_for_state("Live")
    live.wait(lambda: (live.number("now-text") or 0) > index)


def test_reset_lowers_the_age_of_the_state(live: Page) -> None:
    live.wait(lambda: (live.number("age") or 0) > 15)
    live.click("reset")
    live.wait(lambda: (live.number("age") or 99) < 15)
    assert (live.number("now-text") or 0) > 10, "the film restarted"


def test_page_says_that_the_model_does_not_beat_copying(live: Page) -> None:
    """The tiny model is untrained, so it is worse than copying."""
    live.wait(lambda: "copying the last picture is better" in live.text("verdict"))


def test_numbers_have_units(live: Page) -> None:
    live.wait(lambda: live.text("p99").endswith(" ms") and live.text("network").endswith(" ms"))
    live.wait(lambda: live.text("drawing").endswith(" ms"))
    assert live.text("rate").endswith(" /s")
    assert live.text("dropped-viewer").endswith((" picture", " pictures"))
    assert live.text("backend") == "onnxruntime"
    assert live.text("precision") == "fp32"


def test_end_of_a_film_is_reported_and_the_film_can_start_again(host: Host, page: Page, tmp_path: Path) -> None:
    page.open(host.start(square_film(tmp_path / "short.mp4", 5)).address)
    page.wait_for_state("Ended")
    assert "ended" in page.text("notice-text")
    page.driver.execute_script("document.getElementById('now').width = 1")
    page.click("again")
    page.wait(lambda: page.picture("now").shape == (16, 24, 4))
    page.wait_for_state("Ended")


def test_keyboard(live: Page, downloads: Path) -> None:
    live.press(Keys.ARROW_LEFT)
    live.wait(lambda: live.text("forecast-text").startswith("2 frames ahead"))
    live.press(Keys.ARROW_RIGHT)
    live.wait(lambda: live.text("forecast-text").startswith("3 frames ahead"))
    live.wait(lambda: (live.number("age") or 0) > 15)
    live.press("r")
    live.wait(lambda: (live.number("age") or 99) < 15)
    live.press(" ")
    live.wait_for_state("Paused")
    live.press(" ")
    live.wait_for_state("Live")
    live.find("horizon").send_keys(" ")  # the slider does not use the space key
    live.wait_for_state("Paused")
    live.find("pause").send_keys(" ")
    live.wait_for_state("Live")
    live.find("pause").send_keys(Keys.ARROW_LEFT)
    live.wait(lambda: live.text("forecast-text").startswith("2 frames ahead"))

    root = live.driver.find_element(By.TAG_NAME, "html")
    before = root.get_attribute("data-theme")
    live.press("d")
    assert {before, root.get_attribute("data-theme")} == {"light", "dark"}

    live.press("?")
    assert live.find("help").is_displayed()
    live.find("help").send_keys(Keys.ESCAPE)
    assert not live.find("help").is_displayed()

    live.press("s")
    live.wait(lambda: list(downloads.glob("tiny-*.png")))
    (path,) = downloads.glob("tiny-*.png")
    with Image.open(path) as image:
        assert image.width > 3 * 24 * 20
        assert len(image.getcolors(1 << 20) or []) > 10
    path.unlink()


def test_held_key_acts_once_except_for_the_slider(live: Page) -> None:
    hold = """
    for (let count = 0; count <= arguments[1]; count++) {
      const options = { key: arguments[0], repeat: count > 0, bubbles: true, cancelable: true };
      document.body.dispatchEvent(new KeyboardEvent("keydown", options));
    }
    """
    live.driver.execute_script(hold, " ", 501)
    live.wait_for_state("Paused")
    assert live.text("pause") == "Resume"
    live.driver.execute_script(hold, "ArrowLeft", 1)
    live.wait(lambda: live.text("horizon-text").startswith("1 frame ahead"))
    live.press(" ")
    live.wait_for_state("Live")


def test_letters_typed_into_a_control_are_not_shortcuts(live: Page) -> None:
    live.find("source").send_keys("d")
    live.click("theme")
    theme = live.driver.find_element(By.TAG_NAME, "html").get_attribute("data-theme")
    live.find("source").send_keys("d")
    assert live.driver.find_element(By.TAG_NAME, "html").get_attribute("data-theme") == theme
    assert live.text("state-text") == "Live"
