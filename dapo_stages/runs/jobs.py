"""Jobs of a cluster: which stages share one, and what each waits for, by the table of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dapo_stages.config import Config
from dapo_stages.runs.pipeline import STAGES, Input

_SETUP = "setup/0"  # what comes before the first iteration
TOGETHER = {
    "rollout": ("rollout",),
    "score": ("attention", "weights"),
    "train": ("train",),
    "finish": ("eval", "report"),
}
_OF = {folder: job for job, folders in TOGETHER.items() for folder in folders}


class Job(NamedTuple):
    """Its name, its iteration, and the jobs (`train/2`) whose outputs it reads."""

    name: str
    iteration: int
    after: tuple[str, ...]


def jobs(config: Config, iterations: int, eval_every: int) -> Iterator[Job]:
    """The jobs of a run, each after those it waits for; every so many iterations are evaluated and reported."""
    yield Job("setup", 0, ())
    finished = _SETUP
    for number in range(1, iterations + 1):
        for name, folders in TOGETHER.items():
            if name == "finish" and number % eval_every and number < iterations:
                continue
            inputs = [one for folder in folders for one in STAGES[folder].inputs if _wanted(one, config)]
            after = {_owner(one, number, config.lag) for one in inputs} - {f"{name}/{number}"}
            if name == "finish":  # reports are made one after the other
                after.add(finished)
                finished = f"finish/{number}"
            yield Job(name, number, tuple(sorted(after - {_SETUP}) or [_SETUP]))  # all others come after it anyway


def _wanted(one: Input, config: Config) -> bool:
    return one.when != "curriculum" or config.rollout.curriculum is not None


def _owner(one: Input, number: int, lag: int) -> str:
    """The job that makes an input."""
    place = one.place(number, lag)
    if place is None or not place.startswith("iter-"):
        return _SETUP
    iteration, folder = place.split("/")[:2]
    return f"{_OF[folder]}/{int(iteration.removeprefix('iter-'))}"
