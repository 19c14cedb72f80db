"""Controls and contents of the live page in a browser, for tests."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

DEADLINE_S = 30
FOREIGN_HOST = "cameras.example.test"
"""Host name that the browser resolves to this machine, but does not treat as localhost."""

READ = """
const canvas = document.getElementById(arguments[0]);
const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
const context = copy.getContext("2d", { willReadFrequently: true });
if (canvas.width && canvas.height) context.drawImage(canvas, 0, 0);
const { data } = context.getImageData(0, 0, copy.width || 1, copy.height || 1);
let text = "";
for (const value of data) text += String.fromCharCode(value);
return [canvas.height, canvas.width, btoa(text)];
"""


class Page:
    """Live page in one window of the browser."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        """Load the page again, even if only the fragment of the address differs."""
        self.driver.get("about:blank")
        self.driver.get(address)

    def find(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return str(self.driver.execute_script("return document.getElementById(arguments[0]).textContent", name))

    def number(self, name: str) -> float | None:
        """Return the number at the beginning of a text, without the word `picture`; None for `–`."""
        words = self.text(name).removeprefix("picture ").split()
        return float(words[0]) if words and words[0] != "–" else None

    def wait(self, condition: Callable[[], object]) -> None:
        def holds(_: Chrome) -> bool:
            return bool(condition())

        WebDriverWait(self.driver, DEADLINE_S, poll_frequency=0.05).until(holds)

    def wait_for_state(self, begin: str) -> None:
        self.wait(lambda: self.text("state-text").startswith(begin))

    def picture(self, name: str) -> NDArray[np.uint8]:
        """Return the pixels of a canvas, [H, W, RGBA]."""
        H, W, content = self.driver.execute_script(READ, name)
        return np.frombuffer(base64.b64decode(content), np.uint8).reshape(H, W, 4)

    def wait_until_moving(self, name: str) -> None:
        """Wait until a canvas has shown two different pictures."""
        self.wait(lambda: bool(self.picture(name)[..., 3].any()))
        before = self.picture(name)
        self.wait(lambda: not np.array_equal(before, self.picture(name)))

    def settled_index(self) -> int:
        """Return the index of the picture on the page, once no further picture arrives."""
        seen: list[str] = []

        def rests() -> bool:
            time.sleep(0.3)  # six pictures of the film
            seen.append(self.text("now-text"))
            return len(seen) > 1 and seen[-1] == seen[-2]

        self.wait(rests)
        return int(seen[-1].removeprefix("picture "))

    def press(self, key: str) -> None:
        """Press a key while no control has the focus."""
        self.driver.execute_script("document.activeElement.blur()")
        self.driver.find_element(By.TAG_NAME, "body").send_keys(key)

    def click(self, name: str) -> None:
        self.find(name).click()

    def choose(self, value: str) -> None:
        Select(self.find("source")).select_by_value(value)

    def new_window(self) -> "Page":
        self.driver.switch_to.new_window("window")
        return self

    def resize(self, width: int, height: int) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )

    def complaints(self) -> list[str]:
        """Return the messages in the console of the browser since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested(self) -> set[str]:
        """Return the addresses of all requests and WebSockets since the last call."""
        events: list[dict[str, Any]] = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        sockets = [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]
        return {*sent, *sockets}
