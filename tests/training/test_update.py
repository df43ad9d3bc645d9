"""An optimizer step: the same gradient for any split into micro-batches and over ranks, for every loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.prompts import groups, own_row
from support.updates import TINY, gradients_of, train_groups

from dapo_stages.config import TrainConfig
from dapo_stages.maths.loss_types import LOSSES, LossType, no_clips
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.shared_prefix.packing import Packed
from dapo_stages.training.batches import MicroBatch, MiniBatch, TrainGroup, micro_batches, mini_batch
from dapo_stages.training.choosing import COVARIANT
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.update import Trainer

LONGEST = 16
EVERYTHING: dict[str, Any] = {"beta": 0.1, "entropy_coefficient": 0.05, "engine_is_cap": 1.5, "logprob_chunk": 7}
OTHERS = ("dapo", "grpo", "dr_grpo", "gspo", "cispo")  # bnpo's mean is of a micro-batch
SPLITS = [*product(OTHERS, (False, True)), *product(("vespo", "clip_cov", "kl_cov"), (False,))]
COVARIANCE: dict[str, Any] = {"covariance_share": 0.2, "covariance_range": (0.0, 5.0)}


@dataclass
class Case:
    """Eight completions of three prompts, with old and reference logprobs that differ from the new ones."""

    checkpoint: Path
    groups: list[TrainGroup]
    old: dict[int, torch.Tensor]  # by the identity of the sample
    reference: dict[int, torch.Tensor]
    share: float = 1.0  # of tokens by their entropy, which no rounding changes

    def trainer(self, loss_type: str, **settings: Any) -> Trainer:
        policy = float64(self.checkpoint)
        config = TrainConfig(loss_type=loss_type, gradient_checkpointing=False, max_grad_norm=1e9, **settings)
        return Trainer(policy, config, 1.3, LONGEST, Optimizers(policy.model, config))

    def gradients(
        self, loss_type: str, share: MiniBatch, **settings: Any
    ) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        for batch in share.batches:
            batch.old = torch.cat([self.old[id(sample)] for sample in batch.samples])
            batch.reference = torch.cat([self.reference[id(sample)] for sample in batch.samples])
        return gradients_of(self.trainer(loss_type, **settings), share)


def float64(checkpoint: Path) -> Policy:
    policy = load_policy(checkpoint, TINY)
    policy.model.double()
    policy.attend("grouped")
    return policy


@pytest.fixture(scope="module")
def case(checkpoint: Path) -> Case:
    four, two, three, _ = train_groups(float64(checkpoint))
    found = [four, two, replace(three, samples=three.samples[:2])]
    made = Case(checkpoint, found, {}, {})
    (batch,) = micro_batches(found, 8)
    now = made.trainer("dapo").logprobs(batch).split([len(sample.ids) for sample in batch.samples])
    generator = torch.Generator().manual_seed(5)

    def apart(values: torch.Tensor) -> torch.Tensor:
        return values + 0.5 * torch.randn(values.shape, generator=generator, dtype=values.dtype)

    for sample, values in zip(batch.samples, now, strict=True):
        made.old[id(sample)], made.reference[id(sample)] = apart(values), apart(values)
    made.share = share_of_clear_cut(made.trainer("dapo"), batch)
    return made


def share_of_clear_cut(trainer: Trainer, batch: MicroBatch) -> float:
    """A share of the tokens with the highest entropy that ends where the next one has clearly less: not between the
    first tokens of a prompt's completions, which all have the same."""
    with torch.no_grad():
        entropies = trainer.worker.forward(trainer._rows(batch), batch.chunks)[1].sort().values
    gaps = entropies.diff()
    middle = len(gaps) // 4
    place = middle + int(gaps[middle:-middle].argmax())
    assert gaps[place] > 1e-5, "no two entropies in the middle are clearly apart"
    return 1 - (place + 0.5) / len(gaps)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys() and wanted
    whole = sum(value.pow(2).sum() for value in wanted.values()) ** 0.5
    assert whole > 1e-4
    for name, value in wanted.items():  # the model computes norms in float32, whatever its weights are
        assert (found[name] - value).norm() <= 1e-6 * whole, name


@pytest.mark.parametrize(("loss_type", "part"), SPLITS, ids=str)
def test_one_times_eight_two_times_four_and_eight_times_one_are_the_same_update(
    case: Case, loss_type: LossType, part: bool
) -> None:
    settings = {
        **EVERYTHING,
        "top_entropy_quantile": case.share if part else 1.0,
        "delta": 1.4 if LOSSES[loss_type].has_delta else None,
        **(COVARIANCE if loss_type in COVARIANT else {}),
    }
    results = []
    for most, number in ((8, 1), (4, 2), (1, 8)):
        share = mini_batch(case.groups, most)
        assert len(share.batches) == number
        results.append(case.gradients(loss_type, share, **settings))
    metrics, wanted = results[0]
    assert (metrics["clip_high"] > 0) == (LOSSES[loss_type].clips is not no_clips) and metrics["is_capped"] > 0
    assert metrics["ratio_min"] < 1 < metrics["ratio_max"]
    for other, gradients in results[1:]:
        assert other == pytest.approx(metrics, rel=1e-6)
        assert_same(gradients, wanted)


