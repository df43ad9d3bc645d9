"""Options shared by the stages, defined once so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Option("--config", help="YAML configuration of the run.", metavar="FILE")]
Out = Annotated[Path, typer.Option("--out", help="Folder to create.", metavar="DIR")]
PolicyPath = Annotated[
    Path, typer.Option("--policy", help="Policy folder, from init-policy or train-step.", metavar="DIR")
]
Data = Annotated[Path, typer.Option("--data", help="Folder written by prepare-data.", metavar="DIR")]
Rollouts = Annotated[Path, typer.Option("--rollouts", help="Folder written by rollout.", metavar="DIR")]
RunFolder = Annotated[
    Path, typer.Option("--run", help="Folder of the run.", metavar="DIR", exists=True, file_okay=False)
]
Iteration = Annotated[int, typer.Option("--iteration", min=1, help="Iteration, counted from 1.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: section.key=value. May be repeated.", metavar="KEY=VALUE"),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an output that was made from other inputs or another configuration."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, without writing anything.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Of = Annotated[
    int | None,
    typer.Option("--of", min=0, help="Iterations that the run should have (default: planned_iterations).", metavar="N"),
]
