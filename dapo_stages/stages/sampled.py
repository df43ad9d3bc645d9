"""The configuration that goes with rollouts: that of their iteration, and of the distribution they were drawn from."""

from __future__ import annotations

from dapo_stages.config import Config
from dapo_stages.console import say
from dapo_stages.manifests import Source


def as_sampled(config: Config, rollouts: Source) -> Config:
    """The configuration of the iteration that rollouts are of, with the temperature they were sampled at.

    Log-probs of a trainer are of the distribution sampled from, so no later word on the temperature counts.
    """
    sampled = rollouts.manifest.config
    found, temperature = config.at(int(sampled["iteration"])), sampled["rollout"]["sampler"]["temperature"]
    if found.rollout.sampler.temperature == temperature:
        return found
    say(f"the rollouts were sampled at temperature {temperature:g}, which counts, not rollout.sampler.temperature")
    sampler = found.rollout.sampler.model_copy(update={"temperature": temperature})
    return found.model_copy(update={"rollout": found.rollout.model_copy(update={"sampler": sampler})})
