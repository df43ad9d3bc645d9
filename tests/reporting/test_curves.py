"""Curves, held-out questions and configuration in a real browser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from reporting.hostile_run import PAYLOADS
from support.browser import complaints, prefer, requests, resize, violations, visit

from dapo_stages.config import Config
from dapo_stages.reporting.page.held_out import over_iterations
from dapo_stages.reporting.page.html import About, render
from dapo_stages.runs.changed_settings import Step
from dapo_stages.terminal.printed_table import Table

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

LAST = 60
REWARDS = {n: 0.5 + (n % 2) for n in range(1, LAST + 1)}  # 1.5, 0.5, 1.5, …
TALL = 4000


def answer(name: str, right: bool, text: str, blank: bool) -> dict[str, Any]:
    said = {"answer": "A", "read": "tags", "finish": "stop", "cut": 0}
    about = {"id": name, "slice": "s", "solution": "A", "samples": 4, "right": 3 if right else 1}
    greedy = said | {"right": right, "text": text}
    return about | {"greedy": greedy, "blank": said | {"right": blank, "text": text}}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 iterations: accuracy from 0 on, every fifth; a reward in each from 1 on; a setting changed in iteration 20."""
    figures: list[dict[str, Any]] = [{"iteration": n} for n in range(LAST + 1)]
    for n, one in enumerate(figures):
        one["weights"] = {"reward": REWARDS[n]} if n else {}
        if n % 5 == 0:
            one["eval"] = {"greedy_accuracy": n / LAST, "blank_accuracy": 0.25}
            one["eval"]["intervals"] = {"blank_accuracy": [0.125, 0.375]}
    evaluations = {
        n: [answer("turned", n >= 30, f"text {n >= 30}", False), answer("blind", True, "text", True)]
        for n in range(0, LAST + 1, 5)
    }
    evaluations |= {65: [answer(text, False, text, False) | {"solution": text} for text, _ in PAYLOADS]}
    row = {"problem": "Which color?", "solution": "A", "images": []}
    hostile = {text: {"problem": text, "solution": text, "images": []} for text, _ in PAYLOADS}
    questions = over_iterations(evaluations, lambda name: hostile.get(name, row))
    config = Config.model_validate({"train": {"beta": 0.125}, "data": {"source": PAYLOADS[1][0].replace("\x00", "")}})
    steps = [Step(20, "train.beta", 0.0, 0.125), *(Step(21, text, text, text) for text, _ in PAYLOADS)]
    about = About({"command": "make iterate RUN=a", "machine": "m"}, config, steps, questions)
    table = Table(["iteration", "x"], [[str(n), str(n)] for n in range(LAST + 1)])
    path = tmp_path_factory.mktemp("curves") / "page.html"
    path.write_text(render("r", table, figures, {}, [], {}, about), encoding="utf-8", newline="")
    return path


def chart(chromium: Chrome, title: str) -> WebElement:
    return chromium.find_element("xpath", f"//section[h3[text()='{title}']]")


def read(chromium: Chrome, title: str) -> dict[str, str]:
    """The values beside the names of a chart, and what they are of."""
    found = chart(chromium, title)
    rows = found.find_elements("css selector", ".legend div")
    values = {row.find_element("css selector", "span").text: row.find_element("css selector", "b").text for row in rows}
    return values | {"at": found.find_element("css selector", ".at").text}


def point(chromium: Chrome, title: str, share: float) -> None:
    """Move the pointer to a share of the way from the first to the last iteration."""
    from selenium.webdriver import ActionChains

    svg = chart(chromium, title).find_element("css selector", "svg")
    left, right = (float(svg.get_attribute(f"data-{side}") or 0) for side in ("left", "right"))
    offset = ((left + share * (right - left)) / 460 - 0.5) * svg.size["width"]
    ActionChains(chromium).move_to_element_with_offset(svg, round(offset), 0).perform()


def test_pointing_at_one_chart_tells_the_values_of_all(chromium: Chrome, page: Path) -> None:
    resize(chromium, 1280, TALL)
    visit(chromium, page)
    # 15 of 60; the rewards begin at 1, but all charts have the same range.
    latest = {"held-out greedy": "100.0%", "image blanked": "25.0% (12.5% to 37.5%)", "at": ""}
    assert read(chromium, "Accuracy") == latest
    point(chromium, "Reward", 0.25)
    assert read(chromium, "Reward") == {"total": "1.500", "at": "iteration 15"}
    assert read(chromium, "Accuracy")["held-out greedy"] == "25.0%"
    point(chromium, "Reward", 16 / 60)
    assert read(chromium, "Accuracy") == {"held-out greedy": "–", "image blanked": "–", "at": "iteration 16"}
    lines = chromium.execute_script(
        "return [...document.querySelectorAll('.cursor')].map(one => one.getAttribute('x1'))"
    )
    assert len(lines) > 1 and len(set(lines)) == 1
    point(chromium, "Reward", 20 / 60)
    assert read(chromium, "Reward")["at"] == "iteration 20: train.beta 0 → 0.125"
    chromium.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 0, "y": 0})
    assert read(chromium, "Accuracy") == latest
    assert chromium.execute_script("return document.querySelectorAll('.charts title').length") == 0


