"""The weights of KL term and entropy bonus pass from one train-step to the next."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from support.pipeline import Run, metrics

from dapo_stages.config import TrainConfig
from dapo_stages.config.objective import EntropyControl, KlSettings
from dapo_stages.handoff.manifests import Source
from dapo_stages.training.coefficients import Coefficients

BOTH = TrainConfig(
    beta=0.1,
    kl=KlSettings(target=0.05, horizon=10),
    entropy_coefficient=0.02,
    entropy_control=EntropyControl(target=1.0, step=0.01),
)


def test_they_follow_and_go_on_where_they_were() -> None:
    followed = Coefficients(BOTH)
    assert (followed.beta, followed.entropy) == (0.1, 0.0)  # nothing is known of the entropy yet, as in TRL
    followed.follow(kl=1.0, entropy=0.5, completions=5)
    assert (followed.beta, followed.entropy) == pytest.approx((0.1 * (1 + 0.2 * 5 / 10), 0.03))
    resumed = Coefficients(BOTH, followed.counts()["coefficients"])
    for one in (followed, resumed):
        one.follow(kl=0.0, entropy=1.5, completions=5)
        assert (one.beta, one.entropy) == pytest.approx((0.11 * 0.9, 0.0))  # above the target it does not count
        one.follow(kl=0.05, entropy=0.9, completions=5)
        assert (one.beta, one.entropy) == pytest.approx((0.11 * 0.9, 0.03))
    resumed.follow(math.nan, math.nan, 5)
    assert resumed.counts() == followed.counts()


def test_fixed_ones_are_those_of_the_settings_and_are_not_recorded() -> None:
    fixed = Coefficients(TrainConfig(beta=0.1, entropy_coefficient=0.02), {"beta": 9.0})
    fixed.follow(1.0, 0.0, 5)
    assert (fixed.beta, fixed.entropy, fixed.counts(), fixed.metrics()) == (0.1, 0.02, {}, {})


def test_a_train_step_goes_on_from_its_state(small_run: Run, tmp_path: Path) -> None:
    settings = {"train__beta": 0.1, "train__kl": "{target: 9.0, horizon: 100}"}
    reference, first = ["--reference", small_run.policy(0)], small_run.at(1)
    small_run.command("train-step", *small_run.train_inputs(1), *reference, "--out", tmp_path / "t1", **settings)
    again = ["--policy", tmp_path / "t1/policy", "--state", tmp_path / "t1/state", *reference]
    again += ["--rollouts", first / "rollout", "--weights", first / "weights"]
    small_run.command("train-step", *again, "--out", tmp_path / "t2", **settings)
    updates = pd.concat([metrics(tmp_path / name) for name in ("t1", "t2")])
    assert (updates.kl < 0.8 * 9).all() and len(updates) > 2
    # So far below the target every update lowers the weight by a fifth of completions / 100.
    wanted = 0.1 * (1 - 0.2 * updates.completions.to_numpy() / 100).cumprod()
    assert updates.beta.tolist() == pytest.approx([0.1, *wanted[:-1]])
    counts = Source(tmp_path / "t2/state", "state").manifest.counts
    assert counts["coefficients"] == {"beta": pytest.approx(wanted[-1])}
