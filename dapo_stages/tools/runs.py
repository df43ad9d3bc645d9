"""runs: the runs below a folder, how far and how good they are, and what sets them apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dapo_stages.terminal.options import Json

if TYPE_CHECKING:
    from dapo_stages.runs.run_summaries import Summary
    from dapo_stages.terminal.printed_table import Table

_SHOWN = 6  # settings
_STYLES = {"finished": "green", "running": "cyan", "unfinished": "yellow", "halted": "bold red", "damaged": "bold red"}


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of runs, or of folders with runs.", metavar="[FOLDER]")] = Path(
        "training_logs"
    ),
    as_json: Json = False,
) -> None:
    """List the runs below a folder: state, iterations, accuracy, size on disk, settings that set them apart.

    Only manifests and file sizes are read. The last column has the settings that are not as in most of these runs, or,
    where no value leads, not as by default.

    Example: dapo-stages runs training_logs
    """
    from dapo_stages.handoff.manifests import remembered
    from dapo_stages.runs.run_summaries import find_runs, summary, unusual
    from dapo_stages.terminal.console import answer
    from dapo_stages.terminal.printed_table import print_table

    with remembered():
        found = [summary(path) for path in find_runs(folder)]
    apart = unusual(found)
    if as_json:
        answer({"runs": [{**one.as_dict(), "differs": own} for one, own in zip(found, apart, strict=True)]})
        return
    print_table(_table(found, [_said(own) for own in apart]), _STYLES)


def _table(found: list[Summary], apart: list[str]) -> Table:
    from dapo_stages.reporting.documents.overview import RUNS, run_cells
    from dapo_stages.terminal.printed_table import Table

    return Table([*RUNS, "differs in"], [[*run_cells(one), own] for one, own in zip(found, apart, strict=True)])


def _said(own: dict[str, object]) -> str:
    """`train.beta 0.01, seed 43`: the first few of them."""
    from dapo_stages.reporting.page.settings_shown import in_words
    from dapo_stages.terminal.safe_text import NOTHING

    shown = [f"{key} {in_words(value)}" for key, value in list(own.items())[:_SHOWN]]
    more = [f"and {len(own) - _SHOWN} more"] if len(own) > _SHOWN else []
    return ", ".join([*shown, *more]) or NOTHING
