"""The pipeline as its users call it, small enough for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dapo_stages.handoff.manifests import Source
from support import machine
from support.commands import ROOT, Result, run

CONFIG = ROOT / "pipelines/smoke.yaml"
SMALL = (
    f"seed={machine.seed()}",
    "data.synthetic.train=64",
    "data.synthetic.held_out=12",
    "warm_up.steps=24",
    "report.trackers=[]",
    "rollout.sampler.temperature=1.2",
    "weights.mask_truncated_completions=false",  # so that no small policy's completions are all left out
)
# A reward by a completion's place, in the file place.py: it differs in every group, whatever a policy samples.
PLACE = "def place(completions, rows):\n    return [float(place) for place in range(len(completions))]\n"
BY_PLACE = {
    "rewards__plugins": "{place: place.py:place}",
    "rollout__dynamic_sampling": "false",
    "weights__reward_weights": "{accuracy: 0, vgr: 0, format: 0, overlong: 0, plugins: {place: 1}}",
    "weights__mask_truncated_completions": "false",
}


@dataclass
class Run:
    """A run folder and the commands that fill it."""

    folder: Path
    settings: tuple[str, ...] = SMALL

    def command(self, stage: object, *args: object, **settings: Any) -> Result:
        """Call a stage and insist that it succeeds; keywords are --set overrides, `__` for the dot."""
        result = self.attempt(stage, *args, **settings)
        assert result.code == 0, result.stderr
        return result

    def attempt(self, stage: object, *args: object, **settings: Any) -> Result:
        return run(stage, *self.options(**settings), *args)

    def options(self, **settings: Any) -> list[object]:
        """--config, and --set for each setting."""
        overrides = [*self.settings, *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]
        return ["--config", CONFIG, *(flag for override in overrides for flag in ("--set", override))]

    def start(self) -> None:
        self.command("config", "--out", self.folder / "config.yaml")
        self.command("init-policy", "--out", self.folder / "policy")
        self.command("prepare-data", "--policy", self.folder / "policy", "--out", self.folder / "data")

    def iteration(self, number: int) -> None:
        here, before = self.at(number), self.at(number - 1)
        carry_on = number > 1
        policy = self.policy(number - 1)
        self.command("rollout", *self.rollout_inputs(number), "--out", here / "rollout")
        self.command("score-attention", "--policy", policy, "--rollouts", here / "rollout", "--out", here / "attention")
        replay = ["--replay", before / "weights"] if carry_on else []
        self.command("weight-tokens", *self.weights_inputs(number), *replay, "--out", here / "weights")
        state = ["--state", before / "train/state"] if carry_on else []
        self.command("train-step", *self.train_inputs(number), *state, "--out", here / "train")
        self.command(
            "evaluate", "--policy", self.policy(number), "--data", self.folder / "data", "--out", here / "eval"
        )

    def rollout_inputs(self, number: int) -> list[object]:
        return ["--policy", self.policy(number - 1), "--data", self.folder / "data", "--iteration", number]

    def weights_inputs(self, number: int) -> list[object]:
        here = self.at(number)
        return ["--rollouts", here / "rollout", "--attention", here / "attention", "--iteration", number]

    def train_inputs(self, number: int) -> list[object]:
        here = self.at(number)
        policy = self.policy(number - 1)
        return ["--policy", policy, "--rollouts", here / "rollout", "--weights", here / "weights"]

    def at(self, number: int) -> Path:
        return self.folder / f"iter-{number:04d}"

    def policy(self, number: int) -> Path:
        """The policy after an iteration; 0: the starting one."""
        return self.at(number) / "train/policy" if number else self.folder / "policy"


def table(folder: Path, kind: str) -> pd.DataFrame:
    """All shards of a kind, as a user would open them."""
    files = [folder / shard.name for shard in Source(folder).shards(kind)]
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def metrics(folder: Path) -> pd.DataFrame:
    """metrics.parquet with a row per update and a column per name."""
    return pd.read_parquet(folder / "metrics.parquet").pivot(index="update", columns="name", values="value")
