"""A real browser without a window: Chromium through chromedriver, cut off from the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
MISSING = "no Chromium: apt-get install chromium chromium-driver (or Chrome and chromedriver on PATH)"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--proxy-server=127.0.0.1:9",  # nobody answers there: a page that asks for anything does not get it
)  # fmt: skip


@contextmanager
def browser() -> Iterator[Chrome]:
    """A fresh browser that records its console and every request."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    assert CHROMIUM and DRIVER, MISSING
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = Chrome(options=options, service=ChromeService(DRIVER))
        try:
            driver.set_page_load_timeout(60)
            driver.set_script_timeout(60)
            yield driver
        finally:
            driver.quit()


def resize(driver: Chrome, width: int, height: int) -> None:
    """The size of the page's view, exactly (a window has a smallest width)."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(driver: Chrome, scheme: str) -> None:
    """`light` or `dark`, as the system would say."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def visit(driver: Chrome, page: Path) -> float:
    """Open a page; seconds from the start of the navigation to the end of its script."""
    driver.get_log("browser"), driver.get_log("performance")
    driver.get(page.resolve().as_uri())
    return float(driver.execute_script("return performance.getEntriesByName('ready')[0].startTime")) / 1000


def work_of(driver: Chrome, page: Path) -> float:
    """Open a page; seconds of its main thread's processor time, whatever else the machine does meanwhile."""
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})  # counted anew for each page
    visit(driver, page)
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    driver.execute_cdp_cmd("Performance.disable", {})
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


def complaints(driver: Chrome) -> list[str]:
    """What the console says since the last visit."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: Chrome) -> list[str]:
    """Addresses asked for since the last visit, data: ones left out."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    sent = (m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent")
    return [address for address in sent if not address.startswith("data:")]


def violations(driver: Chrome) -> list[str]:
    """Serious and critical findings of axe-core, each with its first place."""
    driver.execute_cdp_cmd("Page.enable", {})
    driver.execute_script(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = driver.execute_async_script(
        "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(found => done(found.violations))"
    )
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary'][:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def one(chromium: Chrome, selector: str) -> WebElement:
    """The first element that a CSS selector finds."""
    return chromium.find_element("css selector", selector)


def ids(chromium: Chrome) -> list[str]:
    """Ids of the completions in the page of a report, in order."""
    script = "return [...document.querySelectorAll('.completion .details bdi')].map(found => found.textContent)"
    found: list[str] = chromium.execute_script(script)
    return found
