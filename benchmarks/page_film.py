"""Record a short video of the live page, which the demo's report shows.

    python -m benchmarks.page_film [-o e3d_deploy/demo/live_page.mp4]

Serves the demo's model of film, opens the page in a headless Chromium, moves the slider of the horizon from 5 to 10 and
then to 1, and takes screenshots. Needs selenium, and Debian's packages chromium and chromium-driver. Writes the
screenshots as a video.
"""

import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from PIL import Image

from benchmarks.serve import serving
from e3d_deploy.data.clips import PEDESTRIANS
from e3d_deploy.demo.exhibits import FILM
from e3d_deploy.export.bundle import export
from e3d_deploy.shipped import extracted

RATE, SECONDS = 10, 10
WIDTH, HEIGHT = 1200, 800
WARM_UP_S = 3.0
"""Time before the recording, so that its first picture shows some of the charts (s); the film lasts 15 s."""
CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
HORIZONS = {50: 10, 80: 1}
"""Horizons that the slider is moved to, by number of the screenshot; the page starts at 5."""


def browser(profile: str) -> Any:
    """Open a headless Chromium whose background connections are switched off.

    Args:
        profile: folder for the browser's profile.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    switches = (
        "headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "hide-scrollbars", f"user-data-dir={profile}",
    )  # fmt: skip
    for switch in switches:
        options.add_argument(f"--{switch}")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return driver


def pictures(driver: Any) -> list[bytes]:
    """Return PNG screenshots of the page, at most `RATE` per second, while the slider moves."""
    shots = []
    began, count = time.monotonic(), RATE * SECONDS
    for number in range(count):
        if number in HORIZONS:
            move = "let s = document.querySelector('input[type=range]'); s.value = arguments[0];"
            driver.execute_script(move + "s.dispatchEvent(new Event('input', {bubbles: true}));", HORIZONS[number])
        time.sleep(max(0.0, began + number / RATE - time.monotonic()))
        shots.append(driver.get_screenshot_as_png())
    print(f"{count} screenshots took {time.monotonic() - began:.1f} s, planned were {SECONDS} s")
    return shots


def write(path: Path, shots: list[bytes]) -> None:
    """Write screenshots as a video that browsers can play."""
    from io import BytesIO

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", Fraction(RATE), options={"crf": "25", "preset": "veryslow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for shot in shots:
            frame = np.asarray(Image.open(BytesIO(shot)).convert("RGB"))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("e3d_deploy/demo/live_page.mp4"),
    help="Video to write.",
)
@click.option("--backend", default="onnxruntime", help="Backend of the server.")
def main(output: Path, backend: str) -> None:
    """Record a short video of the live page."""
    with tempfile.TemporaryDirectory() as folder, extracted(FILM.model) as model, extracted(PEDESTRIANS) as film:
        bundle = Path(folder) / "film.e3d"
        export(model, bundle, context_length=10, horizon=10)
        with serving(bundle, backend, "--source", str(film)) as (address, _):
            driver = browser(f"{folder}/profile")
            try:
                driver.get(address.replace("ws://", "http://").removesuffix("/v1/live"))
                time.sleep(WARM_UP_S)
                shots = pictures(driver)
            finally:
                driver.quit()
    write(output, shots)
    print(f"{output}: {output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
