"""Jobs of a cluster: what each is for, and what it waits for, from the table of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dapo_stages.config import Config
from dapo_stages.runs.pipeline import ITERATION, STAGES, Input

_SETUP = "setup/0"  # the stages before the first iteration, and the report of the start


class Job(NamedTuple):
    """Its name, its iteration, the goals of make that it is for, and the jobs (`train/2`) that it waits for."""

    name: str
    iteration: int
    goals: tuple[str, ...]
    after: tuple[str, ...]


def jobs(config: Config, iterations: int, eval_every: int) -> Iterator[Job]:
    """The jobs of a run, each after those it waits for; every `eval_every` iterations one evaluates and reports."""
    # Without held-out rows there is no evaluation of the starting policy to report.
    yield Job("setup", 0, ("iter-0000/report/manifest.json" if config.data.holds_out else "data/manifest.json",), ())
    finished = _SETUP
    for number in range(1, iterations + 1):
        for name in dict.fromkeys(stage.job for stage in ITERATION):
            if name == "finish" and number % eval_every and number < iterations:
                continue
            stages = [stage for stage in ITERATION if stage.job == name]
            inputs = [one for stage in stages for one in stage.inputs if _wanted(one, config)]
            after = {_owner(one, number, config.lag) for one in inputs} - {f"{name}/{number}"}
            goals = tuple(stage.command for stage in stages)
            if name == "finish":  # reports are made one after the other
                after.add(finished)
                finished, goals = f"finish/{number}", ("iterate",)
            yield Job(name, number, goals, tuple(sorted(after - {_SETUP}) or [_SETUP]))  # all others wait for it anyway


def _wanted(one: Input, config: Config) -> bool:
    return one.when != "curriculum" or config.rollout.curriculum is not None


def _owner(one: Input, number: int, lag: int) -> str:
    """The job that makes an input."""
    place = one.place(number, lag)
    if place is None or not place.startswith("iter-"):
        return _SETUP
    iteration, folder = place.split("/")[:2]
    return f"{STAGES[folder].job}/{int(iteration.removeprefix('iter-'))}"
