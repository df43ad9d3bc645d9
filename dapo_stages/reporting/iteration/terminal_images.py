"""Images in a terminal, as half blocks of color.

Each image is decoded and drawn anew, so that no byte of a foreign file reaches the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from dapo_stages.reporting.iteration.overlay import Shades

COLUMNS = 40  # of an image, at most
_GAP = 2  # columns between an image and its map


def blocks(data: bytes, shades: Shades | None = None, width: int = 2 * COLUMNS + _GAP) -> Text | None:
    """An image as lines of `▀`: the upper pixel is the foreground, the lower one the background.

    At most COLUMNS wide; a small image is not enlarged. With `shades`, the image with its map follows: beside it if the
    terminal is `width` columns wide enough, else below. None if it cannot be read.
    """
    from rich.text import Text

    from dapo_stages.reporting.iteration.overlay import over
    from dapo_stages.reporting.iteration.thumbnails import decoded

    image = decoded(data)
    if image is None:
        return None
    image.thumbnail((COLUMNS, COLUMNS))
    shown = [image] if shades is None else [image, over(image, shades)]
    text = Text(no_wrap=True)
    if len(shown) * (image.width + _GAP) - _GAP <= width:
        _draw(text, shown)
    else:
        for one in shown:
            _draw(text, [one])
    return text


def _draw(text: Text, images: list[Any]) -> None:
    """Images of one size beside each other."""
    from rich.color import Color
    from rich.style import Style

    for y in range(0, images[0].height, 2):
        for place, image in enumerate(images):
            text.append(" " * _GAP if place else "")
            for x in range(image.width):
                upper = Color.from_rgb(*image.getpixel((x, y)))
                lower = Color.from_rgb(*image.getpixel((x, y + 1))) if y + 1 < image.height else None
                text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