def test_charts_are_read_with_the_keyboard(chromium: Chrome, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    visit(chromium, page)
    focused = chromium.switch_to.active_element
    for _ in range(9):
        focused.send_keys(Keys.TAB)
        focused = chromium.switch_to.active_element
        if focused.get_attribute("role") == "slider":
            break
    assert read(chromium, "Accuracy")["at"] == "iteration 60"
    focused.send_keys(Keys.ARROW_LEFT)
    assert read(chromium, "Accuracy")["at"] == "iteration 55" and read(chromium, "Reward")["total"] == "1.500"
    assert (
        focused.get_attribute("aria-valuetext")
        == "iteration 55: held-out greedy 91.7%, image blanked 25.0% (12.5% to 37.5%)"
    )
    focused.send_keys(Keys.HOME)
    assert read(chromium, "Accuracy")["held-out greedy"] == "0.0%" and read(chromium, "Reward")["total"] == "–"
    focused.send_keys(Keys.ARROW_DOWN)
    focused = chromium.switch_to.active_element
    assert (focused.get_attribute("aria-label") or "").startswith("Reward")
    focused.send_keys(Keys.ESCAPE)
    assert read(chromium, "Reward") == {"total": "0.500", "at": ""}
    focused.send_keys(Keys.TAB)
    assert chromium.switch_to.active_element.get_attribute("role") != "slider"


def test_smoothing_keeps_the_measured_curve_behind(chromium: Chrome, page: Path) -> None:
    """With 0.5: s1 = y1, s2 = (y1 + 2 y2) / 3, s3 = (y1 + 2 y2 + 4 y3) / 7."""
    visit(chromium, page)
    drawn = (
        "const chart = [...document.querySelectorAll('.charts section')].find(one => one.firstElementChild.textContent"
        " === 'Reward'); return ['line', 'smooth'].map(name => [...chart.querySelectorAll('.' + name)]"
        ".map(one => [...one.points].map(point => point.y)))"
    )
    assert chromium.execute_script(drawn)[1] == []
    chromium.execute_script("smoothing.value = 0.5; smoothing.dispatchEvent(new Event('input', {bubbles: true}));")
    [[y]], [[s]] = ([[values] for values in kind][:1] for kind in chromium.execute_script(drawn))
    assert len(s) == len(y) == LAST
    expected = [y[0], (y[0] + 2 * y[1]) / 3, (y[0] + 2 * y[1] + 4 * y[2]) / 7]
    assert s[:3] == pytest.approx(expected, abs=0.06)
    assert max(s) - min(s[10:]) < max(y) - min(y)


def test_the_latest_iterations_are_in_view_first(chromium: Chrome, page: Path) -> None:
    visit(chromium, page)
    rows = chromium.execute_script(
        "return [...document.querySelectorAll('tbody tr td:first-child')].map(one => one.textContent)"
    )
    assert rows[: LAST + 1] == [str(n) for n in range(LAST, -1, -1)]


def test_held_out_questions_say_when_they_turned_and_what_they_were_answered(chromium: Chrome, page: Path) -> None:
    resize(chromium, 1280, TALL)
    visit(chromium, page)
    first = chromium.find_element("css selector", "#asked-list details")
    assert first.find_element("css selector", ".went").text == "turned right in iteration 30"
    strips = [one.text for one in first.find_elements("css selector", ".strip")]
    assert strips == ["○" * 6 + "●" * 7, "△" * 13]
    first.find_element("css selector", "summary").click()
    time.sleep(0.1)
    cards = [one.text.splitlines() for one in first.find_elements("css selector", ".answers > section")]
    assert [card[0] for card in cards] == ["iterations 0 to 25, the same", "iterations 30 to 60, the same"]
    assert cards[0][1].startswith("✗ wrong: A") and cards[1][1].startswith("✓ right: A")
    assert "iteration 60: 3 of 4 samples right · image blanked: A ✗ wrong" in cards[1]
    chromium.execute_script(
        "const one = document.getElementById('course'); one.value = 'blind'; one.dispatchEvent(new Event('change'))"
    )
    assert [one.text for one in chromium.find_elements("css selector", ".went")] == ["always right"]


def test_hostile_questions_and_settings_are_text(chromium: Chrome, page: Path) -> None:
    visit(chromium, page)
    chromium.execute_script(
        "showAsked(Infinity); for (const one of document.querySelectorAll('#asked-list details')) one.open = true"
    )
    time.sleep(0.3)
    assert complaints(chromium) == [] and requests(chromium) == [page.resolve().as_uri()]
    counts = chromium.execute_script(
        "const count = name => document.querySelectorAll(name).length;"
        "return ['script', 'style', 'iframe', 'textarea', 'object', 'img'].map(count)"
    )
    assert counts == [3, 1, 0, 0, 0, 0]
    texts = chromium.execute_script(
        "return [...document.querySelectorAll('.history .question')].map(one => one.textContent)"
    )
    plain = [text for text, seen in PAYLOADS if seen is None]
    assert len(texts) == len(PAYLOADS) + 2 and set(plain) <= set(texts)
    cells = chromium.execute_script("return [...document.querySelectorAll('.settings td')].map(one => one.textContent)")
    lines = {text.replace("\n", "⏎").replace("\t", " ") for text in plain}
    assert lines <= set(cells) and {"train.beta", "0.125"} <= set(cells)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_in_curves_and_questions(chromium: Chrome, page: Path, scheme: str, width: int) -> None:
    prefer(chromium, scheme)
    resize(chromium, width, 900)
    visit(chromium, page)
    chromium.execute_script(
        "for (const one of document.querySelectorAll('details')) one.open = true; setSmoothing(0.5)"
    )
    time.sleep(0.2)
    assert violations(chromium) == []
    assert chromium.execute_script("return document.documentElement.scrollWidth") == width
