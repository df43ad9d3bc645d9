"""A table on a terminal, or as plain text in a log."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dapo_stages.terminal.console import drawn
from dapo_stages.terminal.safe_text import one_line


@dataclass(frozen=True)
class Table:
    """Headers and rows of text, ready to print."""

    headers: list[str]
    rows: list[list[str]]


def print_table(table: Table, styles: Mapping[str, str] | None = None) -> None:
    """Print on stdout: with rich on a terminal, else as aligned plain text. `styles`: cell text -> rich style."""
    if drawn(sys.stdout):
        _print_rich(table, styles or {})
    else:
        print("\n".join(aligned(table)))


def aligned(table: Table) -> list[str]:
    """Lines of plain text with aligned columns; wide characters count as two."""
    from rich.cells import cell_len

    lines = [[one_line(cell) for cell in line] for line in (table.headers, *table.rows)]
    widths = [max(cell_len(line[index]) for line in lines) for index in range(len(table.headers))]
    return [
        "  ".join(" " * (width - cell_len(cell)) + cell for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]


def _print_rich(table: Table, styles: Mapping[str, str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for header in table.headers:
        grid.add_column(Text(one_line(header)), justify="right", overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(one_line(cell), style=styles.get(cell, "")) for cell in row))
    Console().print(grid)
