"""Optimizer steps on a few hand-made groups, by one process or by the ranks of a launch, with their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dapo_stages.config import ModelConfig, TrainConfig
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.shared_prefix.packing import Prompt
from dapo_stages.training.batches import MiniBatch, Sample, TrainGroup, mini_batch
from dapo_stages.training.launching.frameworks import join
from dapo_stages.training.launching.rank_workers import Step
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.update import Trainer
from support.prompts import groups

TINY = ModelConfig(name="embedded", dtype="float32", device="cpu")
# Each once: what the sum is divided by, thresholds over all ranks, entropy with a gradient, several chunks of logits,
# views in the same pass and in one before.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"loss_type": "dapo", "logprob_chunk": 4},
    {"loss_type": "bnpo", "delta": 3.0},
    {"loss_type": "gspo", "top_entropy_quantile": 0.5, "entropy_coefficient": 0.1},
    {"loss_type": "kl_cov", "aggregation": "seq_mean_token_sum_norm", "covariance_share": 0.3},
    {"loss_type": "cispo", "engine_is_level": "sequence", "entropy_coefficient": 0.1, "logprob_chunk": 4},
    {"perception": {"recompute": True, "coefficient": 0.3, "entropy_coefficient": 0.1}, "logprob_chunk": 4},
    {"loss_type": "grpo", "perception": {"term": "dvrp", "coefficient": 0.3}, "logprob_chunk": 4},
)
POISONED = (3, 1)  # under these settings, in this step, an advantage is not a number


def train_groups(policy: Policy) -> list[TrainGroup]:
    """One image, two images, none; completions of unequal length; the last group is masked: it is in no sum."""
    generator = torch.Generator().manual_seed(3)
    found: list[TrainGroup] = []
    for group in groups(policy):
        samples = [
            Sample(
                list(ids),
                (-5.5 + torch.randn(len(ids), generator=generator)).tolist(),
                (2 * torch.rand(len(ids), generator=generator)).tolist(),
                float(torch.randn(1, generator=generator)),
            )
            for ids in group.completions
        ]
        images = group.prompt.pixel_values is not None
        prompt = lambda prompt=group.prompt: prompt  # noqa: E731
        found.append(TrainGroup(str(len(found)), prompt, samples, len(group.prompt.ids), images))
    return [*found, replace(found[1], group_id="masked", counts=False)]


def with_views(found: Sequence[TrainGroup], number: int) -> list[TrainGroup]:
    """The groups with `number` views of each prompt with images."""
    return [
        replace(group, views=tuple(partial(changed, group.prompt(), i) for i in range(number)))
        if group.has_images
        else group
        for group in found
    ]


def changed(prompt: Prompt, number: int) -> Prompt:
    """Other pixels, which some changed image may have."""
    assert prompt.pixel_values is not None
    generator = torch.Generator().manual_seed(number)
    return replace(prompt, pixel_values=torch.randn(prompt.pixel_values.shape, generator=generator))


def trainer_of(checkpoint: Path, config: TrainConfig, model: ModelConfig = TINY) -> tuple[Trainer, Policy]:
    """A policy under training, by this process or by the ranks of this launch."""
    accelerator = join(model, torch.device("cpu"))
    policy = load_policy(checkpoint, model)
    policy.attend("grouped")
    policy.model.train()
    return Trainer(policy, config, 1.0, 16, Optimizers(policy.model, config), accelerator), policy


def gradients_of(trainer: Trainer, share: MiniBatch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The metrics of an update, and the gradients before clipping."""
    worker = trainer.worker
    seen: dict[str, torch.Tensor | None] = {}
    step = worker.step

    def watched(factor: float, healthy: bool) -> Step:
        seen.update({name: worker.gradient(name) for name in worker.trained})
        seen.update({name: value.detach().clone() for name, value in seen.items() if value is not None})
        return step(factor, healthy)

    with mock.patch.object(worker, "step", watched):
        metrics = trainer.update(share, 1.0)
    return metrics, {name: value for name, value in seen.items() if value is not None}


def steps(
    checkpoint: Path, number: int, most: int = 4, **more: Any
) -> Iterator[tuple[Trainer, dict[str, float], dict[str, Any]]]:
    """Three updates under SETTINGS[number] and `more`: the trainer, its metrics, and the gradients before clipping.

    One process leaves the masked group out altogether.
    """
    # AdamW turns the rounding of gradients near zero into whole steps; small ones keep later gradients comparable.
    config = TrainConfig(learning_rate=1e-5, max_grad_norm=0.5, **SETTINGS[number], **more)
    trainer, policy = trainer_of(checkpoint, config)
    worker = trainer.worker
    tied = config.perception
    work = with_views(train_groups(policy), 0 if tied is None else tied.views)
    work = work if worker.ranks > 1 else work[:-1]
    for step_number in range(3):
        work[0].samples[0].advantage = float("nan") if (number, step_number) == POISONED else 1.5
        share = mini_batch(work, most, ranks=worker.ranks, rank=worker.rank, chunk=config.logprob_chunk)
        for batch in share.batches:
            batch.views = trainer.view_scores(batch)
        yield trainer, *gradients_of(trainer, share)
