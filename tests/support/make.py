"""The Makefile with a stand-in for Python, so that its logic is tried without a stage being run."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.commands import ROOT


def project_with(folder: Path, script: str, iterations: int) -> Path:
    """A folder with our Makefile, a configuration of so many iterations, and a virtual environment whose Python is a
    shell script."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pipelines").mkdir()
    (folder / "pipelines/embedded.yaml").write_text(f"planned_iterations: {iterations}\n")
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    (folder / ".venv/bin").mkdir(parents=True)
    python = folder / ".venv/bin/python"
    python.write_text(script)
    python.chmod(0o755)
    (folder / ".venv/ready").touch()
    return folder
