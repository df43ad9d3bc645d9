"""Images in a terminal: every character and color of small ones is known."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from rich.console import Console

from dapo_stages.reporting.iteration.overlay import shades
from dapo_stages.reporting.iteration.terminal_images import blocks

RED, BLUE, GREEN, WHITE = (255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 255)


def image_of(width: int, height: int, colors: list[tuple[int, int, int]]) -> bytes:
    """Quadrants: upper left, upper right, lower left, lower right."""
    image = Image.new("RGB", (width, height))
    for index, color in enumerate(colors):
        left, top = (index % 2) * width // 2, (index // 2) * height // 2
        image.paste(color, (left, top, left + width // 2, top + height // 2))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


QUADRANTS = [RED, BLUE, GREEN, WHITE]


def test_blocks_show_two_pixels_a_character() -> None:
    text = blocks(image_of(2, 4, QUADRANTS))
    assert text is not None
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=10)
    console.print(text, end="")
    cell = "\x1b[38;2;{};{};{};48;2;{};{};{}m▀\x1b[0m"
    rows = [(RED, RED), (BLUE, BLUE)], [(GREEN, GREEN), (WHITE, WHITE)]
    assert console.file.getvalue() == "".join(  # type: ignore[attr-defined]
        "".join(cell.format(*upper, *lower) for upper, lower in row) + "\n" for row in rows
    )


def test_an_odd_height_leaves_the_last_ground_empty() -> None:
    text = blocks(image_of(2, 2, QUADRANTS[:2] * 2))
    assert text is not None and text.plain == "▀▀\n"
    odd = io.BytesIO()
    Image.new("RGB", (1, 3), RED).save(odd, format="PNG")
    lines = blocks(odd.getvalue())
    assert lines is not None and lines.plain == "▀\n▀\n"
    assert [str(span.style) for span in lines.spans] == ["#ff0000 on #ff0000", "#ff0000"]


def test_large_images_are_made_small_and_keep_their_shape() -> None:
    said = blocks(image_of(400, 200, QUADRANTS))
    assert said is not None
    lines = said.plain.splitlines()
    assert (len(lines), {len(line) for line in lines}) == (10, {40})  # 40 × 20 pixels


def test_the_map_stands_beside_the_image_or_below_it() -> None:
    """A map of 2 × 2 cells, of which the last is painted with 0.6 of yellow: 0.6 × (250, 230, 20) + 0.4 × white."""
    cells = shades(np.array([0.0, 0.0, 0.0, 1.0])).reshape(2, 2, 4)
    beside, below = (blocks(image_of(4, 4, QUADRANTS), cells, width) for width in (10, 9))
    assert beside is not None and beside.plain == "▀▀▀▀  ▀▀▀▀\n" * 2
    assert below is not None and below.plain == "▀▀▀▀\n" * 4
    for text in (beside, below):
        colors = [str(span.style) for span in text.spans]
        assert colors.count("#fcf072 on #fcf072") == 2 and colors.count("#ffffff on #ffffff") == 2


def test_what_is_no_image_gives_nothing() -> None:
    for data in (b"", b"\x1b]0;title\x07", b"\x89PNG\r\n\x1a\n"):
        assert blocks(data) is None
