"""Loss and gradient equal TRL's own code on the same logprobs; TRL's trainer runs on a stub of itself."""

from collections import defaultdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.losses import loss_of
from torch import Tensor

from dapo_stages.maths.engine_correction import EngineMask
from dapo_stages.maths.kl import KlGradient, KlTerm
from dapo_stages.maths.loss_inputs import Level
from dapo_stages.maths.loss_types import LOSSES, LossType, level_of, normalizer_of
from dapo_stages.maths.marked_tokens import entropy_threshold

if TYPE_CHECKING:
    from trl import GRPOTrainer

pytest.importorskip("trl", reason="the comparison with TRL needs TRL")

LONGEST = 12
SAPO = (1.0, 1.0625)  # TRL's are float32, in which its 1.05 is another number
LENGTHS = (12, 7, 1, 9, 0)  # the last completion is truncated and masked


@pytest.fixture(scope="module")
def trainer() -> type["GRPOTrainer"]:
    from trl import GRPOTrainer

    found: type[GRPOTrainer] = GRPOTrainer
    return found


@pytest.fixture(scope="module")
def batch() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), LONGEST)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    new = -1.0 + noise(0.3)
    return SimpleNamespace(
        new=new,
        old=new + noise(0.4),
        engine=noise(0.5),
        reference=new + noise(0.4),
        entropy=torch.rand(shape, generator=generator, dtype=torch.float64),
        advantages=torch.tensor([1.0, -1.5, 0.7, -0.2, 3.0], dtype=torch.float64),
        mask=(torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]).to(torch.float64),
    )


def trl_loss(
    trainer: type["GRPOTrainer"],
    batch: SimpleNamespace,
    loss_type: LossType,
    level: Level | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    entropy: float = 1.0,
    cap: float | None = None,
    mode: str = "token_truncate",
    floor: float | None = None,
    bonus: float = 0.0,
    kl: KlGradient = "own",
    off_policy: float | None = None,
) -> tuple[float, Tensor, Tensor | None, dict[str, list[float]]]:
    """What GRPOTrainer._compute_loss gives for the batch, and its gradients with respect to logprobs and entropies.

    gspo is TRL's grpo with a ratio of the sequence, as its documentation says, and luspo's is one, too; TRL's
    epsilon_high of cispo is the cap itself, ours that of the others, one less.
    """
    new, entropies = batch.new.clone().requires_grad_(), batch.entropy.clone().requires_grad_()
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, entropies, None),
        _entropy_bonus_enabled=bonus != 0,
        entropy_coef=bonus,
        use_adaptive_entropy=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(
            num_processes=1,
            sync_gradients=True,
            gather=lambda x: x,
            reduce=lambda x, reduction: x,
            pad_across_processes=lambda x, **_: x,
        ),
        args=SimpleNamespace(
            delta=delta,
            use_bias_correction_kl=kl == "corrected",
            steps_per_generation=1,
            sapo_temperature_pos=SAPO[0],
            sapo_temperature_neg=SAPO[1],
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
        ),
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        epsilon_high=1.28 if loss_type == "cispo" else 0.28,
        epsilon_low=0.2,
        importance_sampling_level="sequence" if loss_type in ("gspo", "luspo") else level or "token",
        get_gamma_weights=trainer.get_gamma_weights,
        get_off_policy_mask=trainer.get_off_policy_mask,
        loss_type="grpo" if loss_type == "gspo" else loss_type,
        max_completion_length=LONGEST,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=off_policy,
        top_entropy_quantile=entropy,
        use_vllm=cap is not None,
        vllm_importance_sampling_correction=True,
    )
    stub.get_high_entropy_mask = lambda *arguments: trainer.get_high_entropy_mask(stub, *arguments)
    ids = torch.zeros(batch.new.shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": batch.mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.reference,
        "num_items_in_batch": batch.mask.sum(),
    }
    if cap is not None:  # as _generate_and_score_completions prepares it
        level_, _, what = mode.partition("_")
        difference = batch.engine * batch.mask
        if level_ == "sequence":
            difference = difference.sum(-1, keepdim=True)
        ratio = torch.exp(difference)
        outside = (ratio < (floor or 0.0)) | (ratio > cap)
        inputs["importance_sampling_ratio"] = (
            ratio.clamp(min=floor, max=cap) if what == "truncate" else ratio.masked_fill(outside, 0.0)
        )
        inputs["sampling_per_token_logps"] = batch.old - batch.engine
    loss = trainer._compute_loss(stub, None, inputs)
    loss.backward()
    return loss.item(), new.grad, entropies.grad, stub._metrics["train"]


