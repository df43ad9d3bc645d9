"""Pictures in a terminal: by the protocol it is known to speak, else in half blocks of colour.

Every picture is decoded and encoded anew, so that no byte of a foreign file reaches the terminal.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from rich.text import Text

Protocol = Literal["kitty", "iterm", "sixel", "blocks", "none"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
COLUMNS = 40  # of the terminal, at most
_CELL = (10, 20)  # pixels of a terminal's cell, about: for protocols that count in pixels
_CHUNK = 4096  # bytes of base64 in one escape sequence of kitty
_COLOURS = 64  # of a sixel picture
_MULTIPLEXERS = ("screen", "tmux")


def spoken(environment: Mapping[str, str]) -> Protocol:
    """The protocol that a terminal says it has, by its environment; half blocks in doubt and inside of tmux and screen.

    No terminal is asked by escape sequences: an answer that nobody reads ends up in the user's shell.
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or "STY" in environment or term.startswith(_MULTIPLEXERS):
        return "blocks"
    if "KITTY_WINDOW_ID" in environment or term in {"xterm-kitty", "xterm-ghostty"} or program == "ghostty":
        return "kitty"
    if program in {"iTerm.app", "WezTerm"} or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    if term.startswith(("foot", "mlterm", "contour")):
        return "sixel"
    return "blocks"


def escaped(data: bytes, protocol: Protocol) -> str | None:
    """A picture as escape sequences of kitty, iterm or sixel, at most COLUMNS wide; None if it cannot be read."""
    image = _shrunk(data, COLUMNS * _CELL[0], COLUMNS * _CELL[0])
    if image is None:
        return None
    if protocol == "sixel":
        return _sixel(image)
    return "".join(_kitty(_png(image))) if protocol == "kitty" else _iterm(_png(image))


def blocks(data: bytes) -> Text | None:
    """A picture as lines of `▀`: the upper pixel is the ink, the lower one the ground. None if it cannot be read."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    image = _shrunk(data, COLUMNS, COLUMNS)
    if image is None:
        return None
    text = Text(no_wrap=True)
    for y in range(0, image.height, 2):
        for x in range(image.width):
            upper = Color.from_rgb(*image.getpixel((x, y)))
            lower = Color.from_rgb(*image.getpixel((x, y + 1))) if y + 1 < image.height else None
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text


def _shrunk(data: bytes, width: int, height: int) -> Any:
    """The decoded picture, RGB, no larger than that; a small one is not blown up."""
    from dapo_stages.reporting.iteration.thumbnails import decoded

    image = decoded(data)
    if image is not None:
        image.thumbnail((width, height))
    return image


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _kitty(png: bytes) -> Iterator[str]:
    """a=T: show it at once; f=100: PNG; q=2: no answer; m=1: more to come.

    https://sw.kovidgoyal.net/kitty/graphics-protocol
    """
    text = base64.standard_b64encode(png).decode()
    for start in range(0, len(text), _CHUNK):
        more = int(start + _CHUNK < len(text))
        yield f"\x1b_G{f'a=T,f=100,q=2,m={more}' if start == 0 else f'm={more}'};{text[start : start + _CHUNK]}\x1b\\"


def _iterm(png: bytes) -> str:
    """OSC 1337, https://iterm2.com/documentation-images.html"""
    return f"\x1b]1337;File=inline=1;size={len(png)};width=auto:{base64.standard_b64encode(png).decode()}\x07"


def _sixel(image: Any) -> str:
    """Columns of six pixels as a character each, colour after colour (DEC VT330/340, chapter 14)."""
    import numpy as np

    flat = image.quantize(_COLOURS)
    palette = np.array(flat.getpalette(), int).reshape(-1, 3)
    pixels = np.asarray(flat)
    height, width = pixels.shape
    out = [f'\x1bPq"1;1;{width};{height}']
    out += [f"#{n};2;{';'.join(str(round(part / 2.55)) for part in palette[n])}" for n in np.unique(pixels)]
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        for n in np.unique(band):
            bits = ((band == n) << np.arange(len(band))[:, None]).sum(axis=0)
            out.append(f"#{n}{''.join(chr(63 + bit) for bit in bits)}$")
        out.append("-")
    return "".join(out) + "\x1b\\"
