"""Tokens outside the loss mask of a completion: in the row that the policy sees, but in no sum of the loss."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.groups import sampled, weigh
from support.naive_rows import TEMPERATURE, Naive, Row, rounded_nowhere
from support.updates import TINY, gradients_of, train_groups

from dapo_stages.config import TrainConfig
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.training.batches import Sample, TrainGroup, mini_batch
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.train_groups import read_groups
from dapo_stages.training.update import Trainer

BETA, BONUS, CAP = 0.3, 0.05, 2.0


def masked(sample: Sample) -> Sample:
    """Every third token was given to the policy; of a single one, none."""
    return replace(sample, mask=bytes(place % 3 != 1 for place in range(len(sample.ids))))


def left_out(groups: list[TrainGroup]) -> list[TrainGroup]:
    """The first two groups with masks, the third without."""
    changed = [replace(group, samples=[masked(sample) for sample in group.samples]) for group in groups[:2]]
    return [*changed, *groups[2:]]


def reference(sample: Sample) -> torch.Tensor:
    """Reference logprobs of a completion, [C]: those of the engine, moved."""
    moved = [value + 0.1 * (place % 4) for place, value in enumerate(sample.sampling)]
    return torch.tensor(moved, dtype=torch.float64)


def loss_of(rows: list[Row], *, of_completions: bool) -> torch.Tensor:
    """DAPO's loss, or GRPO's mean over completions, on policy: the tokens outside the mask are cut from each row.

    Their KL term has the gradient of KL(policy || reference) on sampled tokens, (new - ref) times that of new.
    """
    each, entropies = [], []
    for row in rows:
        inside = torch.tensor([place for place, kept in enumerate(row.sample.in_loss) if kept])
        new, ref, entropy = row.new[inside], reference(row.sample)[inside], row.entropy[inside]
        weights, sampling = (
            torch.tensor(values, dtype=torch.float64)[inside] for values in (row.sample.weights, row.sample.sampling)
        )
        now = new.detach()
        gain = (now - sampling).exp().clamp(max=CAP) * (new - now).exp() * row.sample.advantage
        value = (ref - now).exp() - (ref - now) - 1
        kl = value + (now - ref) * (new - now)
        each.append(weights * (BETA * kl - gain))
        entropies.append(entropy)
    mean = torch.stack([one.mean() for one in each]).mean() if of_completions else torch.cat(each).mean()
    return mean - BONUS * torch.cat(entropies).mean()


@pytest.mark.parametrize(("loss_type", "most"), [("dapo", 3), ("grpo", 99)])
def test_a_masked_update_is_that_of_rows_without_these_tokens(checkpoint: Path, loss_type: Any, most: int) -> None:
    naive = Naive(checkpoint)
    groups = left_out(train_groups(naive.policy))
    rows = list(naive.rows(groups))
    loss = loss_of(rows, of_completions=loss_type == "grpo")
    wanted = naive.gradients(loss)
    policy = rounded_nowhere(load_policy(checkpoint, TINY))
    policy.attend("grouped")
    policy.model.train()
    config = TrainConfig(
        loss_type=loss_type, beta=BETA, entropy_coefficient=BONUS, engine_is_cap=CAP, gradient_checkpointing=False,
        max_grad_norm=1e9,
    )  # fmt: skip
    trainer = Trainer(policy, config, TEMPERATURE, 16, Optimizers(policy.model, config))
    share = mini_batch(groups, most)
    for batch in share.batches:
        batch.reference = torch.cat([reference(sample) for sample in batch.samples])
    metrics, found = gradients_of(trainer, share)
    kept = sum(sum(row.sample.in_loss) for row in rows)
    assert metrics["tokens"] == kept < sum(len(row.sample.ids) for row in rows)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert found.keys() == wanted.keys()
    whole = sum(value.pow(2).sum() for value in wanted.values()) ** 0.5
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-9 * whole, name


def given(completion_id: str, tokens: int) -> list[bool] | None:
    """Every third token of the first completion was given to the policy, the second has no mask, of the third it wrote
    nothing."""
    third: list[bool] = [place % 3 != 2 for place in range(tokens)]
    return {"s0": third, "s2": [False] * tokens}.get(completion_id[-2:])


def test_train_step_reads_the_masks_and_refuses_a_completion_without_a_token(tmp_path: Path) -> None:
    policy: Any = SimpleNamespace(tokens=SimpleNamespace(vision_ids=frozenset(), vocabulary=100), processor=None)
    inputs = sampled(tmp_path, 1, [[1, 0, 0, 0]], masks=given)
    weights = Source(weigh(tmp_path / "weights", inputs))
    plan: Any = SimpleNamespace(policy=SimpleNamespace(version=0))
    plan.inputs = {"rollouts": Source(tmp_path / "iter-0001/rollout"), "weights": weights}
    with ExitStack() as stack:
        (group,) = read_groups(stack, plan, policy)
    assert [sample.mask for sample in group.samples] == [bytes([1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1]), None, None]
    sampled(tmp_path / "other", 1, [[1, 0, 0, 0]], masks=lambda key, tokens: [False] * tokens)
    plan.inputs["rollouts"] = Source(tmp_path / "other/iter-0001/rollout")
    with ExitStack() as stack, pytest.raises(DataError, match="its loss_mask leaves out all of its tokens"):
        read_groups(stack, plan, policy)
