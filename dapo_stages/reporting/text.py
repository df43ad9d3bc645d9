"""Numbers and foreign text as people read them. Text of models and data sets is data: it never becomes markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

NOTHING = "–"

_MARKDOWN = re.compile(
    r"([\\`*_\[\]<>|~$&#]|:(?=//)|(?<=www)\.)", re.IGNORECASE
)  # the last two make links by themselves
# Controls but line break and tab; marks, embeddings, overrides and isolates of direction, which reorder text; lines
# that end unseen; halves of characters. A zero-width joiner stays: it is part of some scripts and emoji.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BACKTICKS = re.compile(r"`+")


def number(value: float | None, digits: int = 3) -> str:
    """`0.12345` -> `0.123`; very large and very small values in scientific form."""
    if value is None:
        return NOTHING
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{max(digits - 1, 0)}e}"
    return f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A number with its sign."""
    return NOTHING if value is None else f"{value:+.{digits}f}"


def percent(value: float | None) -> str:
    """`0.632` -> `63.2%`."""
    return NOTHING if value is None else f"{100 * value:.1f}%"


def visible(text: str) -> str:
    """Control and direction characters as symbols, so that text can neither steer a terminal nor reorder a line."""
    return _UNSEEN.sub(lambda found: _visible(found[0]), text)


def one_line(text: str) -> str:
    """Text on one line: line breaks are shown as a symbol."""
    return visible(text.replace("\r\n", "\n")).replace("\n", "⏎").replace("\t", " ")


def markdown_inline(text: str) -> str:
    """Text for a cell, a heading or the middle of a line: nothing in it is markup, and it stays on one line."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def markdown_block(text: str) -> str:
    """Text as a fenced block whose fence is longer than any in the text."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible(text)}\n{fence}\n"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain cells, the first column to the left, the others to the right."""
    lines = [
        "| " + " | ".join(markdown_inline(cell) for cell in headers) + " |",
        "|" + "|".join(":---" if index == 0 else "---:" for index in range(len(headers))) + "|",
        *("| " + " | ".join(markdown_inline(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return "�" if 0xD800 <= code <= 0xDFFF else f"⟨U+{code:04X}⟩"
