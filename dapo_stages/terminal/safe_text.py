"""Numbers and untrusted text in readable form. Text from models and datasets never becomes markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dapo_stages.terminal.unseen import one_line as one_line
from dapo_stages.terminal.unseen import visible as visible

NOTHING = "–"

_MARKDOWN = re.compile(
    r"([\\`*_\[\]<>|~$&#]|:(?=//)|(?<=www)\.)", re.IGNORECASE
)  # the last two prevent automatic links
_BACKTICKS = re.compile(r"`+")


def number(value: float | None, digits: int = 3) -> str:
    """`0.12345` -> `0.123`; very large and very small values in scientific notation."""
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


def markdown_inline(text: str) -> str:
    """Text for a cell, a heading or the middle of a line: without markup, and on one line."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def markdown_block(text: str) -> str:
    """Text as a fenced block whose fence is longer than any in the text."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible(text)}\n{fence}\n"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain cells, the first column left-aligned, the others right-aligned."""
    lines = [
        "| " + " | ".join(markdown_inline(cell) for cell in headers) + " |",
        "|" + "|".join(":---" if index == 0 else "---:" for index in range(len(headers))) + "|",
        *("| " + " | ".join(markdown_inline(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
