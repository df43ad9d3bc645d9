"""status: how far a run is, which outputs are stale, and what to do next."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dapo_stages.errors import DataError
from dapo_stages.terminal.options import Json, Of

if TYPE_CHECKING:
    from dapo_stages.runs.progress import Progress


_STYLES = {
    "done": "green", "pruned": "green", "running": "cyan", "unfinished": "yellow", "stale": "yellow",
    "missing": "dim", "damaged": "bold red", "halted": "bold red",
}  # fmt: skip
_NAMED = 20  # runs that an error names


def main(
    folder: Annotated[Path, typer.Option("--run", help="Folder of the run.", metavar="DIR", file_okay=False)],
    of: Of = None,
    as_json: Json = False,
) -> None:
    """Show what exists per iteration and stage, which outputs are stale and why, and the next command.

    Only manifests and file sizes are read: `report` and the stages themselves verify contents. Of a model that the run
    references, files that changed since they were last hashed are read.

    Example: dapo-stages status --run training_logs/demo
    """
    from dataclasses import asdict

    from dapo_stages.handoff.manifests import remembered
    from dapo_stages.runs.best import find_best
    from dapo_stages.runs.changed_settings import differences
    from dapo_stages.runs.pace import describe, pace, spent
    from dapo_stages.runs.progress import next_move, survey
    from dapo_stages.runs.run_folder import Run
    from dapo_stages.terminal.console import answer, painted, tell
    from dapo_stages.terminal.safe_text import visible

    _require(folder)
    run = Run(folder)
    planned = of if of is not None else run.planned_iterations
    with remembered():
        progress = survey(run)
        move, best, changed = next_move(progress), find_best(run), differences(run)
        speed = pace(run, planned) if planned is not None else None
        took = spent(run, speed.iteration) if speed else {}
    if as_json:
        answer(
            {
                "run": str(folder),
                "setup": {name: found.as_dict() for name, found in progress.setup.items()},
                "iterations": [
                    {"iteration": number, "stages": {name: found.as_dict() for name, found in outputs.items()}}
                    for number, outputs in progress.iterations.items()
                ],
                "figures": _latest_figures(progress),
                "best": asdict(best) if best else None,
                "pace": {**asdict(speed), "left": speed.left} if speed else None,
                "spent": took,
                "configuration": [difference.as_dict() for difference in changed],
                "trouble": run.trouble,
                "next": move.command,
                "why": move.why,
            }
        )
        return
    _print_states(progress)
    if run.trouble:
        print(painted(run.trouble, "bold red"))
    if changed:
        print("made with other settings than config.yaml has now (--overwrite makes them again):")
        tell("\n".join(f"  {difference}" for difference in changed))
    _print_figures(progress)
    if best:
        tell(f"Best: {best} -> {folder / best.policy}")
    if speed:
        tell(f"Pace: {speed}")
    if took and speed:
        tell(f"Time: iteration {speed.iteration} took {describe(took)}")
    if move.command is None:
        tell(f"\nNothing to do but wait ({move.why}).")
        return
    print(f"\nNext ({visible(move.why)}):\n  {painted(move.command, 'bold')}")
    if folder.parent.name == "training_logs" and Path("Makefile").exists():
        wanted, configured = max(planned or 0, move.beyond or 0), run.planned_iterations
        more = f" ITERS={wanted}" if configured and wanted != configured else ""  # make stops at planned_iterations
        what = "The whole iteration" if wanted == move.beyond else "All that is left"
        print(f"{what}:\n  {painted(f'make iterate RUN={folder.name}{more}', 'bold')}")


def _require(folder: Path) -> None:
    """Raise DataError if the run does not exist; its name may be mistyped."""
    from dapo_stages.runs.run_folder import CONFIG

    if folder.is_dir():
        return
    names = sorted(path.parent.name for path in folder.parent.glob(f"*/{CONFIG}"))
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    problem = f"no such run, but there are {shown}" if names else f"no such run, nor any other in {folder.parent}"
    raise DataError(folder, problem, "Name another one, or start this one with make iterate.")


def _print_states(progress: Progress) -> None:
    """Print the table of states, and a line for each that needs a reason."""
    from dapo_stages.runs.pipeline import FOLDERS
    from dapo_stages.terminal.console import painted
    from dapo_stages.terminal.printed_table import Table, print_table
    from dapo_stages.terminal.safe_text import NOTHING, one_line, visible

    print(", ".join(f"{name}: {painted(found.state, _STYLES[found.state])}" for name, found in progress.setup.items()))
    if not progress.iterations:
        print("no iterations yet")
    else:
        rows = [
            [str(number), *(NOTHING if found.state == "missing" else found.state for found in outputs.values())]
            for number, outputs in progress.iterations.items()
        ]
        print_table(Table(["iteration", *FOLDERS], rows), _STYLES)
    for place, name, found in progress.outputs():
        if found.why:
            print(f"{visible(place)}{name} is {painted(found.state, _STYLES[found.state])}: {one_line(found.why)}")


def _print_figures(progress: Progress) -> None:
    from dapo_stages.reporting.documents.overview import overview, without_images
    from dapo_stages.terminal.safe_text import one_line

    figures = _latest_figures(progress)
    if not figures:
        return
    made = progress.run.manifests(figures["iteration"])
    seconds = {name: manifest.seconds for name, manifest in made.items()}
    table = overview([figures], {figures["iteration"]: seconds}, stages=False)
    facts = ", ".join(f"{name} {value}" for name, value in zip(table.headers, table.rows[0], strict=True))
    print(f"\nLast report: {one_line(facts)}")
    evaluated = _latest_figures(progress, with_="eval")
    start = _latest_figures(progress, [0]) if evaluated.get("iteration") else {}
    if blind := without_images(evaluated.get("eval") or {}, start.get("eval")):
        print(blind)


def _latest_figures(progress: Progress, numbers: Collection[int] | None = None, with_: str = "") -> dict[str, Any]:
    """The figures of the latest iteration (of these) whose report has a readable figures.json, with such a part."""
    from dapo_stages.small_files import REPORT, read_json

    for number in sorted(progress.iterations if numbers is None else numbers, reverse=True):
        if number not in progress.iterations:
            continue
        if progress.iterations[number]["report"].state not in {"done", "stale"}:
            continue
        path = progress.run.folder(number) / "report" / "figures.json"
        try:
            figures: dict[str, Any] = read_json(path, REPORT)
        except (OSError, ValueError):
            continue
        if not with_ or figures.get(with_):
            return figures
    return {}
