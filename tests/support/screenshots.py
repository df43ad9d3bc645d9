"""The images of the docs, made by `make screenshots RUN=first`: the report and the notebook of a run, photographed in a
browser without a window, and two commands in a terminal.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from PIL import Image
from reporting import photo_run

from support.browser import browser, prefer, resize, visit
from support.commands import ROOT
from support.commands import run as command
from support.notebook import executed, page
from support.terminal import terminal

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_LOOK = """
form.elements.signal.value = 'informative'; choose();
const boxes = [...document.querySelectorAll('.tokens')];
const box = boxes.find(box => box.closest('.group').querySelector('.layers')) ?? boxes[0];
const all = [...box.children];
(all.find(token => token.className === 'w7') ?? all[0]).click();
return [...document.querySelectorAll('.group')].indexOf(box.closest('.group'))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    commands = [f"dapo-stages {what} --run {arguments.run}" for what in ("status", "inspect --find disagree")]
    (arguments.out / "terminal.svg").write_text(terminal(commands), encoding="utf-8")
    print(arguments.out / "terminal.svg")
    with browser() as driver:
        desk(driver, arguments.run / "report.html", arguments.out / "report.png")
        phone(driver, arguments.run / "report.html", arguments.out / "report-phone.png")
        photograph(driver, arguments.out / "report-photo.jpg")
        notebook(driver, str(arguments.run.relative_to("training_logs")), arguments.out / "notebook.png")


def desk(driver: Chrome, page: Path, out: Path) -> None:
    """The figures, two rows of curves, and a group of completions."""
    prefer(driver, "light")
    resize(driver, 1280, 6000)
    visit(driver, page)
    driver.execute_script(_LOOK)
    resize(driver, 1280, driver.execute_script("return document.documentElement.scrollHeight"))  # all of it
    top = _bottom(driver, ".charts > :nth-child(6)")
    browser_top = driver.execute_script("return document.getElementById('browser').getBoundingClientRect().top")
    end = _bottom(driver, ".group:nth-child(1)")
    shot = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    parts = [shot.crop((0, 0, 1280, int(top) + 8)), shot.crop((0, int(browser_top), 1280, int(end) + 16))]
    whole = Image.new("RGB", (1280, sum(part.height for part in parts)))
    start = 0
    for part in parts:
        whole.paste(part, (0, start))
        start += part.height
    save(whole, out)


def phone(driver: Chrome, page: Path, out: Path) -> None:
    """A group of completions in the dark, 390 pixels wide."""
    prefer(driver, "dark")
    resize(driver, 390, 844)
    visit(driver, page)
    group = driver.execute_script(_LOOK)
    driver.execute_script("document.querySelectorAll('.group')[arguments[0]].scrollIntoView()", group)
    save(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"), out)


def photograph(driver: Chrome, out: Path) -> None:
    """A made-up run about a portrait that matplotlib brings along: its map, enlarged, and on a phone in the dark."""
    import matplotlib

    with TemporaryDirectory() as folder:
        run = Path(folder) / "portrait"
        photo_run.build(run, Image.open(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"))
        command("report", "--config", run / "config.yaml", "--run", run)
        shots: list[Image.Image] = []
        views = (("light", 960, 700, "map"), ("light", 960, 700, "both"), ("dark", 390, 1416, "both"))
        for scheme, width, height, view in views:
            prefer(driver, scheme)
            resize(driver, width, height)
            visit(driver, run / "report.html")
            driver.execute_script("document.querySelector('.group').scrollIntoView(); setView(arguments[0])", view)
            if len(shots) == 1:
                driver.execute_script("document.querySelector('.image').click()")
            shots.append(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"))
    whole = Image.new("RGB", (960 + 16 + 390, 2 * 700 + 16), "white")
    for shot, place in zip(shots, ((0, 0), (0, 716), (976, 0)), strict=True):
        whole.paste(shot, place)
    # As JPEG: 256 colors would take the map for part of the portrait.
    whole.resize((whole.width * 2 // 3, whole.height * 2 // 3), Image.Resampling.LANCZOS).save(out, quality=85)
    print(out)


def notebook(driver: Chrome, run: str, out: Path) -> None:
    """All of pipelines/notebooks/inspect.ipynb but its code."""
    prefer(driver, "light")
    resize(driver, 928, 6000)
    with TemporaryDirectory() as folder:
        html = Path(folder) / "notebook.html"
        html.write_text(page(executed(ROOT / "pipelines/notebooks/inspect.ipynb", run)), encoding="utf-8")
        visit(driver, html)
    end = _bottom(driver, "body")
    shot = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    save(shot.crop((0, 0, 928, int(end) + 16)), out)


def save(image: Image.Image, out: Path) -> None:
    """256 colors are enough for a page, in a third of the bytes."""
    image.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    print(out)


def _bottom(driver: Chrome, selector: str) -> float:
    script = f"return document.querySelector('{selector}').getBoundingClientRect().bottom"
    return float(driver.execute_script(script))


if __name__ == "__main__":
    main()
