"""The progress of a run: the state of every output, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dapo_stages.config import load_config
from dapo_stages.errors import ConfigError
from dapo_stages.handoff.manifests import MANIFEST
from dapo_stages.handoff.unfinished import halted
from dapo_stages.runs.layout import OutputState, held_locks, iteration_folder, iterations, look
from dapo_stages.runs.pipeline import FOLDERS, NEEDED, SETUP, STAGES, Input

CONFIG = "config.yaml"
_DEFAULT = "pipelines/embedded.yaml"


@dataclass(frozen=True)
class Progress:
    """The outputs of a run: those before the first iteration, and those of each iteration."""

    run: Path
    setup: dict[str, OutputState]
    iterations: dict[int, dict[str, OutputState]]

    def outputs(self) -> Iterator[tuple[str, str, OutputState]]:
        """(where, name, state) of every output: `iteration 2, `, `weights`, …"""
        for place, found in (
            ("", self.setup),
            *((f"iteration {n}, ", outputs) for n, outputs in self.iterations.items()),
        ):
            yield from ((place, name, one) for name, one in found.items())


@dataclass(frozen=True)
class Move:
    """The command to run next, and why; None while there is nothing to do but wait."""

    command: str | None
    why: str
    beyond: int | None = None  # the iteration that it starts, if all planned iterations are finished


def survey(run: Path) -> Progress:
    """The state of every output; only manifests are read."""
    held = held_locks()
    setup = {name: look(run, run / name, stage, held) for name, stage in SETUP.items()}
    found = {
        number: {name: look(run, iteration_folder(run, number) / name, stage, held) for name, stage in FOLDERS.items()}
        for number in iterations(run)
    }
    return Progress(run, setup, found)


def next_move(progress: Progress) -> Move:
    """What is running; otherwise the first output that must be made again, or is missing at the end of the run."""
    run = progress.run
    if running := [f"{place}{name}" for place, name, found in progress.outputs() if found.state == "running"]:
        return Move(None, f"{', '.join(running)}: running")
    if not (run / CONFIG).exists():
        return Move(
            shlex.join(["dapo-stages", "config", "--config", _DEFAULT, "--out", str(run / CONFIG)]),
            "config.yaml: missing",
        )
    for name, found in progress.setup.items():
        if found.state not in {"done", "pruned"}:
            return Move(
                setup_command(run, name, again=found.state in {"stale", "damaged"}), f"{name}: {_because(found)}"
            )
    for number, outputs in progress.iterations.items():
        for name in FOLDERS:
            found = outputs[name]
            if found.state in {"stale", "unfinished", "halted", "damaged"}:
                again = found.state in {"stale", "damaged"} or found.ended is not None
                return Move(command(run, number, name, again=again), f"iteration {number}, {name}: {_because(found)}")
    last = max(progress.iterations, default=None)
    if last is None:
        return Move(command(run, 0, "eval"), "the starting policy is not evaluated yet")
    for number, outputs in progress.iterations.items():  # rollouts may be ahead of training
        missing = _missing_at_the_end(number, outputs)
        if missing and (number == last or missing in NEEDED):
            return Move(command(run, number, missing), f"iteration {number}, {missing}: missing")
    planned = planned_iterations(run)
    if planned and last >= planned:
        why = f"all {planned} planned iterations are finished; one more"
        return Move(command(run, last + 1, "rollout"), why, last + 1)
    return Move(command(run, last + 1, "rollout"), f"iteration {last} is finished")


def command(run: Path, number: int, name: str, *, again: bool = False, settings: Sequence[str] = ()) -> str:
    """The shell command that makes an output of an iteration, with the run's configuration or with `settings` (words
    such as --config X) in its place."""
    stage = STAGES[name]
    options = [word for one in stage.inputs for word in _given(run, number, one)]
    options += ["--run", run] if name == "report" else []
    options += ["--iteration", str(number)] if stage.numbered else []
    options += ["--out", iteration_folder(run, number) / name] if name != "report" else []
    return _line(stage.command, run, options, again=again, settings=settings)


def _given(run: Path, number: int, one: Input) -> list[str | Path]:
    """The option for an input, if the run has or will have that input."""
    if one.name == "history":
        return _history(run)
    if one.name == "reference":
        return _reference(run, number)
    place = one.place(number, _lag(run) if one.of == "sampler" else 0)
    if place is None or (one.of == "previous" and one.output != "policy" and not (run / place / MANIFEST).exists()):
        return []
    return [f"--{one.name}", run / place]


def _lag(run: Path) -> int:
    """Train-steps by which rollouts lag, as configured; 0 if the configuration is not valid, which stages report."""
    with suppress(ConfigError):
        return load_config(run / CONFIG).lag
    return 0


def _reference(run: Path, number: int) -> list[str | Path]:
    """The reference of an iteration's KL term, if it has one: the newest that an earlier train-step wrote."""
    with suppress(ConfigError):
        if load_config(run / CONFIG).at(number).train.beta > 0:
            before = (iteration_folder(run, n) / "train" / "reference" for n in range(number - 1, 0, -1))
            left = (folder for folder in before if (folder / "manifest.json").exists())
            return ["--reference", next(left, run / "policy")]
    return []


def _history(run: Path) -> list[str | Path]:
    """The earlier rollouts of the run, if the curriculum uses them."""
    with suppress(ConfigError):
        if load_config(run / CONFIG).rollout.curriculum is not None:
            return ["--history", run]
    return []


def planned_iterations(run: Path) -> int | None:
    """Iterations that the run is configured for; None without a valid configuration."""
    with suppress(ConfigError):
        return load_config(run / CONFIG).planned_iterations
    return None


def trouble(run: Path) -> str | None:
    """What is wrong with the run's configuration; None if it is valid or does not exist yet."""
    try:
        if (run / CONFIG).exists():
            load_config(run / CONFIG)
    except ConfigError as error:
        return str(error)
    return None


def setup_command(run: Path, name: str, *, again: bool = False) -> str:
    """The command that makes an output before the first iteration."""
    options = [word for one in STAGES[name].inputs for word in _given(run, 0, one)]
    return _line(STAGES[name].command, run, [*options, "--out", run / name], again=again)


def _line(stage: str, run: Path, arguments: list[str | Path], *, again: bool, settings: Sequence[str] = ()) -> str:
    configuration = settings or ["--config", str(run / CONFIG)]
    words = ["dapo-stages", stage, *configuration, *(str(word) for word in arguments)]
    return shlex.join([*words, "--overwrite"] if again else words)


def _missing_at_the_end(number: int, outputs: Mapping[str, OutputState]) -> str | None:
    """The first missing output with nothing after it: an output that later stages did not need is skipped."""
    wanted = tuple(FOLDERS) if number else ("eval",)
    present = [index for index, name in enumerate(wanted) if outputs[name].state != "missing"]
    after = wanted[max(present, default=-1) + 1 :]
    return after[0] if after else None


def _because(output: OutputState) -> str:
    if output.state == "halted":  # the reason does not fit here
        return "halted; first do what its reason says"
    return f"{output.state} ({output.why})" if output.why else output.state


def halts(run: Path) -> Iterator[str]:
    """Why train-steps of a run were halted: `iteration 3, train is halted: …`."""
    for number in iterations(run):
        if why := halted(f"{iteration_folder(run, number)}/train"):
            yield f"iteration {number}, train is halted: {why}"
