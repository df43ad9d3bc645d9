"""Coefficients that follow something, against verl's controller and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dapo_stages.maths.controllers import toward_entropy, toward_kl


class AdaptiveKLController:
    """Copied from verl 0.9.1, verl/trainer/ppo/core_algos.py, Copyright 2024 Bytedance Ltd. and/or its affiliates;
    Apache License 2.0 (http://www.apache.org/licenses/LICENSE-2.0). Types added."""

    def __init__(self, init_kl_coef: float, target_kl: float, horizon: float) -> None:
        self.value = init_kl_coef
        self.target = target_kl
        self.horizon = horizon

    def update(self, current_kl: float, n_steps: int) -> None:
        target = self.target
        proportional_error = np.clip(current_kl / target - 1, -0.2, 0.2)
        mult = 1 + proportional_error * n_steps / self.horizon
        self.value *= mult


def test_the_weight_of_the_kl_term_follows_verls() -> None:
    theirs, ours = AdaptiveKLController(0.05, 0.1, 1000), 0.05
    for kl in (0.5, 0.11, 0.1, 0.09, 0.0, 3.0):
        theirs.update(kl, 64)
        ours = toward_kl(ours, kl, 0.1, 64, 1000)
        assert ours == pytest.approx(theirs.value, rel=1e-12)
    assert ours != pytest.approx(0.05)


def test_the_weight_of_the_entropy_bonus_goes_up_at_the_target_and_down_above() -> None:
    assert toward_entropy(0.01, 0.2, target=0.2, step=0.005, lowest=0, highest=1) == pytest.approx(0.015)
    assert toward_entropy(0.01, 0.21, target=0.2, step=0.005, lowest=0, highest=1) == pytest.approx(0.005)
    assert toward_entropy(0.01, 0.21, target=0.2, step=0.05, lowest=0.002, highest=1) == 0.002
    assert toward_entropy(0.99, 0.1, target=0.2, step=0.05, lowest=0, highest=1) == 1