def test_a_second_pass_clips_against_the_policy_before_the_first(case: Case) -> None:
    """TRL's num_iterations: old_per_token_logps are those of when the completions came, in every pass over them."""
    trainer, share = case.trainer("dapo", learning_rate=1e-3, engine_is_cap=None), mini_batch(case.groups, 3)
    olds = [trainer.logprobs(batch) for batch in share.batches]
    trainer.update(share, 1.0)
    wanted, tokens, outside = 0.0, 0, 0
    for batch, old in zip(share.batches, olds, strict=True):
        start = 0
        for sample in batch.samples:
            end = start + len(sample.ids)
            ratios = (trainer.logprobs(batch) - old)[start:end].exp().tolist()
            engine = (old[start:end] - torch.tensor(sample.sampling)).exp().tolist()
            for ratio, weight, correction in zip(ratios, sample.weights, engine, strict=True):
                inside = min(max(ratio, 0.8), 1.28)
                wanted -= weight * correction * min(ratio * sample.advantage, inside * sample.advantage)
                outside += inside != ratio
            start, tokens = end, tokens + len(sample.ids)
    metrics = trainer.update(share, 1.0)
    assert outside > 0 and metrics["loss"] == pytest.approx(wanted / tokens, rel=1e-6)


def test_bnpo_is_the_mean_of_the_means_of_its_micro_batches(case: Case) -> None:
    """By definition it depends on how the step is split; with one micro-batch it equals dapo."""
    _, whole = case.gradients("bnpo", mini_batch(case.groups, 8), beta=0.1)
    _, dapo = case.gradients("dapo", mini_batch(case.groups, 8), beta=0.1)
    assert_same(whole, dapo)
    parts = micro_batches(case.groups, 4)
    assert len({part.tokens for part in parts}) == 2
    means = [
        case.gradients("dapo", MiniBatch([part], part.tokens, len(part.samples), 1), beta=0.1)[1] for part in parts
    ]
    _, found = case.gradients("bnpo", mini_batch(case.groups, 4), beta=0.1)
    assert_same(found, {name: (means[0][name] + means[1][name]) / 2 for name in whole})


@pytest.mark.parametrize("loss_type", [*OTHERS, "bnpo"])
@pytest.mark.parametrize("most", [8, 3])
def test_the_shares_of_two_ranks_add_up_to_the_update_of_one(case: Case, loss_type: str, most: int) -> None:
    """Without a launch: each share is computed like a single process."""
    single, wanted = case.gradients(loss_type, mini_batch(case.groups, most), **EVERYTHING)
    shares = [case.gradients(loss_type, share_of(case.groups, most, rank), **EVERYTHING) for rank in (0, 1)]
    assert_same({name: shares[0][1][name] + shares[1][1][name] for name in wanted}, wanted)
    assert shares[0][0]["loss"] + shares[1][0]["loss"] == pytest.approx(single["loss"], rel=1e-6)
    assert shares[0][0]["tokens"] + shares[1][0]["tokens"] == single["tokens"]


def share_of(found: Sequence[TrainGroup], most: int, rank: int) -> MiniBatch:
    return mini_batch(found, most, ranks=2, rank=rank, chunk=EVERYTHING["logprob_chunk"])


def test_a_masked_completion_changes_nothing(case: Case) -> None:
    """Overlong filtering: a truncated completion in the batch is neither in the loss nor in its normalizer."""
    silent = replace(case.groups[0], samples=case.groups[0].samples[:1], counts=False)
    for loss_type in [*OTHERS, "bnpo"]:
        _, wanted = case.gradients(loss_type, mini_batch(case.groups, 99), **EVERYTHING)
        _, found = case.gradients(loss_type, mini_batch([*case.groups, silent], 99), **EVERYTHING)
        assert_same(found, wanted)


@pytest.mark.parametrize("chunk", [4, 1024])
def test_the_gradient_of_the_entropy_is_that_of_eager_rows(checkpoint: Path, chunk: int) -> None:
    policy = float64(checkpoint)
    weight = policy.base.get_output_embeddings().weight
    found = groups(policy)
    _, entropy = GroupLogprobs(policy, 1.3, chunk, entropy_gradient=True)(policy.batch(found))
    (gradient,) = torch.autograd.grad(entropy.pow(2).sum(), weight)
    policy.attend("separate")
    eager = []
    for group in found:
        for ids in group.completions:
            row = own_row(policy, group.prompt, ids)
            row = {name: v.double() if v.is_floating_point() else v for name, v in row.items()}
            logits = policy.base(**row).logits[0, len(group.prompt.ids) - 1 : -1]
            eager.append(torch.distributions.Categorical(logits=logits[:, ~policy.suppressed] / 1.3).entropy())
    wanted = torch.cat(eager)
    torch.testing.assert_close(entropy, wanted, atol=1e-9, rtol=1e-9)
    (by_hand,) = torch.autograd.grad(wanted.pow(2).sum(), weight)
    assert (gradient - by_hand).norm() <= 1e-6 * by_hand.norm()


@pytest.mark.parametrize("bonus", [False, True])
def test_no_logits_wait_for_the_backward_pass_where_they_are_computed_in_chunks(policy: Policy, bonus: bool) -> None:
    policy.attend("grouped")
    policy.model.train()
    batch = policy.batch(groups(policy))
    assert isinstance(batch, Packed)

    def kept(chunk: int) -> int:
        rows = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal rows
            rows += tensor.numel() // policy.vocabulary if tensor.shape[-1:] == (policy.vocabulary,) else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _, entropy = GroupLogprobs(policy, 1.0, chunk, entropy_gradient=bonus)(batch)
        assert entropy.requires_grad == bonus
        return rows

    assert kept(4) == 0
    assert kept(1024) >= len(batch.targets)


def test_without_a_reference_there_is_no_kl_to_it(case: Case) -> None:
    share = mini_batch(case.groups, 8)
    batch: MicroBatch = share.batches[0]
    assert batch.old is None
    metrics, _ = gradients_of(case.trainer("dapo"), share)
    assert metrics["kl"] != metrics["kl"]  # not a number: null in the table
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1 and metrics["update_kl"] == 0
