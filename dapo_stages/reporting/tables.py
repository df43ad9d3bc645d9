"""The table with a row per iteration: for Markdown, HTML and terminals alike."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dapo_stages.console import drawn
from dapo_stages.reporting.figures import Figures, figure, slices
from dapo_stages.reporting.runs import REPORTED
from dapo_stages.reporting.text import NOTHING, number, one_line, percent

_MAX_SLICES = 4
_SECONDS = "seconds: " + "+".join(REPORTED)


@dataclass(frozen=True)
class Table:
    """Headers, and rows of text ready to be shown."""

    headers: list[str]
    rows: list[list[str]]


def overview(all_figures: Sequence[Figures], seconds: Mapping[int, Mapping[str, float]], *, stages: bool) -> Table:
    """One row per iteration; with `stages` a column of seconds for each stage, else one for all of them."""
    names = slices(list(all_figures))[:_MAX_SLICES]
    timed = REPORTED if stages else ()
    headers = ["iteration", "reward", "rollout accuracy", "format", "held-out greedy", "held-out sampled"]
    headers += [*names, "VGR", *([f"{name}\u00a0s" for name in timed] or [_SECONDS])]
    rows = []
    for figures in all_figures:
        took = seconds.get(figures["iteration"], {})
        rows.append(
            [
                str(figures["iteration"]),
                number(figure(figures, "weights", "reward")),
                percent(figure(figures, "rollout", "accuracy")),
                percent(figure(figures, "rollout", "format")),
                percent(figure(figures, "eval", "greedy_accuracy")),
                percent(figure(figures, "eval", "sampled_accuracy")),
                *(percent(slice_accuracy(figures, name)) for name in names),
                number(figure(figures, "attention", "vgr_all")),
                *([_seconds(took.get(name), ".1f") for name in timed] or [_together(took)]),
            ]
        )
    return Table(headers, rows)


def _together(took: Mapping[str, float]) -> str:
    """Seconds of all stages in one cell, in the order of _SECONDS: 7+4+1+9+19."""
    return "+".join(_seconds(took.get(name), ".0f") for name in REPORTED) if took else NOTHING


def _seconds(took: float | None, form: str) -> str:
    return NOTHING if took is None else format(took, form)


def slice_accuracy(figures: Figures, name: str) -> float | None:
    """Held-out accuracy on one slice: greedy, or sampled where there was no greedy evaluation."""
    greedy = figure(figures, "eval", "by_slice", name, "greedy_accuracy")
    return greedy if greedy is not None else figure(figures, "eval", "by_slice", name, "sampled_accuracy")


def print_table(table: Table, styles: Mapping[str, str] | None = None) -> None:
    """On stdout: drawn by rich on a terminal, aligned plain text elsewhere. `styles`: of cells, by their text."""
    if drawn(sys.stdout):
        _print_rich(table, styles or {})
    else:
        print("\n".join(aligned(table)))


def aligned(table: Table) -> list[str]:
    """Lines of plain text whose columns stand under each other, wide characters counted as two."""
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
