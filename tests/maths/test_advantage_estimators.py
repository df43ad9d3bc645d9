"""Advantages against the code of TRL and verl, on groups of unequal size and completions of unequal length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import peer_advantages as peers
from torch import Tensor

from dapo_stages.maths.advantage_estimators import ESTIMATORS, Estimator, Rewarded, estimate

SIZES = (4, 3, 5, 2)
LONGEST = 9


@pytest.fixture
def groups() -> list[Rewarded]:
    rng = np.random.default_rng(2)
    return [
        Rewarded(rng.normal(size=size), {}, rng.integers(1, LONGEST + 1, size=size).astype(float)) for size in SIZES
    ]


def scores_of(groups: list[Rewarded]) -> tuple[Tensor, list[int], Tensor]:
    """Scores [B], the group of each, and the mask of their tokens [B, T]."""
    scores = torch.from_numpy(np.concatenate([group.totals_N for group in groups]))
    lengths = torch.from_numpy(np.concatenate([group.lengths_N for group in groups]))
    index = [number for number, group in enumerate(groups) for _ in group.totals_N]
    return scores, index, (torch.arange(LONGEST) < lengths[:, None]).double()


def ours(groups: list[Rewarded], estimator: Estimator) -> Tensor:
    return torch.from_numpy(np.concatenate(estimate(groups, estimator, "group", {})))


def test_estimators_without_an_epsilon_equal_verls(groups: list[Rewarded]) -> None:
    scores, index, mask = scores_of(groups)
    torch.testing.assert_close(ours(groups, "rloo"), peers.verl_rloo(scores, index), atol=1e-10, rtol=0)
    torch.testing.assert_close(ours(groups, "opo"), peers.verl_opo(scores, index, mask), atol=1e-10, rtol=0)
    torch.testing.assert_close(ours(groups, "pass_at_k"), peers.verl_grpo_passk(scores, index), atol=1e-10, rtol=0)


def test_normalized_over_tokens_as_verl_does(groups: list[Rewarded]) -> None:
    """verl adds 1e-8 to the number of tokens."""
    scores, index, mask = scores_of(groups)
    for estimator, theirs in (
        ("reinforce_plus_plus", peers.verl_reinforce_plus_plus(scores, mask)),
        ("reinforce_plus_plus_baseline", peers.verl_reinforce_plus_plus_baseline(scores, index, mask)),
    ):
        found = ours(groups, estimator)[:, None] * mask
        torch.testing.assert_close(found, theirs, atol=2e-8, rtol=0)


def test_gdpo_equals_trls_normalize_then_sum() -> None:
    rng, size, weights = np.random.default_rng(3), 4, {"accuracy": 2.0, "format": -0.5, "judge": 1.0, "unused": 0.0}
    rewards = rng.normal(size=(3 * size, 3))
    rewards[1, 2] = rewards[6, 0] = np.nan  # no opinion
    rewards[5] = np.nan  # of no reward
    rewards[8:, 1] = 0.5  # no spread
    names = list(weights)[:3]
    found = [
        Rewarded(np.zeros(size), {name: part[:, k] for k, name in enumerate(names)}, np.zeros(0))
        for part in np.split(rewards, 3)
    ]
    theirs = peers.trl_normalize_then_sum(torch.from_numpy(rewards), torch.tensor([2.0, -0.5, 1.0]).double(), size)
    result = np.concatenate(estimate(found, "gdpo", "group", weights))
    np.testing.assert_allclose(result, theirs.numpy(), atol=1e-10)


def test_gdpo_tells_apart_what_the_total_does_not() -> None:
    """By a weight of 2 the first, rarer reward outweighs the second: ±(2 - 1) · (1.5, -0.5 ×3), of std 1."""
    group = Rewarded(np.ones(4), {"a": np.array([1.0, 0, 0, 0]), "b": np.array([0.0, 1, 1, 1])}, np.zeros(0))
    (found,) = estimate([group], "gdpo", "group", {"a": 2.0, "b": 1.0})
    np.testing.assert_allclose(found, np.array([1.5, -0.5, -0.5, -0.5]), rtol=1e-3)


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "reinforce_plus_plus"])
def test_groups_without_spread_get_exactly_zero(estimator: Estimator) -> None:
    equal = {"a": np.full(3, 0.1)}
    groups = [
        Rewarded(np.full(3, 0.1), equal, np.array([1.0, 5.0, 2.0])),
        Rewarded(np.array([7.0]), {"a": np.array([7.0])}, np.array([3.0])),
    ]
    for found in estimate(groups, estimator, "group", {"a": 1.0}):
        np.testing.assert_array_equal(found, np.zeros(len(found)))
    assert estimate([], estimator, "group", {"a": 1.0}) == []


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown advantage 'gae'"):
        estimate([], "gae", "group", {})
