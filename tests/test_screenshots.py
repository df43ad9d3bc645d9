"""What `make screenshots` draws without a browser, and what is committed of it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from support.commands import ROOT
from support.notebook import page
from support.pipeline import Run
from support.terminal import terminal

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("project")
    (root / "training_logs").mkdir()
    (root / "training_logs/first").symlink_to(small_run.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return terminal(
            [f"dapo-stages {what} --run training_logs/first" for what in ("status", "inspect --find worst")]
        )


def test_a_terminal_is_drawn_with_its_colors_and_the_image(drawn: str) -> None:
    """The image of a completion is 40 cells wide at most, and of more colors than a table of states."""
    root = ElementTree.fromstring(drawn)
    said = "".join(text.text or "" for text in root.iter(f"{SVG}text")).replace("\xa0", " ")
    assert "$ dapo-stages status --run training_logs/first" in said and "iteration" in said
    assert "question" in said and "▀" not in said
    halves = [rect for rect in root.iter(f"{SVG}rect") if rect.get("height") == "12.2"]
    assert halves and all(float(rect.get("width", "")) <= 40 * 12.2 + 0.1 for rect in halves)
    assert len({rect.get("class") for rect in halves}) > 2


def test_nothing_is_loaded_from_elsewhere(drawn: str) -> None:
    assert "@font-face" not in drawn
    assert set(re.findall(r"https?://[^\s\"<)]+", drawn)) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}


def test_a_notebook_becomes_a_page_of_what_it_says() -> None:
    figure = {"output_type": "display_data", "data": {"image/png": "AAAA"}}
    said = {"output_type": "stream", "text": ["<b>2</b>\n", "rows"]}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "with `code`"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [said, figure]},
    ]
    made = page({"cells": cells})
    assert "<h1>Title</h1>" in made and "<code>code</code>" in made and "print(1)" not in made
    assert "<pre>&lt;b&gt;2&lt;/b&gt;\nrows</pre>" in made and 'src="data:image/png;base64,AAAA"' in made


@pytest.mark.parametrize("name", ["report.png", "report-phone.png", "report-photo.jpg", "terminal.svg", "notebook.png"])
def test_what_is_committed_is_small_and_names_no_machine(name: str) -> None:
    image = (ROOT / "docs" / name).read_bytes()
    assert 5_000 < len(image) < 300_000
    assert not re.search(rb"/(home|work|tmp|root|Users)/", image)
    assert f"docs/{name}" in (ROOT / "README.md").read_text() or f"({name})" in (ROOT / "docs/report.md").read_text()
