"""check: everything that would end a run, in one list, before anything expensive starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dapo_stages.terminal.options import ConfigFile, Json, Overrides


def main(
    config_file: ConfigFile,
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of the run; it need not exist yet.", metavar="DIR")
    ] = None,
    stages: Annotated[
        list[str] | None,
        typer.Option("--stage", help="How make starts a stage: NAME=LAUNCH,PYTHON,GPUS. May be repeated.", hidden=True),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing if nothing is wrong.")] = False,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Find what would end a run, before anything expensive starts: everything at once.

    Settings; datasets, their columns, options and images; functions from your files; whether attention of the model can
    be read, and engines take it; packages, servers, launches and GPUs; space on disk; damaged outputs.
    `make iterate` does this first. Exits with 3 if anything is wrong. What is on the hub is not asked for, and torch is
    not imported; what passed before is not checked again while its files stay the same.

    Example: dapo-stages check --config run.yaml --run training_logs/first
    """
    from dapo_stages.config import load_config
    from dapo_stages.errors import EXIT_BAD_INPUT
    from dapo_stages.planning.launched import StageStart
    from dapo_stages.planning.readiness import Readiness
    from dapo_stages.runs.run_folder import Run
    from dapo_stages.terminal.console import answer, painted
    from dapo_stages.terminal.safe_text import visible

    config = load_config(config_file, set_)
    starts = [StageStart.parse(text) for text in stages or []]
    found = [str(trouble) for trouble in Readiness(config, Run(run or Path("training_logs/new")), starts).troubles()]
    found = list(dict.fromkeys(found))
    if as_json:
        answer({"ok": not found, "troubles": found})
    elif found:
        for text in found:
            print(f"{painted('✗', 'bold red')} {visible(text)}")
        print(painted(f"{len(found)} thing(s) would end the run; nothing was started", "bold red"))
    elif not quiet:
        print("nothing found that would end the run")
    if found:
        raise typer.Exit(EXIT_BAD_INPUT)
