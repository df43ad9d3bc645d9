"""new: a folder to train in without a clone of the project: a Makefile, a configuration and a README."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

MAKEFILE = """\
# The pipeline of the installed dapo-stages, run by the Python it is installed in.
PY     ?= {python}
CONFIG ?= run.yaml
where  := from dapo_stages.config.packaged import pipelines; print(pipelines())
include $(or $(shell $(PY) -c '$(where)'),$(error $(PY) has no dapo-stages. Install it there, or correct PY))/run.mk
"""
CONFIGURATION = """\
# What new runs of this folder are made of. `dapo-stages config --config run.yaml` prints every setting.
# dapo:embedded is a small demo on CPUs; dapo:smoke the same in a minute; dapo:reference-7b for GPUs of 80 GB;
# dapo:lora-3b-24gb for one of 24 GB.
extends: dapo:embedded
# planned_iterations: 20
# model: {name: Qwen/Qwen2.5-VL-7B-Instruct}
# data: {source: lujunxi57/DDM}
"""
README = """\
# Training with dapo-stages

1. Say in `run.yaml` which model and data to train with.
2. `dapo-stages plan --config run.yaml` says what a run needs, `make doctor` what this machine has.
3. `make iterate RUN=first` trains into `training_logs/first`; called again, it resumes.
4. `make status RUN=first` says what exists; `training_logs/first/iter-0001/report/report.html` shows it.
5. `make help` lists the rest: single stages, several processes (`LAUNCH=2`), Slurm.

Without `run.yaml`: `make iterate RUN=try CONFIG=dapo:smoke` takes a minute on two cores.
"""


def main(
    folder: Annotated[Path, typer.Argument(help="Folder to create, or an empty one.", metavar="DIR")],
) -> None:
    """Make a folder to train in: a Makefile, a run.yaml to edit and a README.

    The Makefile includes the one of the installed package, and runs it with the Python it is installed in.

    Example: dapo-stages new colors && cd colors && make iterate CONFIG=dapo:smoke
    """
    from dapo_stages.config.packaged import pipelines
    from dapo_stages.errors import DataError
    from dapo_stages.terminal.console import say

    for path in (sys.executable, str(pipelines())):
        if set(path) & set(" \t$#:%"):
            raise DataError(path, "make cannot use a path with blanks or any of $#:%", "Install dapo-stages elsewhere.")
    if folder.exists() and not folder.is_dir():
        raise DataError(folder, "expected a folder, got a file", "Name another one.")
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(folder, "expected a new or an empty folder, got one with files in it", "Name another one.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Makefile").write_text(MAKEFILE.format(python=sys.executable), encoding="utf-8")
    (folder / "run.yaml").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "README.md").write_text(README, encoding="utf-8")
    say(f"new: wrote {folder}. Next: cd {folder} && make iterate CONFIG=dapo:smoke")
