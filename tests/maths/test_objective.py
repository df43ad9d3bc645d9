"""The objective on tokens small enough to work out by hand; test_objective_trl.py compares it with TRL."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from support.losses import loss_of
from torch import Tensor

from dapo_stages.maths.kl import KlTerm
from dapo_stages.maths.loss_types import normalizer_of
from dapo_stages.maths.marked_tokens import entropy_threshold
from dapo_stages.maths.objective import merge_metrics

LN2 = math.log(2)
CLIP_HIGHER = {"epsilon_low": 0.2, "epsilon_high": 0.28}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def case(
    ratios: list[float],
    advantages: list[float],
    weights: list[float] | None = None,
    mask: Sequence[int] | None = None,
    ids: list[int] | None = None,
) -> dict[str, Any]:
    """Arguments of loss_of with these ratios, an engine that agrees with the trainer, and a leaf for gradients."""
    new = torch.log(tensor(*ratios)).requires_grad_()
    old = torch.zeros(len(ratios), dtype=torch.float64)
    return {
        "new_T": new,
        "old_T": old,
        "sampling_T": old.clone(),
        "advantages_T": tensor(*advantages),
        "mask_T": torch.tensor(mask or [True] * len(ratios)),
        "weights_T": tensor(*(weights or [1.0] * len(ratios))),
        "sequence_ids_T": torch.tensor(ids or [0] * len(ratios), dtype=torch.int64),
        "normalizer": 1.0,
        **CLIP_HIGHER,
    }


def test_two_weighted_completions_and_a_masked_one() -> None:
    arguments = case(
        ratios=[1.5, 0.5, 0.5, 1.0, 1.0],
        advantages=[1.0, 1.0, -2.0, 9.0, math.nan],
        weights=[2.0, 0.5, 1.0, 3.0, math.nan],
        mask=[True, True, True, False, False],
        ids=[0, 0, 1, 2, 2],
    )
    arguments["sampling_T"] = tensor(-2 * LN2, 0.0, 0.0, math.nan, -math.inf)  # the engine was 4 times less sure
    arguments["normalizer"] = normalizer_of("dapo", tokens=3, completions=2, max_completion_length=16)
    loss, metrics = loss_of(**arguments)
    loss.backward()
    # token 0: factor 4 capped to 2, ratio 1.5 clipped to 1.28: 2.0 · 2 · -1.28 = -5.12
    # token 1: 0.5 · -0.5 = -0.25          token 2: min(-1, 0.8 · -2) = -1.6, so +1.6
    assert loss.item() == pytest.approx((-5.12 - 0.25 + 1.6) / 3)
    # clipped tokens have no gradient; token 1 has -w · ratio · A / 3
    torch.testing.assert_close(arguments["new_T"].grad, tensor(0.0, -0.25 / 3, 0.0, 0.0, 0.0))
    sums = {name: value.item() for name, value in metrics.items()}
    expected = {
        "tokens": 3,
        "weight_sum": 3.5,
        "log_ratio_sum": math.log(1.5) + 2 * LN2,
        "ratio_sum": 2.5,
        "ratio_min": 0.5,
        "ratio_max": 1.5,
        "clipped_low": 1,
        "clipped_high": 1,
        "clipped_dual": 0,
        "kl_sum": 0,
        "update_kl_sum": 2.5 - math.log(1.5) + 2 * LN2 - 3,
        "entropy_sum": 0,
        "engine_is_sum": 4,
        "engine_is_max": 4,
        "engine_capped": 1,
        "engine_kl_sum": 3 - 2 * LN2,
    }
    assert sums == pytest.approx(expected)


def test_without_engine_logprobs_there_is_no_correction() -> None:
    arguments = case([1.1], [1.0])
    with_engine = loss_of(**{**arguments, "sampling_T": tensor(-LN2)})[0]
    without = loss_of(**{**arguments, "sampling_T": None})[0]
    assert (with_engine.item(), without.item()) == pytest.approx((-2.2, -1.1))


def test_gradient_reaches_the_new_logprobs_only() -> None:
    arguments = case([1.0], [1.0])
    new = arguments["new_T"]  # 0, and in the graph of all others
    others = {"old_T": new, "sampling_T": 2 * new - 0.5, "reference_T": 2 * new + LN2}
    loss, _ = loss_of(**{**arguments, **others}, beta=0.1, kl=KlTerm(gradient="own"))
    loss.backward()
    # the engine's factor times the derivative of -ratio, and 1 - exp(ln 2) of the KL
    assert new.grad.item() == pytest.approx(-math.exp(0.5) - 0.1)


def test_the_engines_factor_is_not_capped_from_below() -> None:
    assert loss_of(**{**case([1.0], [1.0]), "sampling_T": tensor(3 * LN2)})[0].item() == pytest.approx(-0.125)


def test_the_weight_is_on_the_kl_too() -> None:
    arguments = case([1.0], [0.0], weights=[2.0])
    loss, metrics = loss_of(**arguments, beta=0.1, reference_T=tensor(LN2), kl=KlTerm(gradient="own"))
    loss.backward()
    # exp(ln 2) - ln 2 - 1 and its derivative 1 - exp(ln 2)
    assert loss.item() == pytest.approx(2 * 0.1 * (1 - LN2))
    assert arguments["new_T"].grad.item() == pytest.approx(-0.2)
    assert metrics["kl_sum"].item() == pytest.approx(1 - LN2)


def test_kl_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        loss_of(**case([1.0], [1.0]), beta=0.1)


def test_dual_clip_bounds_the_loss_of_a_large_ratio_with_negative_advantage() -> None:
    arguments = case([5.0, 5.0], [-1.0, 1.0])
    loss, metrics = loss_of(**arguments, delta=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(3.0 - 1.28)
    assert arguments["new_T"].grad.tolist() == [0.0, 0.0]
    assert metrics["clipped_dual"].item() == 1
    assert loss_of(**arguments)[0].item() == pytest.approx(5.0 - 1.28)


def test_grpo_counts_completions_alike_and_dapo_tokens() -> None:
    arguments = case([1.0] * 4, [3.0, 3.0, 3.0, -1.0], ids=[0, 0, 0, 1])
    dapo = loss_of(**{**arguments, "normalizer": normalizer_of("dapo", 4, 2, 10)})[0]
    grpo = loss_of(**{**arguments, "normalizer": normalizer_of("grpo", 4, 2, 10)}, loss_type="grpo")[0]
    dr_grpo = loss_of(**{**arguments, "normalizer": normalizer_of("dr_grpo", 4, 2, 10)}, loss_type="dr_grpo")[0]
    assert (dapo.item(), grpo.item(), dr_grpo.item()) == pytest.approx((-8 / 4, (-3 + 1) / 2, -8 / 20))


def test_the_length_of_a_completion_counts_only_its_tokens_in_the_loss() -> None:
    arguments = case([1.0] * 3, [2.0] * 3, mask=[True, True, False])
    assert loss_of(**arguments, loss_type="grpo")[0].item() == pytest.approx(-2.0)


def test_the_sequence_ratio_has_the_gradient_of_weighted_tokens() -> None:
    arguments = case([math.exp(0.2), 1.0], [1.0, 1.0], weights=[1.5, 0.5])
    loss, _ = loss_of(**{**arguments, "normalizer": 2.0}, level="sequence")
    loss.backward()
    ratio = math.exp(0.1)  # of both tokens
    assert loss.item() == pytest.approx(-ratio)
    torch.testing.assert_close(arguments["new_T"].grad, tensor(-1.5 * ratio / 2, -0.5 * ratio / 2))


def test_cispo_caps_the_ratio_and_keeps_the_gradient_of_every_token() -> None:
    arguments = case([math.exp(0.5), math.exp(-1.5), 2.0, 4.0], [1.0, 1.0, -1.0, 9.0], [1, 2, 1, 1], [1, 1, 1, 0])
    loss, metrics = loss_of(**{**arguments, "normalizer": normalizer_of("cispo", 3, 1, 9)}, loss_type="cispo")
    loss.backward()
    # the old logprobs are 0: e^0.5 and 2 are capped to 1.28 for either sign of the advantage, e^-1.5 is unchanged
    low = 2 * math.exp(-1.5)
    assert loss.item() == pytest.approx(-(1.28 * 0.5 + low * -1.5 - 1.28 * LN2) / 3)
    torch.testing.assert_close(arguments["new_T"].grad, tensor(-1.28 / 3, -low / 3, 1.28 / 3, 0.0))
    assert (metrics["clipped_high"].item(), metrics["clipped_low"].item()) == (2, 0)


def test_gspo_is_the_mean_over_completions_of_the_ratio_of_each() -> None:
    # Ratios of the first completion: the geometric mean of 1.2, 1.2 and 1 / 1.2 ** 0.5, that is 1.2 ** 0.5.
    arguments = case([1.2, 1.2, 1.2**-0.5, 0.5], [2.0, 2.0, 2.0, -1.0], ids=[0, 0, 0, 1])
    loss, metrics = loss_of(**{**arguments, "normalizer": normalizer_of("gspo", 4, 2, 9)}, loss_type="gspo")
    loss.backward()
    root = 1.2**0.5
    assert loss.item() == pytest.approx((-2 * root + 0.8) / 2)  # the second is clipped from below
    torch.testing.assert_close(arguments["new_T"].grad, tensor(*[-2 * root / 3 / 2] * 3, 0.0))
    assert metrics["clipped_low"].item() == 1
    assert (metrics["ratio_min"].item(), metrics["ratio_max"].item()) == pytest.approx((0.5, root))


def test_the_engines_factor_of_a_sequence_is_the_product_of_its_tokens() -> None:
    arguments = case([1.0] * 4, [1.0] * 4, mask=[True, True, True, False], ids=[0, 0, 1, 1])
    arguments["sampling_T"] = tensor(-LN2, LN2 / 2, 3 * LN2, math.nan)
    loss, metrics = loss_of(**arguments, engine_is_level="sequence", engine_is_cap=1.25)
    # 2 · 2^-½ = 1.414, capped to 1.25, for both tokens of the first; 1/8 for the second
    assert loss.item() == pytest.approx(-(1.25 * 2 + 0.125))
    assert metrics["engine_is_max"].item() == pytest.approx(2**0.5)
    assert metrics["engine_capped"].item() == 2


def test_the_bonus_is_the_mean_entropy_of_the_tokens_in_the_policy_term() -> None:
    arguments = case([1.0] * 4, [0.0] * 4, weights=[9.0, 1.0, 1.0, 1.0], mask=[True, True, True, False])
    entropy = tensor(1.0, 0.5, 2.0, math.nan).requires_grad_()
    options: dict[str, Any] = {"entropy_T": entropy, "entropy_mask_T": torch.tensor([True, False, True, True])}
    loss, metrics = loss_of(**arguments, **options, entropy_coefficient=0.1, entropy_normalizer=2)
    loss.backward()
    assert loss.item() == pytest.approx(-0.1 * 1.5)  # independent of the token weights
    torch.testing.assert_close(entropy.grad, tensor(-0.05, 0.0, -0.05, 0.0))
    assert metrics["entropy_sum"].item() == pytest.approx(3.5)
    with pytest.raises(ValueError, match="entropies"):
        loss_of(**arguments, entropy_coefficient=0.1)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"loss_type": "gspo", "level": "token"}, "gspo needs level sequence"),
        ({"loss_type": "cispo", "delta": 3.0}, "delta must be None for cispo"),
    ],
)
def test_kinds_that_contradict_each_other_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        loss_of(**case([1.0], [1.0]), **options)


def test_micro_batches_add_up_to_the_mini_batch() -> None:
    arguments = case([1.2, 0.7, 1.4], [1.0, -1.0, 0.5], weights=[0.5, 1.5, 1.0], ids=[0, 0, 1])
    arguments["normalizer"] = 3.0
    loss, metrics = loss_of(**arguments)
    packed = [name for name in arguments if name.endswith("_T")]
    parts = [
        loss_of(**{**arguments, **{name: arguments[name][rows] for name in packed}})
        for rows in (slice(0, 2), slice(2, 3))
    ]
    assert sum(part[0].item() for part in parts) == pytest.approx(loss.item())
    merged = merge_metrics(merge_metrics({}, parts[0][1]), parts[1][1])
    assert {name: value.item() for name, value in merged.items()} == pytest.approx(
        {name: value.item() for name, value in metrics.items()}
    )


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("tokens", [0, 2])
def test_no_token_in_the_loss_is_a_zero_that_backward_accepts(level: Literal["token", "sequence"], tokens: int) -> None:
    new = torch.full((tokens,), -1.0, requires_grad=True)
    other = torch.full((tokens,), math.nan)
    mask, ids = torch.zeros(tokens, dtype=torch.bool), torch.zeros(tokens, dtype=torch.int64)
    normalizer = normalizer_of("grpo", 0, 0, 8)
    options: dict[str, Any] = {
        "new_T": new,
        "old_T": other,
        "sampling_T": other,
        "advantages_T": other,
        "weights_T": other,
        "mask_T": mask,
        "normalizer": normalizer,
        "sequence_ids_T": ids,
        "level": level,
        "loss_type": "grpo",
        **CLIP_HIGHER,
    }
    loss, metrics = loss_of(**options)
    loss.backward()
    assert loss.item() == 0.0
    assert new.grad is not None and new.grad.tolist() == [0.0] * tokens
    assert metrics["tokens"].item() == 0


def test_an_enormous_ratio_stays_finite() -> None:
    arguments = case([1.0, 1.0], [0.0, -1.0])
    arguments["old_T"] = tensor(-1e4, -1e4)
    loss, metrics = loss_of(**{**arguments, "sampling_T": None})
    loss.backward()
    assert loss.isfinite()
    assert arguments["new_T"].grad.isfinite().all()
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["ratio_min"].item() == pytest.approx(math.exp(20))


def test_entropy_takes_tokens_out_of_the_policy_term_only() -> None:
    arguments = case([1.0, 1.0], [1.0, 1.0])
    loss, _ = loss_of(**arguments, beta=1.0, reference_T=tensor(LN2, LN2), entropy_mask_T=torch.tensor([True, False]))
    assert loss.item() == pytest.approx(-1 + 2 * (1 - LN2))


def test_the_top_share_by_entropy_stays() -> None:
    entropy, mask = torch.tensor([0.1, 0.9, 0.5, 0.7, 5.0]), torch.tensor([True, True, True, True, False])
    kept = mask & (entropy >= entropy_threshold(entropy[mask], 0.5))
    assert kept.tolist() == [False, True, False, True, False]
    assert (entropy[mask] >= entropy_threshold(entropy[mask], 1.0)).all()


@pytest.mark.parametrize("count", [1, 31, 1001, 1002])
@pytest.mark.parametrize("quantile", [1.0, 0.8, 0.6, 0.5, 0.2, 0.01])
def test_the_tokens_above_the_threshold_are_those_of_torchs_quantile(quantile: float, count: int) -> None:
    entropy = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = entropy >= torch.quantile(entropy, 1 - quantile)
    least = entropy_threshold(entropy, quantile)
    assert torch.equal(entropy >= least, expected)


def test_the_threshold_is_no_tokens_entropy() -> None:
    """The top 60 % of 31 tokens begin at index 12: the threshold is halfway between it and the one below."""
    assert entropy_threshold(torch.arange(31.0), 0.6) == 11.5


def test_the_threshold_is_found_among_more_values_than_torch_takes() -> None:
    entropy = torch.arange(2**24 + 1, dtype=torch.float32).flip(0)
    assert entropy_threshold(entropy, 0.5) == 2**23 - 0.5


@pytest.mark.parametrize("argument", [{"loss_type": "ppo"}, {"level": "word"}])
def test_unknown_kinds_are_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unknown"):
        loss_of(**case([1.0], [1.0]), **argument)


def test_an_unknown_normalizer_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown loss type 'ppo'"):
        normalizer_of("ppo", 1, 1, 1)
