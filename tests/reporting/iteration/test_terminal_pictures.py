"""Pictures in a terminal: decoded again here, by what the protocols say, from what was written."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dapo_stages.reporting.iteration.terminal_pictures import blocks, escaped, spoken

RED, BLUE, GREEN, WHITE = (255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 255)


def picture(width: int, height: int, colours: list[tuple[int, int, int]]) -> bytes:
    """Quadrants: upper left, upper right, lower left, lower right."""
    image = Image.new("RGB", (width, height))
    for index, colour in enumerate(colours):
        left, top = (index % 2) * width // 2, (index // 2) * height // 2
        image.paste(colour, (left, top, left + width // 2, top + height // 2))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


QUADRANTS = [RED, BLUE, GREEN, WHITE]


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "vscode"}, "blocks"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/tmux-0", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "screen", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
        ({}, "blocks"),
    ],
)
def test_a_protocol_is_spoken_only_where_the_terminal_says_so(environment: dict[str, str], protocol: str) -> None:
    assert spoken(environment) == protocol


def test_kitty_gets_the_picture_in_chunks_of_4096_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    said = escaped(buffer.getvalue(), "kitty")
    assert said is not None
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", said)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) == said
    assert [keys for keys, _ in parts] == ["a=T,f=100,q=2,m=1", *["m=1"] * (len(parts) - 2), "m=0"]
    assert all(len(data) == 4096 for _, data in parts[:-1])
    png = base64.standard_b64decode("".join(data for _, data in parts))
    assert (np.asarray(Image.open(io.BytesIO(png))) == noise).all()


def test_iterm_gets_the_picture_and_its_size() -> None:
    said = escaped(picture(8, 12, QUADRANTS), "iterm")
    assert said is not None
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);width=auto:([A-Za-z0-9+/=]+)\x07", said)
    assert found is not None
    png = base64.standard_b64decode(found[2])
    assert len(png) == int(found[1])
    image = Image.open(io.BytesIO(png))
    assert [image.getpixel(place) for place in ((0, 0), (7, 0), (0, 11), (7, 11))] == QUADRANTS


def unsixel(text: str) -> np.ndarray:
    """[height, width, 3] of percent: a reader of what the VT330/340 manual describes, without run lengths."""
    head = re.match(r'\x1bPq"1;1;(\d+);(\d+)', text)
    assert head is not None and text.endswith("\x1b\\")
    width, height = int(head[1]), int(head[2])
    out, palette = np.full((height + 5, width, 3), -1), {}
    colour = x = y = 0
    for token in re.findall(r"#\d+;2;\d+;\d+;\d+|#\d+|[?-~]|\$|-", text[head.end() : -2]):
        if ";" in token:
            number, _, *parts = map(int, token[1:].split(";"))
            palette[number] = parts
        elif token[0] == "#":
            colour = int(token[1:])
        elif token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        else:
            for bit in range(6):
                if ord(token) - 63 >> bit & 1:
                    out[y + bit, x] = palette[colour]
            x += 1
    assert (out[height:] == -1).all()
    return out[:height]


def test_a_sixel_reader_finds_the_picture_again() -> None:
    """8 × 10 pixels: one whole band of six rows, and one of four."""
    said = escaped(picture(8, 10, QUADRANTS), "sixel")
    assert said is not None
    found = unsixel(said)
    assert found.shape == (10, 8, 3)
    expected = np.asarray(Image.open(io.BytesIO(picture(8, 10, QUADRANTS)))) / 2.55
    assert abs(found - expected).max() <= 1


def test_blocks_show_two_pixels_a_character() -> None:
    text = blocks(picture(2, 4, QUADRANTS))
    assert text is not None
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=10)
    console.print(text, end="")
    cell = "\x1b[38;2;{};{};{};48;2;{};{};{}m▀\x1b[0m"
    rows = [(RED, RED), (BLUE, BLUE)], [(GREEN, GREEN), (WHITE, WHITE)]
    assert console.file.getvalue() == "".join(  # type: ignore[attr-defined]
        "".join(cell.format(*upper, *lower) for upper, lower in row) + "\n" for row in rows
    )


def test_an_odd_height_leaves_the_last_ground_empty() -> None:
    text = blocks(picture(2, 2, QUADRANTS[:2] * 2))
    assert text is not None and text.plain == "▀▀\n"
    odd = io.BytesIO()
    Image.new("RGB", (1, 3), RED).save(odd, format="PNG")
    lines = blocks(odd.getvalue())
    assert lines is not None and lines.plain == "▀\n▀\n"
    assert [str(span.style) for span in lines.spans] == ["#ff0000 on #ff0000", "#ff0000"]


def test_large_pictures_are_made_small_and_keep_their_shape() -> None:
    said = blocks(picture(400, 200, QUADRANTS))
    assert said is not None
    lines = said.plain.splitlines()
    assert (len(lines), {len(line) for line in lines}) == (10, {40})  # 40 × 20 pixels
    sixel = escaped(picture(1600, 800, QUADRANTS), "sixel")
    assert sixel is not None and sixel.startswith('\x1bPq"1;1;400;200')


def test_what_is_no_picture_gives_nothing() -> None:
    for data in (b"", b"\x1b]0;title\x07", b"\x89PNG\r\n\x1a\n"):
        assert blocks(data) is None
        assert escaped(data, "kitty") is None
