"""report.html about a photograph, in a real browser: the image under the map, zoom, answers, who guessed, links."""

from __future__ import annotations

import base64
import csv
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from reporting import photo_run
from reporting.photo_run import COLUMNS, GUESSERS, ROWS, SPOT, attention
from support.browser import complaints, ids, one, prefer, requests, resize, violations, visit
from support.commands import run as command

from dapo_stages.reporting.iteration.overlay import shades

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

Pixels = NDArray[np.int64]
TALL = 3200
EARLIEST = "it1-p0-s0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait, which matplotlib brings along."""
    folder = tmp_path_factory.mktemp("runs") / "photo"
    photo_run.build(folder, Image.open(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"))
    result = command("report", "--config", folder / "config.yaml", "--run", folder)
    assert result.code == 0, result.stderr
    return folder


@pytest.fixture()
def page(chromium: Chrome, run: Path) -> Chrome:
    """The page as it is opened first, so high that nothing scrolls away."""
    resize(chromium, 1280, TALL)
    chromium.get("about:blank")
    visit(chromium, run / "report.html")
    return chromium


def shot(element: WebElement) -> Pixels:
    with Image.open(io.BytesIO(element.screenshot_as_png)) as image:
        return np.asarray(image.convert("RGB"), np.int64)


def show(chromium: Chrome, view: str, where: str = ".switch") -> None:
    one(chromium, f"{where} [data-show={view}]").click()


def inside(pixels: Pixels) -> Pixels:
    """Without the round corners and the outline."""
    return pixels[8:-8, 8:-8]


def cells_of(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Row and column of the image token that each pixel of an image belongs to."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return rows * ROWS // shape[0], columns * COLUMNS // shape[1]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_image_stays_what_it_was_where_nobody_looked(page: Chrome, width: int) -> None:
    """Attention as of a real head, noise everywhere: 12 tokens, of which the page shows the mean."""
    resize(page, width, TALL)
    with_map = shot(one(page, ".over"))
    show(page, "image")
    without = shot(one(page, ".over"))
    mean = np.mean([attention(token) for token in range(12)], axis=0)
    rows, columns = cells_of(with_map.shape)
    looked_at = mean[rows, columns] > mean.mean()
    # A cell's pixels at the edge to the next one may be of either.
    edge = np.zeros_like(looked_at)
    for axis in (0, 1):
        for by in (1, -1):
            edge |= looked_at != np.roll(looked_at, by, axis)
    changed = np.abs(with_map - without).max(axis=-1)
    elsewhere = inside(~looked_at & ~edge)
    assert elsewhere.mean() > 0.4 and inside(changed)[elsewhere].max() <= 25  # of 255: a tenth
    # Where it was looked at most, it is clearly marked, and yellow.
    spot = (rows == SPOT[0]) & (columns == SPOT[1]) & ~edge
    assert changed[spot].mean() > 40 and with_map[spot][:, 2].max() < 0.4 * 255 + 0.6 * 20 + 3
    # The image as a whole is recognizable: bright and dark are where they were.
    gray, before = inside(with_map.mean(axis=-1)).ravel(), inside(without.mean(axis=-1)).ravel()
    assert np.corrcoef(gray, before)[0, 1] > 0.95


def test_the_page_paints_as_the_terminal_does(page: Chrome) -> None:
    """The canvas, pixel by pixel, against overlay.py on the same bytes."""
    data, drawn = page.execute_script(
        "const canvas = document.querySelector('.over canvas');"
        "const { width, height } = canvas; const heat = groups[0].completions[0].heat;"
        "const layer = heat.layers.indexOf('all'), mean = heat.seen[layer].length - 1;"
        "const start = (layer * (mean + 1) + mean) * heat.cells;"
        "return [[...heat.bytes.subarray(start, start + heat.cells)],"
        " [...canvas.getContext('2d').getImageData(0, 0, width, height).data]]"
    )
    expected = shades(np.array(data, float)).astype(int)
    found = np.array(drawn).reshape(-1, 4)
    assert len(found) == ROWS * COLUMNS and np.abs(found[:, 3] - expected[:, 3]).max() <= 1
    strong = expected[:, 3] > 60  # a canvas keeps colors multiplied by the opacity: pale ones are rounded
    assert strong.sum() >= 3 and np.abs(found[strong, :3] - expected[strong, :3]).max() <= 4


def test_the_key_says_what_yellow_is(page: Chrome) -> None:
    mean = np.mean([attention(token) for token in range(12)], axis=0)
    said = one(page, ".key").text
    times = float(said.split()[-5])
    assert said.startswith("the average or less") and said.endswith("× the average cell")
    assert times == pytest.approx(mean.max() / mean.mean(), rel=0.02)


def test_map_image_and_side_by_side(page: Chrome) -> None:
    def visible() -> list[bool]:
        return [one(page, f".group {part}").is_displayed() for part in (".plain", ".over img", ".over canvas")]

    assert visible() == [False, True, True]
    show(page, "image")
    assert visible() == [False, True, False]
    show(page, "both")
    assert visible() == [True, True, True]
    plain, over = (one(page, f".group {part}").rect for part in (".plain", ".over"))
    assert plain["y"] == over["y"] and plain["x"] + plain["width"] <= over["x"] and plain["width"] > 250
    assert one(page, "[data-show=both]").get_attribute("aria-pressed") == "true"
    token = one(page, ".tokens > span")
    token.click()
    token.send_keys("v")  # the next one
    assert visible() == [False, True, True]


def test_cells_are_cells_unless_smooth_is_asked_for(page: Chrome) -> None:
    def steps() -> int:
        """Jumps along a row through the face, of what the map adds to the image."""
        show(page, "map")
        painted = shot(one(page, ".over"))
        show(page, "image")
        row = (2 * SPOT[0] + 1) * painted.shape[0] // (2 * ROWS)
        difference = painted[row] - shot(one(page, ".over"))[row]
        return int((np.abs(np.diff(difference, axis=0)).max(axis=-1) > 15).sum())

    hard = steps()
    one(page, ".smooth").click()
    assert page.execute_script("return getComputedStyle(document.querySelector('canvas')).imageRendering") == "auto"
    assert steps() < hard / 2
    one(page, ".smooth").click()
    assert steps() == hard


def test_an_image_is_enlarged_and_zoomed_into(page: Chrome) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    resize(page, 1280, 900)
    button = one(page, ".image")
    small = button.size["width"]
    button.send_keys(Keys.ENTER)

    def width() -> float:
        return float(one(page, "#zoom .over img").size["width"])

    assert one(page, "#zoom").is_displayed() and width() > 1.5 * small
    fits = width()
    stage = page.switch_to.active_element
    stage.send_keys("+")
    assert width() == pytest.approx(1.5 * fits, abs=2)
    stage.send_keys("-")
    stage.send_keys("-")  # not below what fits
    assert width() == fits
    # The wheel keeps the point under the pointer, here a quarter from the left of the image, where it is.
    image = "const box = document.querySelector('#zoom .over img').getBoundingClientRect();"
    x = page.execute_script(f"{image} return box.left + box.width / 4")
    wheel = {"type": "mouseWheel", "x": x, "y": 400, "deltaX": 0, "deltaY": -1000}
    page.execute_cdp_cmd("Input.dispatchMouseEvent", wheel)
    WebDriverWait(page, 5).until(lambda _: width() > 4 * fits)
    assert page.execute_script(f"{image} return box.left + box.width / 4") == pytest.approx(x, abs=2)
    # Dragging moves it, arrows do, too, and no edge comes into the image's place.
    left = f"{image} return box.left"
    before = page.execute_script(left)
    ActionChains(page).drag_and_drop_by_offset(stage, -60, 0).perform()
    assert page.execute_script(left) == pytest.approx(before - 60, abs=2)
    stage.send_keys(Keys.ARROW_LEFT)
    assert page.execute_script(left) > before - 60
    # The map is that of the group, and so is what is said of it.
    drawn = "return document.querySelector(arguments[0]).toDataURL()"
    assert page.execute_script(drawn, "#zoom canvas") == page.execute_script(drawn, ".over canvas")
    assert "mean over its tokens" in one(page, "#zoom .looked").text
    stage.send_keys("1")
    assert "early layers" in one(page, "#zoom .looked").text
    show(page, "both", "#zoom")
    places = [one(page, f"#zoom .{part}").rect for part in ("plain", "over")]
    images = [one(page, f"#zoom .{part} img").rect for part in ("plain", "over")]
    assert images[0]["width"] == images[1]["width"] and places[0]["width"] == places[1]["width"] > 600
    assert images[0]["x"] - places[0]["x"] == pytest.approx(images[1]["x"] - places[1]["x"], abs=1)  # the same part
    assert violations(page) == []
    stage.send_keys(Keys.ESCAPE)
    assert not one(page, "#zoom").is_displayed() and page.switch_to.active_element == button


def test_what_was_answered_stands_beside_the_solution(page: Chrome) -> None:
    found = [verdict.text for verdict in page.find_elements("css selector", ".verdict")][:8]
    assert found == [
        "✓ right: B, in <answer>",
        "✓ right: B, in <answer>",
        "✗ wrong: A, in <answer>",
        "✗ wrong: A, in <answer>",
        "✓ right: B, at the end of a thought never closed",
        "✓ right: B, last lone letter or line",
        "✗ wrong: no answer found",
        "✓ right: B, in <answer>",
    ]
    colors = [
        one(page, f".{kind}.verdict").value_of_css_property("color").removeprefix("rgba(").split(", ")
        for kind in ("good", "bad")
    ]
    assert int(colors[0][1]) > int(colors[0][0]) and int(colors[1][0]) > int(colors[1][1])
    details = one(page, ".group > aside > .details").text
    assert details.startswith("solution B · 5 of 8 right") and "slice people" in details


def test_figures_take_one_line_until_asked_for(page: Chrome) -> None:
    line = one(page, ".figures summary")
    assert line.text == "adv. +0.40 · reward 3.00 · VGR 0.50" and line.size["height"] < 25
    assert not one(page, ".figures .said").is_displayed()
    line.click()
    assert one(page, ".figures .said").text.split("\n")[-2:] == ["tokens 12", "stop"]


def test_who_guessed_without_looking_takes_one_step(page: Chrome) -> None:
    """Eight guessers among 32 completions: no fragment, none cut off, none without an answer, whatever their VGR."""
    one(page, "#guessed").click()
    listed = page.execute_script("return state.listed.map(({ one }) => one.id)")
    assert listed[:8] == GUESSERS
    assert {name.split("-s")[1] for name in listed} == {"0", "1", "2", "3"}  # the others looked more
    page.execute_script("form.elements.first.value = 8; form.requestSubmit()")
    assert set(ids(page)) == set(GUESSERS)
    assert one(page, "#count").text == "8 completions of 4 questions, page 1 of 1"


@pytest.mark.parametrize(
    ("controls", "samples"),
    [
        ({"format": "malformed"}, "45"),
        ({"format": "well-formed"}, "012367"),
        ({"read": "answered"}, "0123457"),
        ({"read": "none"}, "6"),
        ({"read": "unclosed"}, "4"),
        ({"finish": "length"}, "47"),
        ({"finish": "stop", "read": "lone"}, "5"),
    ],
    ids=str,
)
def test_format_reading_and_end_are_filtered_and_in_the_address(
    page: Chrome, run: Path, controls: dict[str, str], samples: str
) -> None:
    page.execute_script(
        "for (const [name, value] of Object.entries(arguments[0])) form.elements[name].value = value;"
        "form.requestSubmit()",
        controls,
    )
    expected = [f"it1-p{group}-s{sample}" for group in range(4) for sample in samples]
    assert ids(page) == expected
    address = page.current_url
    assert set(address.split("#")[1].split("&")) == {f"{name}={value}" for name, value in controls.items()}
    page.get("about:blank")
    page.get(address)  # as somebody else opens it
    assert ids(page) == expected
    assert {name: one(page, f"[name={name}]").get_attribute("value") for name in controls} == controls
    one(page, "[type=reset]").click()
    time.sleep(0.05)
    assert len(ids(page)) == 32 and page.current_url == (run / "report.html").as_uri()


def test_a_link_opens_the_page_at_its_completion(page: Chrome) -> None:
    resize(page, 1280, 900)
    link = page.find_elements("css selector", ".completion .details a")[-1]
    address = link.get_attribute("href")
    assert address is not None and address.endswith("report.html#completion=it1-p3-s7")
    page.get("about:blank")
    page.get(address)
    linked = one(page, ".linked")
    assert linked == page.switch_to.active_element and "it1-p3-s7" in linked.text
    assert 0 <= page.execute_script("return arguments[0].getBoundingClientRect().top", linked) < 900
    assert len(page.find_elements("css selector", ".linked")) == 1
    # A link to one that is not in the page, and what is no control, do no harm.
    page.get(address.replace("it1-p3-s7", "</script>&elements=x&length=3&slice=nowhere"))
    assert "the one that was linked to is in the Parquet files only" in one(page, "#count").text
    assert len(ids(page)) == 32
    page.get(address.split("#")[0] + "#browser")
    assert len(ids(page)) == 32 and complaints(page) == []


def test_what_is_filtered_is_downloaded_as_csv(page: Chrome, run: Path, tmp_path: Path) -> None:
    """The same bytes as of inspect, but for the mark of UTF-8."""
    page.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    one(page, "#guessed").click()
    one(page, "#csv").click()
    file = tmp_path / "completions.csv"
    for _ in range(100):
        if file.exists() and file.stat().st_size:
            break
        time.sleep(0.05)
    said = command("inspect", "--run", run, "--find", "guessed", "-n", 20, "--csv").stdout
    assert file.read_text(encoding="utf-8") == "\ufeff" + said
    rows = list(csv.DictReader(io.StringIO(said)))
    assert [row["completion_id"] for row in rows[:8]] == GUESSERS
    assert requests(page) == [(run / "report.html").as_uri()] and complaints(page) == []


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("@x", "'@x"),
        ("-5", "-5"),
        ("+3.5", "+3.5"),
        ("-5+x", "'-5+x"),
        ('a "b", c', '"a ""b"", c"'),
        ("a\nb", '"a\nb"'),
    ],
)
def test_a_cell_of_the_csv_is_text(page: Chrome, text: str, cell: str) -> None:
    from dapo_stages.reporting.iteration.listing import COLUMNS as NAMES
    from dapo_stages.reporting.iteration.listing import as_csv

    assert page.execute_script("return cell(arguments[0])", text) == cell
    row: dict[str, Any] = dict.fromkeys(NAMES, "x") | {"completion": text}
    assert as_csv([row]).split("\n", 1)[1] == "x," * (len(NAMES) - 1) + cell + "\n"


def test_a_photograph_fits_a_phone_in_the_dark(page: Chrome) -> None:
    prefer(page, "dark")
    resize(page, 390, 844)
    assert violations(page) == []
    for view in ("both", "map"):
        page.execute_script("setView(arguments[0])", view)
        assert page.execute_script("return document.documentElement.scrollWidth") == 390
    one(page, ".image").click()
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    bar, stage = (one(page, f"#zoom .{part}").rect for part in ("bar", "stage"))
    assert bar["width"] <= 390 and stage["height"] > 400


def test_the_image_is_sent_in_enough_detail_to_enlarge(page: Chrome) -> None:
    """420 × 504 pixels, of which at most 480 a side are kept."""
    uri = one(page, ".over img").get_attribute("src")
    assert uri is not None
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        assert image.size == (400, 480)
