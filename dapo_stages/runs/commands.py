"""The command that makes an output of a run, with its inputs as options."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dapo_stages.handoff.manifests import MANIFEST, STATE
from dapo_stages.runs.pipeline import STAGES, Input
from dapo_stages.runs.run_folder import Run


def setup_command(run: Run, name: str, *, again: bool = False) -> str:
    """The command that makes an output before the first iteration."""
    options = [word for one in STAGES[name].inputs for word in _given(run, 0, one)]
    return _line(STAGES[name].command, run, [*options, "--out", run.path / name], again=again)


def command(run: Run, number: int, name: str, *, again: bool = False, settings: Sequence[str] = ()) -> str:
    """The shell command that makes an output of an iteration, with the run's configuration or with `settings` (words
    such as --config X) in its place."""
    stage = STAGES[name]
    options = [word for one in stage.inputs for word in _given(run, number, one)]
    options += ["--run", run.path] if name == "report" else []
    options += ["--iteration", str(number)] if stage.numbered else []
    options += ["--out", run.folder(number) / name] if name != "report" else []
    return _line(stage.command, run, options, again=again, settings=settings)


def _given(run: Run, number: int, one: Input) -> list[str | Path]:
    """The option for an input, if the run has or will have that input.

    Without a valid configuration, which stages report, there is no lag, no curriculum and no reference.
    """
    config = run.config
    if one.name == "history":
        return ["--history", run.path] if config and config.rollout.curriculum else []
    if one.name == "reference":
        return ["--reference", _reference(run, number)] if config and config.at(number).train.beta > 0 else []
    place = one.place(number, config.lag if config and one.of == "sampler" else 0)
    if place is None:
        return []
    folder = run.path / place
    expected = one.of != "previous" or one.output == "policy"
    owner = folder.parent if one.name == STATE else folder  # the state of a train-step may not be written
    return [f"--{one.name}", folder] if expected or (owner / MANIFEST).exists() else []


def _reference(run: Run, number: int) -> Path:
    """Of an iteration's KL term: the newest reference that an earlier train-step wrote, or the starting policy."""
    before = (run.folder(earlier) / "train" / "reference" for earlier in range(number - 1, 0, -1))
    return next((folder for folder in before if (folder / MANIFEST).exists()), run.path / "policy")


def _line(stage: str, run: Run, arguments: list[str | Path], *, again: bool, settings: Sequence[str] = ()) -> str:
    configuration = settings or ["--config", str(run.config_file)]
    words = ["dapo-stages", stage, *configuration, *(str(word) for word in arguments)]
    return shlex.join([*words, "--overwrite"] if again else words)
