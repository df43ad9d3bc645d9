"""compare-runs: several runs in, one page with the curves of all, their configurations and their paired answers out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dapo_stages.terminal.options import Json

if TYPE_CHECKING:
    from dapo_stages.reporting.runs_compared import Compared


def main(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs; the first is the one to compare with.", metavar="A B …", exists=True),
    ],
    out: Annotated[Path, typer.Option("--out", help="Page to write.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Compare runs in one page: curves of all, differing settings, the same held-out questions answered by both.

    The page needs no network and no other file. Every run needs a finished report. The paired figures are those of
    the latest evaluations: greedy answers with McNemar's exact test, mean@k with the exact paired permutation test.

    Example: dapo-stages compare-runs training_logs/first training_logs/second --out compared.html
    """
    from dapo_stages.errors import DataError
    from dapo_stages.handoff.manifests import remembered
    from dapo_stages.handoff.shards import write_text
    from dapo_stages.reporting.runs_compared import Compared
    from dapo_stages.terminal.console import answer

    if len(runs) < 2:
        raise DataError(runs[0], "expected two or more runs, got one", "Name another run to compare with.")
    with remembered():
        compared = Compared(runs)
        page = compared.page()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    if as_json:
        answer(_result(compared) | {"page": str(out)})
    else:
        _show(compared, out)


def _result(compared: Compared) -> dict[str, object]:
    from dataclasses import asdict

    from dapo_stages.runs.run_summaries import NOWHERE

    differ = {
        key: [{"value": value} if value is not NOWHERE else {} for value in values]
        for key, values in compared.differ.items()
    }
    runs = [{"name": name, **one.as_dict()} for name, one in zip(compared.names, compared.runs, strict=True)]
    return {"runs": runs, "differs": differ, "pairs": [asdict(pair) for pair in compared.pairs]}


def _show(compared: Compared, out: Path) -> None:
    from dapo_stages.terminal.console import tell
    from dapo_stages.terminal.printed_table import print_table

    print_table(compared.table)
    for pair in compared.pairs:
        tell(f"\nA: {pair.a}, B: {pair.b}")
        tell("\n".join(pair.said) if pair.measures else f"not compared: {pair.why_not}")
    tell(f"\n{len(compared.differ)} settings differ\n{out}")
