"""Reports in a real browser: nothing is fetched, nothing is complained of, and it can be read on any screen."""

import base64
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdistill.cli import main
from tests.reports import HOSTILE, make_comparison, make_run, make_study

SCRIPT = Path(__file__).parent.parent / "scripts" / "screenshot.py"
KINDS = ("sweep", "comparison", "study", "hostile")

pytestmark = pytest.mark.slow


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("screenshot", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


screenshot = loaded()


@pytest.fixture(scope="module")
def pages(digits_sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    place = tmp_path_factory.mktemp("pages")
    folders = {
        "sweep": digits_sweep,
        "comparison": make_comparison(place / "compare"),
        "study": make_study(place / "study"),
        "hostile": make_run(place / "hostile", classes=HOSTILE),
    }
    for kind, folder in folders.items():
        assert main(["report", str(folder), f"out={place / kind}.html"]) == 0
    return {kind: place / f"{kind}.html" for kind in folders}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not (screenshot.CHROMIUM.exists() and screenshot.DRIVER.exists()):
        pytest.skip(
            "no chromium with its driver: apt-get install --no-install-recommends chromium chromium-driver"
        )
    with screenshot.browser(1400) as driver:
        yield driver


def fetched(driver: Any) -> list[str]:
    """The addresses that the browser has asked for since it was last asked here."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [m["params"]["request"]["url"] for m in sent]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_fetched_and_nothing_complained_of(
    kind: str, pages: dict[str, Path], chromium: Any
) -> None:
    """The page is the one request; the console stays empty; no markup of a name has become an element."""
    fetched(chromium)
    chromium.get_log("browser")
    chromium.get(pages[kind].as_uri())

    outside = [url for url in fetched(chromium) if not url.startswith("data:")]
    assert outside == [pages[kind].as_uri()]
    assert chromium.get_log("browser") == []
    assert chromium.execute_script("return document.scripts.length") == 0


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_readable_at_any_width(kind: str, width: int, pages: dict[str, Path], chromium: Any) -> None:
    """The page never scrolls sideways, tables do so in their own box; text in figures has at least 8 pixels."""
    screenshot.resize(chromium, width, 900)
    chromium.get(pages[kind].as_uri())

    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = chromium.execute_script("""
        return [...document.querySelectorAll('figure svg')].flatMap(svg => {
            const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width
            return [...svg.querySelectorAll('text')].map(text => scale * parseFloat(getComputedStyle(text).fontSize))
        })
    """)
    assert len(sizes) > 50
    assert min(sizes) >= 8


def test_a_dark_screen_has_a_dark_page(pages: dict[str, Path], chromium: Any) -> None:
    """Page and figures change their colours together."""
    script = """
        const text = document.querySelector('svg text')
        return [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill]
    """
    chromium.get(pages["sweep"].as_uri())
    seen = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colours = chromium.execute_script(script)
        seen[scheme] = [sum(map(int, c.removeprefix("rgb(").rstrip(")").split(", "))) for c in colours]

    (light_page, light_text), (dark_page, dark_text) = seen["light"], seen["dark"]
    assert light_page > 600 > light_text
    assert dark_page < 150 < dark_text


def test_it_prints(pages: dict[str, Path], chromium: Any) -> None:
    """As a PDF of some pages."""
    chromium.get(pages["sweep"].as_uri())
    printed = chromium.execute_cdp_cmd(
        "Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True}
    )
    content = base64.b64decode(printed["data"])

    assert content.startswith(b"%PDF")
    assert 3 <= content.count(b"/Type /Page\n") <= 20


def test_the_script_takes_pictures(pages: dict[str, Path], tmp_path: Path, chromium: Any) -> None:
    """As wide as asked for, and as high as the page."""
    from PIL import Image

    screenshot.main(str(pages["study"]), str(tmp_path / "a.png"), "400", "dark")

    with Image.open(tmp_path / "a.png") as shot:
        assert shot.width == 400
        assert shot.height > 1000
