"""Losses, averages and masks against verl's own code, on rows with padding of unequal length."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import verl_losses as verl
from support.losses import loss_of
from torch import Tensor

from dapo_stages.maths.engine_correction import EngineMask, MaskLevel, engine_kept
from dapo_stages.maths.loss_inputs import LossInputs
from dapo_stages.maths.loss_types import LOSSES, Aggregation, LossType, normalizer_of
from dapo_stages.maths.marked_tokens import covariances, highest, spread_out

LONGEST = 12
LENGTHS = (12, 7, 1, 9, 5, 12)
LOW, HIGH = 0.2, 0.28
MODES: dict[Aggregation, str] = {
    "token_mean": "token-mean",
    "token_sum": "token-sum",
    "seq_mean_token_mean": "seq-mean-token-mean",
    "seq_mean_token_sum": "seq-mean-token-sum",
    "seq_mean_token_sum_norm": "seq-mean-token-sum-norm",
}


@pytest.fixture(params=[(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=["float64", "float32"])
def batch(request: pytest.FixtureRequest) -> SimpleNamespace:
    dtype, most = request.param
    generator = torch.Generator().manual_seed(4)
    shape = (len(LENGTHS), LONGEST)

    def noise(scale: float) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    new = (-0.9 + noise(0.3)).clamp(max=-0.01)
    mask = (torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]).to(dtype)
    advantages = torch.tensor([1.0, -1.5, 0.7, -0.2, 3.0, -0.9], dtype=dtype)[:, None].expand(shape)
    old = (new + noise(0.4)).clamp(max=-0.01)
    return SimpleNamespace(new=new, old=old, advantages=advantages, mask=mask, engine=noise(0.5), most=most)


def packed(batch: SimpleNamespace, new: Tensor, **others: Tensor) -> dict[str, Any]:
    real = batch.mask.bool()
    rows = torch.arange(len(LENGTHS))[:, None].expand(real.shape)[real]
    return {
        "new_T": new[real],
        "old_T": batch.old[real],
        "advantages_T": batch.advantages[real],
        "weights_T": torch.ones(len(rows), dtype=new.dtype),
        "mask_T": torch.ones(len(rows), dtype=torch.bool),
        "sequence_ids_T": rows,
        **{name: values[real] for name, values in others.items()},
    }


def assert_equal(
    batch: SimpleNamespace,
    theirs: Tensor,
    their_new: Tensor,
    loss_type: LossType,
    aggregation: Aggregation | None = None,
    marked: Tensor | None = None,
    **settings: Any,
) -> None:
    """Our loss and gradient are those of their loss, a scalar; verl adds 1e-8 to the length of a completion."""
    has_epsilon = "seq_mean_token_mean" in (aggregation, LOSSES[loss_type].aggregation)
    most = max(batch.most, 2e-8) if has_epsilon else batch.most
    new = batch.new.clone().requires_grad_()
    others = {} if marked is None else {"marked_T": marked}
    tokens = sum(LENGTHS)
    normalizer = normalizer_of(loss_type, tokens, len(LENGTHS), LONGEST, aggregation)
    inputs = packed(batch, new, **others)
    ours, _ = loss_of(
        **inputs,
        normalizer=normalizer,
        loss_type=loss_type,
        aggregation=aggregation,
        **{"epsilon_low": LOW, "epsilon_high": HIGH, **settings},
    )
    torch.testing.assert_close(ours, theirs, atol=most, rtol=most)
    ours.backward()
    theirs.backward()
    assert new.grad is not None and their_new.grad is not None
    torch.testing.assert_close(new.grad, their_new.grad, atol=most, rtol=0)
    assert their_new.grad.abs().sum() > 0


@pytest.mark.parametrize("aggregation", MODES)
def test_averages(batch: SimpleNamespace, aggregation: Aggregation) -> None:
    new = batch.new.clone().requires_grad_()
    theirs = verl.agg_loss(
        verl.vanilla(batch.old, new, batch.advantages, LOW, HIGH, 3.0), batch.mask, MODES[aggregation]
    )
    assert_equal(batch, theirs, new, "dapo", aggregation, delta=3.0)


def test_losses(batch: SimpleNamespace) -> None:
    new: Tensor = batch.new.clone().requires_grad_()

    def leaf() -> Tensor:
        new.grad = None
        return new

    token_mean, by_completion = "token-mean", "seq-mean-token-mean"
    old, advantages = batch.old, batch.advantages
    theirs = verl.sapo(old, leaf(), advantages, 1.0, 1.05)
    assert_equal(batch, verl.agg_loss(theirs, batch.mask, by_completion), new, "sapo")
    theirs = verl.cispo(old, leaf(), advantages, 0.3, HIGH)
    assert_equal(batch, verl.agg_loss(theirs, batch.mask, token_mean), new, "cispo", cispo_epsilon_low=0.3)
    theirs = verl.geo_mean(old, leaf(), advantages, batch.mask, 0.3, 0.4)
    assert_equal(batch, theirs.mean(), new, "gmpo", epsilon_low=0.3, epsilon_high=0.4)
    for kind, low, high in (("tv", 0.05, 0.08), ("kl", 0.01, 0.02)):
        theirs = verl.dppo(old, leaf(), advantages, low, high, 1.5, kind)
        bounds: dict[str, Any] = {"epsilon_low": low, "epsilon_high": high, "delta": 1.5}
        name: LossType = "dppo_tv" if kind == "tv" else "dppo_kl"
        assert_equal(batch, verl.agg_loss(theirs, batch.mask, token_mean), new, name, **bounds)


def pulls_of(batch: SimpleNamespace) -> Tensor:
    real = batch.mask.bool()
    advantages, new = batch.advantages[real], batch.new[real]
    found: Tensor = covariances(batch.advantages, batch.new, float(advantages.mean()), float(new.mean()))
    return found


def test_kl_cov_holds_back_the_tokens_with_the_highest_covariance(batch: SimpleNamespace) -> None:
    new, share, real = batch.new.clone().requires_grad_(), 0.2, batch.mask.bool()
    theirs = verl.kl_cov(batch.old, new, batch.advantages, batch.mask, share, 0.7)
    pulls = pulls_of(batch)
    marked = pulls >= highest(pulls[real], share)
    assert marked[real].sum() == int(share * sum(LENGTHS))
    theirs = verl.agg_loss(theirs, batch.mask, "token-mean")
    assert_equal(batch, theirs, new, "kl_cov", marked=marked, covariance_kl=0.7)


def test_clip_cov_leaves_out_tokens_within_a_range(batch: SimpleNamespace) -> None:
    """With a share that takes all of them; of fewer, verl's draw is random."""
    new, real = batch.new.clone().requires_grad_(), batch.mask.bool()
    theirs = verl.clip_cov(batch.old, new, batch.advantages, batch.mask, LOW, HIGH, 1.0, 0.05, 0.8)
    ratio, pulls = (batch.new - batch.old).exp(), pulls_of(batch)
    clipped = torch.where(batch.advantages > 0, ratio > 1 + HIGH, ratio < 1 - LOW)
    marked = real & (pulls > 0.05) & (pulls < 0.8) & ~clipped
    assert marked.sum() > 3
    assert torch.isin(pulls[marked], spread_out(pulls[marked], sum(LENGTHS))).all()
    assert_equal(batch, verl.agg_loss(theirs, batch.mask, "token-mean"), new, "clip_cov", marked=marked)


def test_a_draw_is_spread_over_the_order() -> None:
    assert spread_out(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0]), 3).tolist() == [1.0, 3.0, 5.0]
    assert spread_out(torch.tensor([2.0, 1.0]), 3).tolist() == [1.0, 2.0]
    assert highest(torch.zeros(0), 0.5) == float("-inf")


@pytest.mark.parametrize(
    ("option", "level"), [("token_k1", "token"), ("seq_sum_k1", "sequence"), ("seq_mean_k1", "sequence_mean")]
)
def test_masks_by_the_engines_weight(batch: SimpleNamespace, option: str, level: MaskLevel) -> None:
    """verl bounds exp(sampling - old), the inverse."""
    kept = verl.rejection_by_k1(batch.engine, batch.mask, option, 0.8, 1.2)
    inputs = LossInputs(**packed(batch, batch.new, sampling_T=batch.old - batch.engine))
    ours = engine_kept(inputs, EngineMask(level, 1 / 1.2, 1 / 0.8))
    assert torch.equal(ours, kept[batch.mask.bool()])
    assert 0 < ours.sum() < len(ours)
