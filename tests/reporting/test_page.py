"""report.html in a real browser: looking through completions, heat maps, keyboard, colors, narrow screens."""

from __future__ import annotations

import io
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from reporting import looked_run, tiny_run
from support.browser import complaints, ids, one, prefer, requests, resize, violations, visit
from support.commands import run as command

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations of two groups of four completions, and a replayed one of a single completion."""
    return reported(tiny_run.build(tmp_path_factory.mktemp("runs") / "tiny"))


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported(looked_run.build(tmp_path_factory.mktemp("runs") / "looked"))


def reported(run: Path) -> Path:
    result = command("report", "--config", run / "config.yaml", "--run", run)
    assert result.code == 0, result.stderr
    return run / "report.html"


def choose(chromium: Chrome, **values: str) -> list[str]:
    """Set controls by name (`_` for `-`), the others to nothing; the completions then shown."""
    chromium.execute_script(
        "const form = document.getElementById('controls'); form.reset();"
        "for (const [name, value] of Object.entries(arguments[0])) form.elements[name.replace('_', '-')].value = value;"
        "form.requestSubmit();",
        values,
    )
    time.sleep(0.02)  # the form's reset is heard a moment later
    chromium.execute_script("document.getElementById('controls').requestSubmit()")
    return ids(chromium)


def token(chromium: Chrome, completion: int, index: int) -> WebElement:
    box = chromium.find_elements("css selector", ".tokens")[completion]
    return box.find_elements("css selector", "span")[index]


def said(chromium: Chrome) -> str:
    return one(chromium, ".looked").text


def brightest(chromium: Chrome) -> tuple[int, int]:
    """Row and column of the image token under which the image is brightest, as the browser drew it."""
    with Image.open(io.BytesIO(one(chromium, ".image").screenshot_as_png)) as image:
        shot = image.convert("RGB")
    across, down = looked_run.COLUMNS, looked_run.ROWS
    # Light yellow over gray; what is white shows through at the round corners.
    places = [divmod(i, shot.width) for i, (r, _, b) in enumerate(shot.getdata()) if r > 180 and b < 190]
    found = Counter((int((y + 0.5) * down / shot.height), int((x + 0.5) * across / shot.width)) for y, x in places)
    ((place, pixels),) = found.most_common(1)
    part = shot.width * shot.height / (across * down)
    assert 0.85 * part < pixels and len(places) < 1.1 * part  # that image token and, but for the edge, no other
    return place


def test_the_page_opens_quietly_and_asks_for_nothing_but_itself(chromium: Chrome, tiny: Path) -> None:
    visit(chromium, tiny)
    assert complaints(chromium) == []
    assert requests(chromium) == [tiny.resolve().as_uri()]
    assert one(chromium, "#count").text == "17 completions of 5 questions, page 1 of 1"


def test_the_policy_of_the_page_is_in_force(chromium: Chrome, tiny: Path) -> None:
    visit(chromium, tiny)
    blocked = chromium.execute_async_script(
        "const [done] = arguments; const blocked = [];"
        "document.addEventListener('securitypolicyviolation', event => blocked.push(event.effectiveDirective));"
        "const add = (tag, more) => document.body.append(Object.assign(document.createElement(tag), more));"
        "add('script', {textContent: 'window.broken = true'}); add('style', {textContent: 'body {color: red}'});"
        "add('img', {src: 'http://example.org/x.png'}); add('iframe', {src: 'http://example.org/'});"
        "fetch('http://example.org/').catch(() => 0).then(() => setTimeout(() => done([blocked, window.broken]), 200))"
    )
    assert sorted(blocked[0]) == ["connect-src", "frame-src", "img-src", "script-src-elem", "style-src-elem"]
    assert blocked[1] is None


TALL = 3200  # nothing scrolls away from under the pointer
FRESH = [f"it{n}-p{group}-s{sample}" for n in (2, 1) for group in (0, 1) for sample in range(4)]


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ({"iteration": "1"}, FRESH[8:]),
        ({"answer": "wrong"}, ["it2-p0-s2", "it2-p0-s3", "it1-p0-s2", "it1-p0-s3"]),
        ({"signal": "informative"}, FRESH[:4] + FRESH[8:12]),
        ({"signal": "flat", "iteration": "1"}, FRESH[12:]),
        ({"origin": "replayed"}, ["it1-p0-s0"]),
        ({"origin": "fresh"}, FRESH),
        ({"slice": "prior|violating"}, FRESH[4:8] + FRESH[12:]),
        ({"reward_min": "3"}, ["it2-p0-s0", "it2-p0-s1", "it1-p0-s0", "it1-p0-s0", "it1-p0-s1"]),
        ({"length_max": "6", "iteration": "2"}, ["it2-p0-s2", "it2-p1-s2"]),
        ({"vgr_min": "1.5", "vgr_max": "3"}, ["it2-p0-s2", "it2-p0-s3", "it1-p0-s1", "it1-p0-s2"]),
        ({"search": "ALERT(1)"}, ["it2-p0-s3", "it1-p0-s3"]),
        ({"search": "it2-p1"}, FRESH[4:8]),
        ({"search": "blue</b>", "iteration": "1"}, FRESH[8:]),
        ({"search": "nobody says this"}, []),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_completions_are_filtered(chromium: Chrome, tiny: Path, controls: dict[str, str], expected: list[str]) -> None:
    if chromium.current_url.split("#")[0] != tiny.resolve().as_uri():
        visit(chromium, tiny)
    found = choose(chromium, **controls)
    assert sorted(found) == sorted(expected)
    assert one(chromium, "#count").text.startswith(f"{len(expected)} completion")


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("iteration", ["it1-p0-s0", "it1-p0-s1", "it1-p0-s2"]),
        ("accuracy", ["it2-p0-s0", "it2-p0-s1", "it2-p0-s2"]),  # two of four, before the groups that are all right
        ("-accuracy", ["it2-p1-s0", "it2-p1-s1", "it2-p1-s2"]),
        ("reward", ["it2-p0-s3", "it2-p0-s2", "it2-p0-s0"]),  # -0.5, 0.5, 3
        ("-reward", ["it2-p0-s0", "it2-p0-s1", "it2-p0-s2"]),
        ("length", ["it2-p0-s2", "it2-p0-s3", "it2-p0-s0"]),  # 6, 8, 11, 11
        ("-length", ["it2-p0-s0", "it2-p0-s1", "it2-p0-s3"]),
        ("vgr", ["it2-p0-s0", "it2-p0-s1", "it2-p0-s2"]),  # 0.5, 1, 1.5; half of those of the first iteration
        ("-vgr", ["it1-p0-s3", "it1-p0-s2", "it1-p0-s1"]),
    ],
)
def test_completions_are_sorted(chromium: Chrome, tiny: Path, sort: str, expected: list[str]) -> None:
    if chromium.current_url.split("#")[0] != tiny.resolve().as_uri():
        visit(chromium, tiny)
    assert choose(chromium, sort=sort, origin="fresh")[:3] == expected


def test_typing_searches(chromium: Chrome, tiny: Path) -> None:
    visit(chromium, tiny)
    one(chromium, "[name=search]").send_keys("it2-p0")
    time.sleep(0.3)
    assert ids(chromium) == FRESH[:4]
    one(chromium, "[type=reset]").click()
    time.sleep(0.1)
    assert len(ids(chromium)) == 17


def test_the_same_question_in_other_iterations(chromium: Chrome, tiny: Path) -> None:
    """p1 was sampled in both iterations, and not replayed."""
    visit(chromium, tiny)
    button = chromium.find_elements("xpath", "//article[@aria-label='question it2-p1']//aside/button")[-1]
    assert button.text == "The same question in 2 iterations"
    button.click()
    assert ids(chromium) == FRESH[12:] + FRESH[4:8]


def test_tokens_are_darker_where_they_weigh_more(chromium: Chrome, tiny: Path) -> None:
    visit(chromium, tiny)
    script = "return [...document.querySelector('.tokens').children].map(span => +span.className.slice(1))"
    assert chromium.execute_script(script) == [0, 1, 1, 2, 3, 4, 4, 5, 6, 6, 7]  # weights 0.5, 0.6 … 1.5 in 8 shades
    lightness = (
        "return [...document.querySelector('.ramp').children].map(step => getComputedStyle(step).backgroundColor)"
    )
    for scheme, order in (("light", 1), ("dark", -1)):
        prefer(chromium, scheme)
        grounds = [sum(map(int, ground[4:-1].split(","))) for ground in chromium.execute_script(lightness)[1:]]
        assert grounds[::order] == sorted(grounds, reverse=True), scheme


def test_pointing_at_a_token_shows_where_it_looked(chromium: Chrome, looked: Path) -> None:
    from selenium.webdriver import ActionChains

    resize(chromium, 1280, TALL)
    visit(chromium, looked)
    for index in (0, 4, 8):
        ActionChains(chromium).move_to_element(token(chromium, 1, index)).perform()
        row, column = looked_run.place("all", index)
        weight = 0.5 + index / 10
        # Half of the attention is on one image token, 0.005 on each of the 76 others.
        assert f"in completion 2 · weight {weight:.2f} · VGR 0.50 · 88.0% of the attention" in said(chromium)
        assert brightest(chromium) == (row, column)


def test_the_slider_goes_through_the_layers(chromium: Chrome, looked: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    resize(chromium, 1280, TALL)
    visit(chromium, looked)
    slider = one(chromium, ".layers input")
    assert one(chromium, ".layers output").text == "all"
    for segment in ("late", "middle", "early"):
        slider.send_keys(Keys.ARROW_LEFT)
        assert one(chromium, ".layers output").text == segment
        assert brightest(chromium) == looked_run.place(segment, 0)
        assert f"{segment} layers" in said(chromium)


def test_everything_works_from_the_keyboard(chromium: Chrome, looked: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    resize(chromium, 1280, TALL)
    visit(chromium, looked)
    focused = chromium.switch_to.active_element
    for _ in range(60):
        focused.send_keys(Keys.TAB)
        focused = chromium.switch_to.active_element
        if focused.get_attribute("role") == "option":
            break
    assert focused.text == "<think>" and "“<think>” in completion 1" in said(chromium)
    steps = [(Keys.ARROW_RIGHT, " The", 1), (Keys.END, "</answer>", 1), (Keys.HOME, "<think>", 1)]
    steps += [(Keys.ARROW_DOWN, "<think>", 2), (Keys.ARROW_RIGHT, " The", 2), (Keys.ARROW_UP, "<think>", 1)]
    for key, text, number in steps:
        focused.send_keys(key)
        focused = chromium.switch_to.active_element
        assert focused.get_property("textContent") == text and f"in completion {number} " in said(chromium)
    focused.send_keys(Keys.ARROW_RIGHT)
    focused = chromium.switch_to.active_element
    assert brightest(chromium) == looked_run.place("all", 1)
    for key, segment in (("1", "early"), ("2", "middle"), ("3", "late"), ("4", "all")):
        focused.send_keys(key)
        assert brightest(chromium) == looked_run.place(segment, 1)
    focused.send_keys(Keys.ENTER)
    assert focused.get_attribute("aria-selected") == "true"


def test_a_kept_token_comes_back_after_pointing_elsewhere(chromium: Chrome, looked: Path) -> None:
    from selenium.webdriver import ActionChains

    resize(chromium, 1280, TALL)
    visit(chromium, looked)
    token(chromium, 0, 4).click()
    ActionChains(chromium).move_to_element(token(chromium, 1, 0)).perform()
    assert "in completion 2" in said(chromium)
    ActionChains(chromium).move_to_element(one(chromium, "#completions")).perform()
    assert said(chromium).startswith("“ red” in completion 1 · weight 0.90")


def test_a_completion_whose_looks_were_not_kept_says_so(chromium: Chrome, looked: Path) -> None:
    from selenium.webdriver import ActionChains

    resize(chromium, 1280, TALL)
    visit(chromium, looked)
    ActionChains(chromium).move_to_element(token(chromium, 2, 1)).perform()
    assert said(chromium).endswith("no attention map stored")
    assert not one(chromium, ".image canvas").is_displayed()


def ground(chromium: Chrome) -> int:
    color = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
    return sum(map(int, color[4:-1].split(",")))


def test_dark_by_the_system_or_by_the_button(chromium: Chrome, tiny: Path) -> None:
    prefer(chromium, "dark")
    visit(chromium, tiny)
    button = one(chromium, "#theme")
    assert ground(chromium) < 150 and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert ground(chromium) > 600 and button.get_attribute("aria-pressed") == "false"
    prefer(chromium, "light")
    visit(chromium, tiny)
    assert ground(chromium) > 600
    one(chromium, "#theme").click()
    assert ground(chromium) < 150


def test_a_phone_needs_no_sideways_scrolling(chromium: Chrome, tiny: Path) -> None:
    resize(chromium, 390, 844)
    visit(chromium, tiny)
    assert chromium.execute_script("return document.documentElement.scrollWidth") == 390
    beyond = chromium.execute_script(
        "const right = element => element.getBoundingClientRect().right;"
        "return [...document.querySelectorAll('#browser *')].filter(one => right(one) > 391).length"
    )
    assert beyond == 0


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious(chromium: Chrome, looked: Path, tiny: Path, scheme: str, width: int) -> None:
    prefer(chromium, scheme)
    resize(chromium, width, 900)
    for page in (looked, tiny) if width > 390 else (looked,):
        visit(chromium, page)
        assert violations(chromium) == []


def test_axe_would_find_something(chromium: Chrome, tiny: Path) -> None:
    visit(chromium, tiny)
    chromium.execute_script("document.querySelector('.over img').removeAttribute('alt')")
    assert [found.split(":")[0] for found in violations(chromium)] == ["image-alt"]
