"""The perception terms, worked by hand and as published code computes them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dapo_stages.maths.perception import PerceptionTerm, View, perception_loss

NEW, BLANK = [-0.2, -1.0], [-0.5, -0.7]  # logprobs of two sampled tokens, with the image and without it


def tensor(values: list[float], *, gradient: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=gradient)


def term_of(
    *views: View, new: torch.Tensor, entropy: list[float], **settings: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    ones = torch.ones(len(new), dtype=torch.float64)
    return perception_loss(new, tensor(entropy), views, ones, PerceptionTerm(**settings), normalizer=len(new))


def test_papos_term_by_hand() -> None:
    """q/p = e^-0.3 and e^0.3: k3 is 0.0408182 and 0.0498588, mean 0.0453385; as PAPO's compute_kl with low_var_kl, and
    as TRL's PAPOTrainer (experimental, up to 2025) had it. The gradient of the mean is (1 - q/p) / 2 in log p, and its
    negative in log q."""
    new, blank = tensor(NEW, gradient=True), tensor(BLANK, gradient=True)
    loss, sums = term_of(View(blank, tensor([0.7, 0.9])), new=new, entropy=[0.5, 0.1], coefficient=0.25)
    assert loss.item() == pytest.approx(-0.25 * 0.04533851)
    loss.backward()
    slopes = [(1 - math.exp(-0.3)) / 2, (1 - math.exp(0.3)) / 2]
    assert new.grad is not None and blank.grad is not None
    assert new.grad.tolist() == pytest.approx([-0.25 * slope for slope in slopes])
    assert blank.grad.tolist() == pytest.approx([0.25 * slope for slope in slopes])
    assert sums["perception_kl_sum"].item() == pytest.approx(0.09067702)
    assert sums["perception_entropy_sum"].item() == pytest.approx(1.6)
    assert sums["seen_tokens"].item() == 2 and sums["perception_clamped"].item() == 0


def test_the_double_entropy_penalty_is_on_both_views() -> None:
    """Entropies with the image 0.5 and 0.1, without 0.7 and 0.9: 0.03 times the mean of their sums, 1.1."""
    settings = {"coefficient": 1e-30, "entropy_coefficient": 0.03}
    loss, _ = term_of(View(tensor(BLANK), tensor([0.7, 0.9])), new=tensor(NEW), entropy=[0.5, 0.1], **settings)
    assert loss.item() == pytest.approx(0.03 * 1.1)


def test_a_token_beyond_the_clamp_counts_the_clamp_and_has_no_gradient() -> None:
    """q/p = e^3 for the first: k3 = 16.0855, which PAPO's code cuts at 10; the second, 0.0498588, stays."""
    new = tensor([-4.0, -1.0], gradient=True)
    view = View(tensor([-1.0, -0.7]), tensor([0.0, 0.0]))
    loss, sums = term_of(view, new=new, entropy=[0.0, 0.0], coefficient=1.0, clamp=10.0)
    assert loss.item() == pytest.approx(-(10 + 0.0498588) / 2)
    loss.backward()
    assert new.grad is not None
    assert new.grad[0] == 0 and new.grad[1] == pytest.approx(-(1 - math.exp(0.3)) / 2)
    assert sums["perception_clamped"].item() == 1 and sums["perception_kl_sum"].item() == pytest.approx(16.1353957)


def test_dvrp_goes_away_from_the_masked_view_and_toward_the_noised_one() -> None:
    """Masked: 0.0453385 as above, noised: q/p = e^0.1 and 1, k3 0.0051709 and 0, mean 0.0025855. The entropies that are
    penalized are those of the two changed views: 0.7 + 0.9 and 0.4 + 0.2, mean 1.1."""
    views = View(tensor(BLANK), tensor([0.7, 0.9])), View(tensor([-0.1, -1.0]), tensor([0.4, 0.2]), toward=True)
    settings = {"coefficient": 0.1, "entropy_coefficient": 0.05, "own_entropy": False}
    loss, sums = term_of(*views, new=tensor(NEW), entropy=[9.0, 9.0], **settings)
    assert loss.item() == pytest.approx(0.1 * (0.00258546 - 0.04533851) + 0.05 * 1.1)
    assert sums["robustness_kl_sum"].item() == pytest.approx(0.00517092)


def test_tokens_are_divided_like_those_of_the_policy_term() -> None:
    """Two completions of one and three tokens, each a mean: k3 of e^-0.3 is 0.0408182."""
    new, divisor = tensor([-0.2] * 4), tensor([1.0, 3.0, 3.0, 3.0])
    view = View(tensor([-0.5] * 4), tensor([0.0] * 4))
    loss, _ = perception_loss(new, tensor([0.0] * 4), [view], divisor, PerceptionTerm(1.0), normalizer=2)
    assert loss.item() == pytest.approx(-0.0408182, rel=1e-5)


def test_without_tokens_the_term_is_zero() -> None:
    nothing = tensor([], gradient=True)
    loss, sums = perception_loss(nothing, nothing, [View(nothing, nothing)], nothing, PerceptionTerm(1.0), normalizer=1)
    assert loss.item() == 0 and sums["seen_tokens"].item() == 0
    loss.backward()
