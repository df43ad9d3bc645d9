"""What a perception term costs: an update with PAPO's term against the same update without it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import models
from dapo_stages.config import PerceptionSettings, TrainConfig
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.shared_prefix.packing import Group, Prompt
from dapo_stages.training.batches import MiniBatch, Sample, TrainGroup, mini_batch
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.update import Trainer

OURS = "the same with PAPO's term and its entropies; the logprobs with changed images "
_BLACK = -1.8  # about what an image processor makes of a black pixel
FIXED, RECOMPUTED = OURS + "in a pass of their own before", OURS + "in the update's own pass, with a gradient"
THEIRS = "forward, loss with token weights and engine correction, metrics, backward, clipping, AdamW step"


class Tied:
    """Two groups of 8, each a micro-batch, prompt 303, completion 64; both sides train the same policy by turns."""

    def __init__(self, *, recompute: bool) -> None:
        policy = models.medium()
        policy.attend("grouped")
        policy.model.train()
        plain = TrainConfig(gradient_checkpointing=False, learning_rate=1e-5, batch_completions=8)
        self._settings = PerceptionSettings(recompute=recompute, entropy_coefficient=0.03)
        self._with, self._without = (
            Trainer(policy, config, 1.0, 64, Optimizers(policy.model, config))
            for config in (plain.model_copy(update={"perception": self._settings}), plain)
        )
        groups = [
            Group(models.prompt(policy, 303, (16, 16), seed), models.completions(8, 64, seed)) for seed in range(2)
        ]
        forward = GroupLogprobs(policy, 1.0)
        with torch.no_grad():
            logprobs = [forward(policy.pack([group]))[0].chunk(8) for group in groups]
        self._groups = [_trained(*each) for each in zip(groups, logprobs, strict=True)]

    def check(self) -> dict[str, float]:
        """Relative difference of the loss from that without the term, and the term from its means."""
        found, wanted = self._update(self._with), self._update(self._without)
        entropies = found["entropy"] + found["perception_entropy"]
        term = self._settings.entropy_coefficient * entropies - self._settings.coefficient * found["perception_kl"]
        difference = abs(found["loss"] - term - wanted["loss"])
        assert difference < 1e-2 * abs(term), f"losses differ by {difference} beside the term of {term}"
        return {"loss difference": difference}

    def ours(self) -> None:
        """One update with the term, and what it needs beforehand."""
        self._update(self._with)

    def theirs(self) -> None:
        """One update without it."""
        self._update(self._without)

    @property
    def details(self) -> dict[str, Any]:
        """What is updated on."""
        return {"groups": len(self._groups), "completions in a micro-batch": 8}

    def _update(self, trainer: Trainer) -> dict[str, float]:
        work: MiniBatch = mini_batch(self._groups, 8)
        if trainer is self._with:
            for batch in work.batches:
                batch.views = trainer.view_scores(batch)
        metrics = trainer.update(work, 1e-9)  # so that both sides find nearly the same policy
        assert not metrics["skipped"]
        return metrics


def _trained(group: Group, logprobs: tuple[torch.Tensor, ...]) -> TrainGroup:
    samples = [
        Sample(list(ids), sampling.tolist(), [1.0] * len(ids), (-1.0, 0.5, 1.5, -0.7, 0.2, -1.2, 0.9, -0.2)[i])
        for i, (ids, sampling) in enumerate(zip(group.completions, logprobs, strict=True))
    ]
    prompt = group.prompt
    assert prompt.pixel_values is not None
    blank = replace(prompt, pixel_values=torch.full_like(prompt.pixel_values, _BLACK))
    return TrainGroup("group", partial(_same, prompt), samples, views=(partial(_same, blank),))


def _same(prompt: Prompt) -> Prompt:
    return prompt
