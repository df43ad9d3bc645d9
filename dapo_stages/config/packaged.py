"""The files of pipelines/: in the package where it is installed, beside it in a checkout. `dapo:NAME` names one."""

from __future__ import annotations

from pathlib import Path

import dapo_stages
from dapo_stages.errors import ConfigError

_PREFIX = "dapo:"


def pipelines() -> Path:
    """The folder with run.mk, the configurations, accelerate/ and slurm/."""
    package = Path(dapo_stages.__file__).parent
    inside = package / "pipelines"
    return inside if inside.is_dir() else package.parent / "pipelines"


def packaged_config(name: str) -> Path | None:
    """The file that `dapo:reference-7b` names; None if `name` is no such name.

    Raises ConfigError if there is no such file.
    """
    if not name.startswith(_PREFIX):
        return None
    known = {path.stem: path for path in sorted(pipelines().glob("*.yaml"))}
    if (path := known.get(name.removeprefix(_PREFIX))) is None:
        raise ConfigError(f"{name}: no such configuration. Use one of {', '.join(_PREFIX + one for one in known)}.")
    return path
