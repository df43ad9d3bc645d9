"""One browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support.browser import CHROMIUM, DRIVER, MISSING, browser, prefer, resize

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Chrome]:
    if not (CHROMIUM and DRIVER):
        pytest.skip(MISSING)
    with browser() as driver:
        yield driver


@pytest.fixture()
def chromium(_chromium: Chrome) -> Chrome:
    """The browser, as wide as a desk, in the light, the pointer out of the way."""
    resize(_chromium, 1280, 900)
    prefer(_chromium, "light")
    _chromium.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 0, "y": 0})
    return _chromium
