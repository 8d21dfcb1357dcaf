"""Picture of an HTML file in a headless Chromium: `python scripts/screenshot.py PAGE.html OUT.png [WIDTH] [dark]`.

The picture has the whole page, or as much of it as `HEIGHT=N` in the environment says. That of docs/report.md:

    kdistill run -m student=mlp,cnn loss.T=2,4,8 student.seed=0,1
    kdistill report out=page.html
    HEIGHT=1660 python scripts/screenshot.py page.html docs/report.png 1160
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


@contextmanager
def browser(width: int, dark: bool = False) -> Iterator[Chrome]:
    """The system's Chromium, `width` pixels wide; it logs what it fetches and what its console says."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, Service(str(DRIVER)))
    try:
        resize(driver, width, 900)
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        yield driver
    finally:
        driver.quit()


def resize(driver: Chrome, width: int, height: int) -> None:
    """Make the page so wide and high, whatever the smallest window may be."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def picture(driver: Chrome, height: int | None = None) -> Image.Image:
    """The page that is open, from its top; all of it without a `height`."""
    width, whole = driver.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": width, "height": min(whole, height or whole), "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return Image.open(io.BytesIO(base64.b64decode(shot["data"])))


def main(page: str, out: str, width: str = "1400", scheme: str = "light") -> None:
    height = os.environ.get("HEIGHT")
    with browser(int(width), scheme == "dark") as driver:
        driver.get(Path(page).resolve().as_uri())
        shot = picture(driver, int(height) if height else None)
    shot.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        out, optimize=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
