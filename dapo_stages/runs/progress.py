"""The progress of a run: the state of every output, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dapo_stages.handoff.unfinished import halted
from dapo_stages.runs.at_work import held_locks
from dapo_stages.runs.commands import command, setup_command
from dapo_stages.runs.pipeline import FOLDERS, NEEDED, SETUP
from dapo_stages.runs.run_folder import OutputState, Run

_DEFAULT = "pipelines/embedded.yaml"


@dataclass(frozen=True)
class Progress:
    """The outputs of a run: those before the first iteration, and those of each iteration."""

    run: Run
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


def survey(run: Run) -> Progress:
    """The state of every output; only manifests are read."""
    held = held_locks()
    setup = {name: run.state(run.path / name, stage, held) for name, stage in SETUP.items()}
    found = {
        number: {name: run.state(run.folder(number) / name, stage, held) for name, stage in FOLDERS.items()}
        for number in run.iterations()
    }
    return Progress(run, setup, found)


def next_move(progress: Progress) -> Move:
    """What is running; otherwise the first output that must be made again, or is missing at the end of the run."""
    run = progress.run
    if running := [f"{place}{name}" for place, name, found in progress.outputs() if found.state == "running"]:
        return Move(None, f"{', '.join(running)}: running")
    if not run.config_file.exists():
        return Move(
            shlex.join(["dapo-stages", "config", "--config", _DEFAULT, "--out", str(run.config_file)]),
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
    evaluates = run.config is None or run.config.data.holds_out
    if last is None and not evaluates:
        return Move(command(run, 1, "rollout"), "the run is set up, and has no held-out rows to evaluate on")
    if last is None:
        return Move(command(run, 0, "eval"), "the starting policy is not evaluated yet")
    for number, outputs in progress.iterations.items():  # rollouts may be ahead of training
        missing = _missing_at_the_end(number, outputs, evaluates)
        if missing and (number == last or missing in NEEDED):
            return Move(command(run, number, missing), f"iteration {number}, {missing}: missing")
    planned = run.planned_iterations
    if planned and last >= planned:
        why = f"all {planned} planned iterations are finished; one more"
        return Move(command(run, last + 1, "rollout"), why, last + 1)
    return Move(command(run, last + 1, "rollout"), f"iteration {last} is finished")


def _missing_at_the_end(number: int, outputs: Mapping[str, OutputState], evaluates: bool) -> str | None:
    """The first missing output with nothing after it: an output that later stages did not need is skipped."""
    wanted = [name for name in (FOLDERS if number else ("eval",)) if evaluates or name != "eval"]
    present = [index for index, name in enumerate(wanted) if outputs[name].state != "missing"]
    after = wanted[max(present, default=-1) + 1 :]
    return after[0] if after else None


def _because(output: OutputState) -> str:
    if output.state == "halted":  # the reason does not fit here
        return "halted; first do what its reason says"
    return f"{output.state} ({output.why})" if output.why else output.state


def halts(run: Run) -> Iterator[str]:
    """Why train-steps of a run were halted: `iteration 3, train is halted: …`."""
    for number in run.iterations():
        if why := halted(f"{run.folder(number)}/train"):
            yield f"iteration {number}, train is halted: {why}"
