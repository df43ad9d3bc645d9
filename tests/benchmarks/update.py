"""Row 1: an update on given completions, against TRL's own update on the same ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import limits, models, trl_side
from dapo_stages.config import TrainConfig
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group, Prompt
from dapo_stages.training.batches import Sample, TrainGroup, mini_batch
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.update import Trainer

OURS = "forward, loss with token weights and engine correction, entropy, metrics, backward, clipping, AdamW step"
THEIRS = "forward, loss, entropy, metrics, backward, clipping, fused AdamW step; no token weights, no engine correction"


class Update:
    """One optimizer step on the same groups. Nothing is suppressed, so that the logprobs are of one distribution."""

    def __init__(self, policy: Policy, groups: Sequence[Group], batch: int, max_length: int) -> None:
        """`batch` completions go through either model at a time."""
        self._policy, self._groups, self._batch = policy, groups, batch
        policy.__dict__["suppressed"] = torch.zeros_like(policy.suppressed)
        other = Policy(copy.deepcopy(policy.model), policy.processor, policy.device, policy.dtype)
        per_batch = batch // len(groups[0].completions)
        parts = [groups[i : i + per_batch] for i in range(0, len(groups), per_batch)]
        values = [[_advantage(i) for group in part for i, _ in enumerate(group.completions)] for part in parts]
        self._trl = trl_side.updater(other, batch=batch, accumulation=len(parts), max_length=max_length)
        self._their_batches = trl_side.prepared(other, parts, values)
        policy.attend("grouped")
        policy.model.train()
        config = TrainConfig(gradient_checkpointing=False, learning_rate=1e-5, batch_completions=batch)
        self._optimizers = _Kept(policy.model, config)
        self._trainer = Trainer(policy, config, 1.0, max_length, self._optimizers)
        self._logprobs = self._our_logprobs()
        self._work = mini_batch(self._train_groups(), batch)

    def check(self) -> dict[str, float]:
        """The largest difference of a logprob, and the relative difference of the whole gradient."""
        theirs = torch.cat([trl_side.logprobs(self._trl, batch) for batch in self._their_batches])
        difference = float((torch.cat(self._logprobs) - theirs).abs().max())
        assert difference < 1e-4, f"logprobs differ by {difference}"
        self._optimizers.keep = True
        self._trainer.update(self._work, 1.0)
        self._optimizers.keep = False
        trl_side.accumulate(self._trl, self._their_batches)
        wanted = torch.cat([p.grad.flatten() for p in self._trl.model.parameters() if p.grad is not None])
        self._trl.model.zero_grad()
        gradient = float((self._optimizers.kept - wanted).norm() / wanted.norm())
        assert gradient < 1e-3, f"gradients differ by {gradient}"
        return {"logprob difference": difference, "gradient difference": gradient}

    def ours(self) -> None:
        """One optimizer step of ours."""
        metrics = self._trainer.update(self._work, 1.0)
        assert not metrics["skipped"]

    def theirs(self) -> None:
        """One optimizer step of TRL's."""
        trl_side.update(self._trl, self._their_batches)

    @property
    def details(self) -> dict[str, Any]:
        """What is updated on, in tokens."""
        lengths = [len(c) for g in self._groups for c in g.completions]
        return {
            "groups": len(self._groups),
            "completions in a micro-batch": self._batch,
            "mean prompt": sum(len(g.prompt.ids) for g in self._groups) / len(self._groups),
            "mean completion": sum(lengths) / len(lengths),
        }

    @property
    def operations(self) -> float:
        """Of one update, with prefixes shared."""
        shape = limits.dimensions(self._policy)
        return sum(limits.training(shape, limits.load_of(group)) for group in self._groups)

    def _our_logprobs(self) -> list[torch.Tensor]:
        """Of each group by itself."""
        forward = GroupLogprobs(self._policy, 1.0)
        with torch.no_grad():
            return [forward(self._policy.pack([group]))[0] for group in self._groups]

    def _train_groups(self) -> list[TrainGroup]:
        found = []
        for number, (group, logprobs) in enumerate(zip(self._groups, self._logprobs, strict=True)):
            lengths = [len(c) for c in group.completions]
            samples = [
                Sample(list(ids), sampling.tolist(), [1.0] * len(ids), _advantage(i))
                for i, (ids, sampling) in enumerate(zip(group.completions, torch.split(logprobs, lengths), strict=True))
            ]
            found.append(TrainGroup(f"group-{number}", partial(_same, group.prompt), samples))
        return found


class _Kept(Optimizers):
    """Optimizers that can hand the gradient out instead of stepping."""

    keep = False

    def __init__(self, model: torch.nn.Module, config: TrainConfig) -> None:
        super().__init__(model, config)
        self._model = model
        self.kept = torch.empty(0)

    def step(self, factor: float) -> None:
        if not self.keep:
            super().step(factor)
            return
        self.kept = torch.cat([p.grad.flatten() for p in self._model.parameters() if p.grad is not None])
        for parameter in self.parameters:
            parameter.grad = None


def medium(completion: int) -> Update:
    """Two groups of 8, each a micro-batch, prompt 303."""
    policy = models.medium()
    groups = [
        Group(models.prompt(policy, 303, (16, 16), seed), models.completions(8, completion, seed)) for seed in range(2)
    ]
    return Update(policy, groups, batch=8, max_length=completion)


def small() -> Update:
    """A mini-batch of the embedded default: 16 groups of 8, one micro-batch, real prompts, well-formed answers."""
    from support.prompts import prompt

    from dapo_stages.data.embedded.colours import LETTERS, THOUGHTS, question

    policy = models.small()
    tokenizer = policy.processor.tokenizer
    groups = []
    for index in range(16):
        asked = question(0, index)
        texts = [asked.completion(list(LETTERS)[i % 4], i % len(THOUGHTS)) for i in range(8)]
        answers = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
        groups.append(Group(prompt(policy, asked.problem, [asked.image.size]), answers))
    return Update(policy, groups, batch=128, max_length=32)


def _advantage(sample: int) -> float:
    """Some above and some below zero."""
    return (-1.0, 0.5, 1.5, -0.7, 0.2, -1.2, 0.9, -0.2)[sample % 8]


def _same(prompt: Prompt) -> Prompt:
    return prompt
