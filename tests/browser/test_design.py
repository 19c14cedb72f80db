"""Layout and accessibility of the live page: widths, names of controls and contrast."""

import pytest
from selenium.webdriver.common.by import By

from tests.browser.page import Page

CONTRAST = """
const style = getComputedStyle(document.documentElement);
const channels = (name) => style.getPropertyValue(name).trim().slice(1).match(/../g).map((hex) => parseInt(hex, 16));
const linear = (v) => (v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const luminance = (name) => channels(name).map(linear).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const [a, b] = [...arguments].map(luminance).sort((x, y) => y - x);
return (a + 0.05) / (b + 0.05);
"""
"""Script that returns the contrast ratio of WCAG 2 between two colours of the style sheet."""
OVERFLOW = "const root = document.documentElement; return root.scrollWidth - root.clientWidth"
UNNAMED = """
return [...document.querySelectorAll("button, input, select, [role=img], dialog")].filter((element) => !(
  element.labels?.length || element.ariaLabel || element.tagName === "BUTTON" && /[a-z]/i.test(element.textContent)
  || document.getElementById(element.getAttribute("aria-labelledby")))).map((element) => element.outerHTML);
"""


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1440, 900)])
def test_page_fits_the_width_and_pictures_stay_sharp(live: Page, width: int, height: int) -> None:
    live.resize(width, height)
    assert live.driver.execute_script(OVERFLOW) == 0
    for canvas in ("now", "forecast", "difference"):
        shown = live.find(canvas).rect
        assert shown["width"] / shown["height"] == pytest.approx(24 / 16, rel=0.02)
        assert live.find(canvas).value_of_css_property("image-rendering") == "pixelated"
    assert live.find("now").rect["y"] == live.find("forecast").rect["y"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_have_contrast(live: Page, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    live.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    live.wait(lambda: live.driver.find_element(By.TAG_NAME, "html").get_attribute("data-theme") == scheme)
    for text in ("--text", "--muted", "--accent", "--warn"):
        for ground in ("--page", "--card"):
            assert live.driver.execute_script(CONTRAST, text, ground) >= 4.5, (text, ground)
    assert live.driver.execute_script(CONTRAST, "--on-accent", "--accent") >= 4.5
    assert live.driver.execute_script(CONTRAST, "--edge", "--page") >= 3


def test_every_control_and_picture_has_a_name(live: Page) -> None:
    assert live.driver.execute_script(UNNAMED) == []
