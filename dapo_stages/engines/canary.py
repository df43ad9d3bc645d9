"""The canary: a few tokens sampled by a server, whose logprobs must be those of the policy.

A reload may leave a part of the old weights behind: copies that an engine packed for its kernels, caches. Its checksums
do not show that, its logprobs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dapo_stages.config import Config, RolloutConfig, SamplerConfig
from dapo_stages.engines import Completion
from dapo_stages.errors import EngineError
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.handoff.shards import Row
from dapo_stages.terminal.console import say

SAMPLES = 2  # of each prompt that is asked
_PROMPTS, _TOKENS = 3, 16
_EXACT = 1e-3  # mean |Δ logprob| of engine and trainer is 7e-8 to 3e-4 in float32 (docs/engines.md)


class Canary:
    """Compares what a server samples with the policy's own forward pass, loaded for this alone."""

    def __init__(self, policy: PolicyFolder, config: Config, where: str) -> None:
        self._policy, self._config, self._where = policy, config, where

    @property
    def settings(self) -> RolloutConfig:
        """How to sample: at the temperature of the rollout, from all tokens."""
        sampler = SamplerConfig(temperature=self._config.rollout.sampler.temperature)
        return self._config.rollout.model_copy(
            update={
                "sampler": sampler,
                "max_completion_length": min(_TOKENS, self._config.rollout.max_completion_length),
            }
        )

    @property
    def allowed(self) -> float:
        """The largest mean |Δ logprob|. In bfloat16 two implementations do not share their rounding errors."""
        engines = self._config.engines
        return engines.server.canary or (engines.diff_warn if self._config.model.dtype == "bfloat16" else _EXACT)

    def check(self, prompts: Sequence[Row], sampled: Sequence[list[Completion]], command: str) -> None:
        """Raise EngineError unless the logprobs of the completions are the policy's. `command` restarts the server."""
        differences = self._differences(prompts, sampled)
        mean, largest = differences.mean(), differences.max()
        figures = f"{mean:.2g} on average and {largest:.2g} at most over {differences.size} tokens"
        if not mean <= self.allowed:  # nor NaN
            raise EngineError(
                self._where,
                f"after reloading, its logprobs differ from those of policy {self._policy.folder} by {figures}, "
                f"expected at most {self.allowed:g} on average, so it serves other weights, or less precise ones",
                f"Restart it ({command}) and run the same command again: nothing was kept of what it sampled.",
            )
        say(f"{self._where}: serves this policy now; its logprobs differ by {figures}")

    def _differences(self, prompts: Sequence[Row], sampled: Sequence[list[Completion]]) -> np.ndarray[Any, Any]:
        """|Δ logprob| of each token, [sum C]."""
        import torch

        from dapo_stages.models.inputs import prompt_of
        from dapo_stages.models.logprobs import GroupLogprobs
        from dapo_stages.models.policy_loading import open_policy
        from dapo_stages.models.shared_prefix.packing import Group

        policy = open_policy(self._policy, self._config.model)
        policy.attend("grouped")
        forward = GroupLogprobs(policy, self._config.rollout.sampler.temperature)
        found = []
        for row, completions in zip(prompts, sampled, strict=True):
            group = Group(prompt_of(row, policy.processor), [one.ids for one in completions])
            with torch.no_grad():
                own, _ = forward(policy.batch([group]))
            served = np.concatenate([one.logprobs for one in completions])
            found.append(np.abs(own.double().cpu().numpy() - served))
        return np.concatenate(found)


def few(prompts: Sequence[Row]) -> list[Row]:
    """The prompts to ask: the first, the last and one between them."""
    places = np.linspace(0, len(prompts) - 1, min(_PROMPTS, len(prompts))).astype(int)
    return [prompts[place] for place in places]