def our_loss(
    batch: SimpleNamespace,
    loss_type: LossType,
    level: Level | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    entropy: float = 1.0,
    cap: float | None = None,
    mode: str = "token_truncate",
    floor: float | None = None,
    bonus: float = 0.0,
    kl: KlGradient = "own",
    off_policy: float | None = None,
) -> tuple[float, Tensor, Tensor | None, dict[str, float]]:
    """The same from policy_loss: tokens packed in one row, all weights 1.

    The masked completion keeps a token in the row, so that packing and mask are not the same.
    """
    cap_level: Level = "sequence" if mode.startswith("sequence") else "token"
    masks = cap is not None and mode.endswith("_mask")
    new, entropies = batch.new.clone().requires_grad_(), batch.entropy.clone().requires_grad_()
    real = batch.mask.bool()
    real[-1, 0] = True
    rows = torch.arange(len(LENGTHS))[:, None].expand(real.shape)[real]
    mask = batch.mask[real].bool()
    chosen = batch.entropy[real] >= entropy_threshold(batch.entropy[real][mask], entropy)
    loss, metrics = loss_of(
        new_T=new[real],
        old_T=batch.old[real],
        sampling_T=None if cap is None else (batch.old - batch.engine)[real],
        advantages_T=batch.advantages[rows],
        mask_T=mask,
        weights_T=torch.ones(len(mask), dtype=torch.float64),
        normalizer=normalizer_of(loss_type, float(mask.sum()), len(LENGTHS), LONGEST),
        sequence_ids_T=rows,
        epsilon_low=0.2,
        epsilon_high=0.28,
        delta=delta,
        engine_is_cap=None if masks else cap or 2.0,
        engine_is_floor=None if masks else floor,
        engine_is_level=cap_level,
        engine_mask=EngineMask(cap_level, floor, cap) if masks else None,
        off_policy_threshold=off_policy,
        level=level,
        loss_type=loss_type,
        sapo_temperatures=SAPO,
        beta=beta,
        kl=KlTerm(gradient=kl),
        reference_T=batch.reference[real] if beta else None,
        entropy_T=entropies[real],
        entropy_mask_T=chosen,
        entropy_coefficient=bonus,
        entropy_normalizer=float((chosen & mask).sum()),
    )
    loss.backward()
    assert new.grad is not None
    return loss.item(), new.grad, entropies.grad, {name: value.item() for name, value in metrics.items()}


OF_TRL: tuple[LossType, ...] = (
    "dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo", "sapo", "luspo", "vespo",
)  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {},
    {"delta": 1.5},
    {"beta": 0.1},
    {"beta": 0.1, "kl": "corrected"},
    {"entropy": 0.4, "beta": 0.1},
    {"cap": 2.0},
    {"level": "sequence"},
    {"level": "sequence", "delta": 1.4, "beta": 0.1},
    {"cap": 1.2, "delta": 1.5, "beta": 0.1, "entropy": 0.5},
    {"cap": 1.2, "floor": 0.8},
    {"cap": 1.5, "mode": "sequence_truncate"},
    {"cap": 1.5, "floor": 0.9, "mode": "token_mask", "beta": 0.1},
    {"cap": 1.5, "floor": 0.6, "mode": "sequence_mask"},
    {"off_policy": 0.02},
    {"off_policy": 0.02, "cap": 1.5, "beta": 0.1},
    {"bonus": 0.3},
    {"bonus": 0.3, "entropy": 0.4, "beta": 0.1, "level": "sequence"},
]


@pytest.mark.parametrize("loss_type", OF_TRL)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_loss_and_gradient_equal_trl(
    trainer: type["GRPOTrainer"], batch: SimpleNamespace, loss_type: LossType, options: dict[str, Any]
) -> None:
    """If tokens of a completion count differently, TRL's ratio of the sequence spreads the gradient over all of
    them; ours leaves it with the token that counts (GSPO's token form), so that sums over a completion are the same.
    """
    kind = LOSSES[loss_type]
    if not kind.has_delta:
        options = {name: value for name, value in options.items() if name != "delta"}
    if kind.levels == ("token",):
        options = {name: value for name, value in options.items() if name != "level"}
    if loss_type == "vespo" and "mask" in options.get("mode", ""):
        pytest.skip("TRL counts a masked token as one of weight 1e-8 in VESPO's product, and does not mask it")
    if kind.levels == ("sequence",) and options.get("kl") == "corrected":
        pytest.skip("TRL weighs the KL with the ratio of the sequence then, we always with that of the token")
    theirs, their_gradient, their_entropy_gradient, _ = trl_loss(trainer, batch, loss_type, **options)
    ours, our_gradient, our_entropy_gradient, _ = our_loss(batch, loss_type, **options)
    assert ours == pytest.approx(theirs, abs=1e-10)
    level = level_of(loss_type, options.get("level"))
    by_token = "entropy" in options or (options.get("cap") and "sequence" not in options.get("mode", ""))
    if level == "sequence" and loss_type != "cispo" and by_token:
        our_gradient, their_gradient = our_gradient.sum(-1), their_gradient.sum(-1)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-10, rtol=0)
    assert their_gradient.abs().sum() > 0
    if options.get("bonus"):
        assert their_entropy_gradient is not None
        torch.testing.assert_close(our_entropy_gradient, their_entropy_gradient, atol=1e-10, rtol=0)
        assert their_entropy_gradient.abs().sum() > 0
    else:
        assert our_entropy_gradient is None or not our_entropy_gradient.any()


def test_masks_of_this_batch_mask_something(batch: SimpleNamespace) -> None:
    *_, engine = our_loss(batch, "dapo", cap=1.5, floor=0.6, mode="sequence_mask")
    *_, moved = our_loss(batch, "dapo", off_policy=0.02)
    assert 0 < engine["engine_masked"] < engine["tokens"]
    assert 0 < moved["off_policy_masked"] < moved["tokens"]


def test_clip_shares_and_kl_equal_trl(trainer: type["GRPOTrainer"], batch: SimpleNamespace) -> None:
    *_, theirs = trl_loss(trainer, batch, "dapo", beta=0.1)
    *_, ours = our_loss(batch, "dapo", beta=0.1)
    assert ours["clipped_low"] / ours["tokens"] == pytest.approx(theirs["clip_ratio/low_mean"][0])
    assert ours["clipped_high"] / ours["tokens"] == pytest.approx(theirs["clip_ratio/high_mean"][0])
    assert ours["kl_sum"] / ours["tokens"] == pytest.approx(theirs["kl"][0])
    assert ours["entropy_sum"] / ours["tokens"] == pytest.approx(theirs["entropy"][0])
    assert ours["clipped_low"] > 0
    assert ours["clipped_high"] > 0
