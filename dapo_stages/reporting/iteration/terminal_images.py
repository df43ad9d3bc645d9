"""Images in a terminal, as half blocks of color.

Each image is decoded and drawn anew, so that no byte of a foreign file reaches the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

COLUMNS = 40  # of the terminal, at most


def blocks(data: bytes) -> Text | None:
    """An image as lines of `▀`: the upper pixel is the foreground, the lower one the background.

    At most COLUMNS wide; a small image is not enlarged. None if it cannot be read.
    """
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    from dapo_stages.reporting.iteration.thumbnails import decoded

    image = decoded(data)
    if image is None:
        return None
    image.thumbnail((COLUMNS, COLUMNS))
    text = Text(no_wrap=True)
    for y in range(0, image.height, 2):
        for x in range(image.width):
            upper = Color.from_rgb(*image.getpixel((x, y)))
            lower = Color.from_rgb(*image.getpixel((x, y + 1))) if y + 1 < image.height else None
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text
