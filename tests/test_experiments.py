"""The configurations of the experiments."""

from __future__ import annotations

import re

import pytest
from support.commands import ROOT

from dapo_stages.config import load_config

pytestmark = pytest.mark.long

EXPERIMENTS = ROOT / "pipelines/experiments"
# Weights of accuracy, vgr, format and overlong, regular and early; replay or not; weighting.
TABLE = {
    "baseline": ((2.5, 0, 0.5, 1), None, False, "uniform"),
    "experiment1": ((2.5, 0, 0.5, 1), (1, 0, 2, 1), True, "uniform"),
    "experiment2": ((0, 2.5, 0.5, 1), (0, 1, 2, 1), True, "uniform"),
    "experiment3": ((2.5, 1, 0.5, 1), (1, 1, 2, 1), True, "uniform"),
    "experiment4": ((2.5, 1, 0.5, 1), (1, 1, 2, 1), True, "uniform"),
    "experiment5": ((2.5, 0, 0.5, 1), (1, 0, 2, 1), True, "vgr"),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_experiment_is_that_of_the_table(name: str) -> None:
    weights = load_config(EXPERIMENTS / f"{name}.yaml").weights
    regular, early, replay, scheme = TABLE[name]
    order = ("accuracy", "vgr", "format", "overlong")
    assert tuple(getattr(weights.reward_weights, reward) for reward in order) == regular
    assert weights.early_fraction == (0.1 if early else 0.0)
    assert not early or tuple(getattr(weights.early_reward_weights, reward) for reward in order) == early
    assert (weights.replay.size > 0) == replay and weights.scheme == scheme
    assert not replay or (weights.replay.rule, weights.replay.max_replays) == ("replace_all", None)
    assert weights.hard_negative == (name == "experiment4")
    assert weights.vgr_mapping == "quantile"
    rewarded = weights.reward_weights.vgr > 0
    assert weights.vgr_layers == ("late" if rewarded else "all")  # those that the floor of 5.0 was made for


@pytest.mark.parametrize("name", TABLE)
def test_every_key_says_whose_it_is(name: str) -> None:
    for line in (EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") and not line.endswith(":"):
            assert re.search(r" # .*\b(ours?|published)\b", line), line
