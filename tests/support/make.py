"""Our Makefile in a folder of its own: with the Python of the tests, or with a stand-in that runs no stage."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from support.commands import ROOT

# A stand-in answers what the Makefile asks of the configuration as we do.
ANSWERS = f'#!/bin/sh\ncase " $* " in *" --make "*) exec "{sys.executable}" "$@" ;; esac\n'
THIS_PYTHON = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'


def project(folder: Path, python: str = THIS_PYTHON) -> Path:
    """A folder with our Makefile and a virtual environment that is ready, whose Python is a shell script."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (folder / ".venv/bin/python").write_text(python)
    (folder / ".venv/bin/python").chmod(0o755)
    (folder / ".venv/ready").touch()
    return folder


def project_with(folder: Path, script: str, iterations: int) -> Path:
    """The same with a stand-in for Python, which runs no stage, and a configuration of so many iterations."""
    (folder / "pipelines").mkdir()
    (folder / "pipelines/embedded.yaml").write_text(f"planned_iterations: {iterations}\n")
    return project(folder, ANSWERS + script)
