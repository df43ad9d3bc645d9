"""The commands behind `make study`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dapo_stages.errors import DapoStagesError, DataError
from dapo_stages.runs.run_folder import Run
from dapo_stages.terminal.console import say, tell
from pipelines.study.design import Design, Name, overrides
from pipelines.study.pilot import Pilot
from pipelines.study.result_files import MEASURE, Result, by_seed, measured, read_results, write_result

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Results = Annotated[Path, typer.Option("--results", help="Folder of result files.")]
Words = Annotated[str, typer.Option(help="Names separated by spaces; all if empty.")]
Own = Annotated[str, typer.Option(help="Name of a model of one's own, instead of the tasks.")]
IsPilot = Annotated[bool, typer.Option("--pilot", help="The pilot's runs.")]


@app.command()
def wanted(
    results: Results, tasks: Words = "", schemes: Words = "", seeds: Words = "", pilot: IsPilot = False, own: Own = ""
) -> None:
    """Print the result files that are still missing, by task and seed, in the order of the design."""
    design, known = Design.read(), read_results(results)
    names = _planned(design, known, tasks.split() or list(design.tasks), _numbers(seeds), pilot, own)
    there = {result.name for result in known}
    for name in names:
        if name not in there and (not schemes or name.scheme in schemes.split()):
            tell(str(results / name.file))


def _planned(
    design: Design, known: list[Result], tasks: list[str], seeds: list[int], pilot: bool, own: str
) -> list[Name]:
    if own:
        return [Name(own, seed, scheme) for seed in seeds or design.own_seeds for scheme in design.own_schemes]
    _check_names("TASKS", tasks, design.tasks)
    pilots = {task: Pilot(design, task, known) for task in tasks}
    if pilot:
        return [name for one in pilots.values() for name in one.missing if not seeds or name.seed in seeds]
    if taking_part := sorted(set(seeds) & set(design.pilot_seeds)):
        problem = f"expected test seeds, from {design.first_test_seed} on, got {taking_part[0]}, a seed of the pilot"
        raise DataError("SEEDS", problem, "Name other seeds, or set PILOT=1.")
    for task, one in pilots.items():
        if one.missing:
            problem = f"the pilot has chosen no learning rates yet: {len(one.missing)} of its runs are missing"
            raise DataError(task, problem, "Run make study PILOT=1 first.")
    number = Pilot(design, design.primary[0], known).seeds
    if not seeds and number is None:
        raise DataError("SEEDS", "the pilot has not decided how many there are", "Run make study PILOT=1 first.")
    seeds = seeds or list(design.test_seeds(number or 0))
    return [Name(task, seed, scheme) for task in tasks for seed in seeds for scheme in design.schemes]


def _numbers(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split()]
    except ValueError:
        raise DataError("SEEDS", f"expected whole numbers, got {words!r}", "Correct them.") from None


def _check_names(what: str, names: list[str], known: tuple[str, ...]) -> None:
    if unknown := next((name for name in names if name not in known), None):
        raise DataError(what, f"expected some of {', '.join(known)}, got {unknown!r}", "Correct it.")


@app.command()
def settings(
    file: Path,
    results: Results,
    own: Own = "",
) -> None:
    """Print the options of a run: its seed, its learning rate, its scheme."""
    design, known = Design.read(), read_results(results)
    name = Name.of(str(file.relative_to(results)))
    _check_names("SCHEMES", [name.scheme], tuple(design.schemes))
    _check_machine(results, name, known)
    values: dict[str, Any] = {"seed": name.seed}
    if not own:
        rate = name.rate or Pilot(design, name.task, known).tried[name.scheme].best
        if rate is None:
            raise DataError(file, "the pilot has chosen no learning rate for it yet", "Run make study PILOT=1 first.")
        values["train.learning_rate"] = rate
    values |= design.schemes[name.scheme]
    tell(" ".join(f"--set {setting}" for setting in overrides(values)))


def _check_machine(results: Path, name: Name, known: list[Result]) -> None:
    """Refuse a run whose result could not be compared with those of its seed, before it takes time."""
    from pipelines.study.record import machine_here, versions_here

    others = by_seed(known).get((name.task, name.seed, name.rate is not None), [])
    for other in others[:1]:
        if (other.machine, other.versions) != (machine_here(), versions_here()):
            problem = (
                f"{other.name.file} was made elsewhere ({other.machine}, {other.versions}), not on {machine_here()}, "
                f"{versions_here()}"
            )
            raise DataError(
                f"{results}, seed {name.seed} of {name.task}",
                problem,
                "Make all schemes of a seed on one machine, or remove the seed's files and make them all here.",
            )


@app.command()
def record(
    file: Path,
    results: Results,
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    every: Annotated[int, typer.Option(help="Iterations between evaluations.")],
) -> None:
    """Write the result file of a finished run."""
    from pipelines.study.record import result_of

    result = result_of(Run(run), Name.of(str(file.relative_to(results))), every)
    path = write_result(results, result)
    ends = [result.at("blank", end=end) for end in (False, True)]
    blind = " -> ".join(f"{value:.2f}" for value in ends if value is not None)
    said = f"; training broke down: {result.broke_down}" if result.broke_down else ""
    accuracy = (
        f"{'prior-violating' if measured([result]) == MEASURE else 'greedy'} {result.measure(measured([result])):.3f}"
    )
    say(f"study: {path}: with the image blanked {blind or 'not evaluated'}, {accuracy} over the run{said}")


@app.command()
def page(results: Results, out: Annotated[Path, typer.Option(help="Markdown file to write.")]) -> None:
    """Write the page of all result files."""
    from pipelines.study.page import write

    write(Design.read(), read_results(results), out)
    tell(str(out))


@app.command()
def estimate(
    config: Annotated[str, typer.Option(help="Configuration.")],
    model: Annotated[str, typer.Option(help="Model.")],
    every: Annotated[int, typer.Option(help="Iterations between evaluations.")],
    seeds: Words = "",
) -> None:
    """Print how long the study of a model of one's own takes on 1, 4 and 8 GPUs."""
    from pipelines.study.own import hours

    say(hours(Design.read(), config, model, every, len(_numbers(seeds))))


def main() -> None:
    try:
        app()
    except DapoStagesError as error:
        say(str(error))
        os._exit(error.exit_code)


if __name__ == "__main__":
    main()
