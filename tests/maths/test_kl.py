"""The KL term against verl's code, and its gradient against the derivative of an exact divergence."""

import math

import pytest
import torch
from support.verl_kl import kl_penalty

from dapo_stages.maths.kl import ESTIMATORS, Estimator, KlGradient, KlTerm, kl_term


def pulled(new: float, reference: float, gradient: KlGradient, old: float | None = None) -> tuple[float, float]:
    """The value of the k3 term at one token, and its gradient."""
    new_T = torch.tensor([new], dtype=torch.float64, requires_grad=True)
    old_T = torch.tensor([new if old is None else old], dtype=torch.float64)
    value_T = kl_term(new_T, old_T, torch.tensor([reference], dtype=torch.float64), KlTerm("k3", gradient))
    value_T.sum().backward()
    assert new_T.grad is not None
    return value_T.item(), new_T.grad.item()


def test_a_token_far_below_the_reference_is_pulled_by_the_difference() -> None:
    """Issue of k3: at new -10, ref -1 its own derivative is 1 - e^9 = -8102, the reverse KL's new - ref = -9."""
    value = math.exp(9) - 9 - 1
    assert pulled(-10, -1, "own") == pytest.approx((value, 1 - math.exp(9)))
    assert pulled(-10, -1, "reverse") == pytest.approx((value, -9))
    assert pulled(-10, -1, "corrected") == pytest.approx((value, -9))


def test_off_policy_the_corrected_gradient_has_the_ratio() -> None:
    ratio = math.exp(0.5)
    assert pulled(-1.5, -1, "corrected", old=-2)[1] == pytest.approx(ratio * -0.5)
    assert pulled(-1.5, -1, "reverse", old=-2)[1] == pytest.approx(-0.5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
@pytest.mark.parametrize(("gradient", "suffix"), [("own", ""), ("reverse", "+")])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_value_and_gradient_equal_verls(
    estimator: Estimator, gradient: KlGradient, suffix: str, dtype: torch.dtype, most: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    new_T = (-2 + 2 * torch.randn(200, generator=generator)).to(dtype).requires_grad_()
    reference_T = (-2 + 2 * torch.randn(200, generator=generator)).to(dtype)
    theirs_T = new_T.detach().clone().requires_grad_()
    clamp = 10.0 if estimator == "k3" else None
    ours = kl_term(new_T, new_T.detach(), reference_T, KlTerm(estimator, gradient, clamp))
    theirs = kl_penalty(theirs_T, reference_T, estimator + suffix)
    if estimator == "k3":
        assert ((ours - 10).abs() < 1e-6).any(), "no token reaches the clamp"
    torch.testing.assert_close(ours, theirs, atol=most, rtol=0)
    ours.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(new_T.grad, theirs_T.grad, atol=most, rtol=0)


def test_expected_gradients_are_those_of_the_exact_divergence() -> None:
    """Five tokens, one logit each: the mean over the policy's own tokens is the derivative of KL(new || ref)."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -2.5], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([1.0, 0.5, 0.0, -2.0, 1.0], dtype=torch.float64), 0)
    old = torch.log_softmax(torch.tensor([0.0, 0.0, 1.0, 0.5, -1.0], dtype=torch.float64), 0)
    new = torch.log_softmax(logits, 0)
    (exact,) = torch.autograd.grad((new.exp() * (new - reference)).sum(), logits, retain_graph=True)

    def mean_gradient(term: KlTerm, sampled_from: torch.Tensor) -> torch.Tensor:
        value = (sampled_from.detach().exp() * kl_term(new, sampled_from.detach(), reference, term)).sum()
        (found,) = torch.autograd.grad(value, logits, retain_graph=True)
        return found

    for estimator in ESTIMATORS:
        torch.testing.assert_close(mean_gradient(KlTerm(estimator), new), exact)
    torch.testing.assert_close(mean_gradient(KlTerm("k1", "corrected"), old), exact)
    torch.testing.assert_close(mean_gradient(KlTerm("k3", "corrected"), old), exact)
    assert mean_gradient(KlTerm("k1", "own"), new).abs().max() < 1e-12
    (forward,) = torch.autograd.grad(-(reference.exp() * new).sum(), logits, retain_graph=True)
    torch.testing.assert_close(mean_gradient(KlTerm("k3", "own"), new), forward)


def test_logprobs_that_differ_without_bound_stay_finite() -> None:
    for gradient in ("own", "reverse", "corrected"):
        value, slope = pulled(-1e4, -1, gradient)
        assert math.isfinite(value) and math.isfinite(slope)
