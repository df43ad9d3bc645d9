"""The reference policy of the KL term: opened for its logprobs, and moved toward the policy from time to time.

The soft update of TR-DPO (arXiv 2404.09656): reference <- alpha · policy + (1 - alpha) · reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dapo_stages.config import Config, TrainConfig
from dapo_stages.errors import ConfigError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.policy_folders import PolicyFolder

if TYPE_CHECKING:
    from dapo_stages.models.checkpoints import Tensors
    from dapo_stages.training.update import Trainer

NAME: Literal["reference"] = "reference"  # the option, the input, and the folder that a train-step writes


def check_reference(folder: Path | None, config: Config) -> dict[str, Source]:
    """The input that a KL term needs; empty if train.beta is 0. Raises ConfigError if it is missing."""
    if config.train.beta == 0:
        return {}
    if folder is None:
        raise ConfigError("--reference: is missing, but train.beta is above 0. Pass the policy to stay near.")
    if config.train.reference_update_every is not None and config.model.quantization is not None:
        raise ConfigError(
            f"train.reference_update_every: does not work with model.quantization {config.model.quantization}, which "
            "would round the new reference to other values than the policy. Set one of them to null."
        )
    return {NAME: PolicyFolder(folder)}


def reference_of(inputs: Mapping[str, Source]) -> PolicyFolder:
    """The reference among a train-step's inputs."""
    reference = inputs[NAME]
    assert isinstance(reference, PolicyFolder)
    return reference


def is_due(settings: TrainConfig, iteration: int) -> bool:
    """Whether the train-step of this iteration writes a new reference."""
    every = settings.reference_update_every
    return settings.beta > 0 and every is not None and iteration % every == 0


def open_reference(source: PolicyFolder, config: Config) -> Trainer:
    """Open the reference, whole on every rank: each computes its own micro-batches without the others."""
    from dapo_stages.models.policy_loading import open_policy
    from dapo_stages.training.launching.frameworks import whole_models
    from dapo_stages.training.optimizers import Optimizers, freeze
    from dapo_stages.training.update import Trainer

    with whole_models():
        policy = open_policy(source, config.model, kind=NAME)
    policy.attend("grouped")
    freeze(policy.model.parameters())
    return Trainer(
        policy,
        config.train,
        config.rollout.sampler.temperature,
        config.rollout.max_completion_length,
        Optimizers(policy.model, config.train),
    )


def require_alike(policy: PolicyFolder, reference: PolicyFolder) -> None:
    """Refuse, before training, to mix policies of different architectures or shapes."""
    from dapo_stages.models.checkpoints import Checkpoint
    from dapo_stages.models.merging import require_same

    require_same([Checkpoint(policy.checkpoint()), Checkpoint(reference.checkpoint())])


def write_reference(output: Output, trained: Path, *, adapter: bool, alpha: float) -> None:
    """Mix the policy in the folder `trained` into the reference, tensor by tensor; memory is bounded by one file.

    Adapters are mixed as merged weights, so the new reference is a complete checkpoint: averaging an adapter's two
    factors would not average policies.
    """
    from dapo_stages.models.checkpoints import Adapted, Checkpoint
    from dapo_stages.models.merging import copy_beside, merge, require_same

    before, folder = reference_of(output.plan.inputs), output.folder / NAME
    whole = Checkpoint(output.plan.policy.checkpoint() if adapter else trained)
    old = Checkpoint(before.checkpoint())
    require_same([whole, old])
    sources: list[Tensors] = [
        Adapted(whole, trained) if adapter else whole,
        Adapted(old, before.folder) if before.is_adapter else old,
    ]
    folder.mkdir()
    for file, names in whole.layout.items():
        merge(sources, [alpha, 1 - alpha], names, folder / file)
    copy_beside(whole.folder, folder)
    output.add_files(NAME)
