"""The table of the pipeline: its stages in order, the folder each writes, and what each reads.

make's rules, `status`, `doctor` and the jobs of a cluster come from this table. To add a stage, add a line here, a
module in stages/, and a schema of what it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Of = Literal["run", "this", "previous", "sampler"]
When = Literal["always", "curriculum", "kl"]


@dataclass(frozen=True)
class Input:
    """What a stage reads: its name (of the option and in the manifest), and which output of a run it is.

    `of`: whether it belongs to the run itself, to this iteration, to the previous one, or to the one whose policy
    samples (`lag` before the previous). `when`: always, or only if the configuration uses it.
    """

    name: str
    output: str
    of: Of = "this"
    when: When = "always"

    def place(self, number: int, lag: int = 0) -> str | None:
        """Its folder for an iteration, relative to the run; None if there is none, as before the first iteration."""
        if self.of == "run":
            return self.output
        owner = {"this": number, "previous": number - 1, "sampler": max(number - 1 - lag, 0)}[self.of]
        if self.output == "policy":
            return policy_after(owner)
        return f"{iteration_name(owner)}/{self.output}" if owner > 0 else None


@dataclass(frozen=True)
class Stage:
    """A command, the folder it writes (in the run, or in each iteration), and what it reads."""

    command: str
    folder: str
    inputs: tuple[Input, ...] = ()
    numbered: bool = False  # whether it takes --iteration
    launch: str = ""  # prefix of make's variables for its Python and its processes: ROLLOUT_PYTHON, ROLLOUT_LAUNCH
    job: str = "setup"  # the job of a cluster that it belongs to, of those of each iteration
    beside: str = ""  # a folder inside its own that is an output of its own, and that the same command makes


_DATA = Input("data", "data", "run")
_ROLLOUTS = Input("rollouts", "rollout")

BEFORE = (
    Stage("init-policy", "policy"),
    Stage("prepare-data", "data", (Input("policy", "policy", "run"),)),
)
ITERATION = (
    Stage(
        "rollout",
        "rollout",
        (Input("policy", "policy", "sampler"), _DATA, Input("history", "rollout", "previous", "curriculum")),
        numbered=True,
        launch="ROLLOUT",
        job="rollout",
    ),
    Stage(
        "score-attention",
        "attention",
        (Input("policy", "policy", "sampler"), _ROLLOUTS),
        launch="SCORE",
        job="score",
    ),
    Stage(
        "weight-tokens",
        "weights",
        (_ROLLOUTS, Input("attention", "attention"), Input("replay", "weights", "previous")),
        numbered=True,
        job="score",
    ),
    Stage(
        "train-step",
        "train",
        (
            Input("policy", "policy", "previous"),
            _ROLLOUTS,
            Input("weights", "weights"),
            Input("state", "train/state", "previous"),
            Input("reference", "train/reference", "previous", "kl"),
        ),
        launch="TRAIN",
        job="train",
        beside="state",
    ),
    Stage("evaluate", "eval", (Input("policy", "policy"), _DATA), launch="EVALUATE", job="finish"),
    Stage("report", "report", numbered=True, job="finish"),
)

SETUP = {stage.folder: stage.command for stage in BEFORE}
FOLDERS = {stage.folder: stage.command for stage in ITERATION}
STAGES = {stage.folder: stage for stage in (*BEFORE, *ITERATION)}
BESIDE = {stage.command: stage.beside for stage in ITERATION if stage.beside}
REPORTED = tuple(name for name in FOLDERS if name != "report")
NEEDED = tuple(name for name in REPORTED if name != "eval")  # by the next iteration


def iteration_name(number: int) -> str:
    """3 -> iter-0003."""
    return f"iter-{number:04d}"


def policy_after(number: int) -> str:
    """The policy that an iteration made, relative to the run; the starting policy for 0."""
    return f"{iteration_name(number)}/train/policy" if number > 0 else "policy"
