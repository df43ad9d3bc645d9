"""Policies that a process keeps between commands (handoff/kept.py): each is handed out as load_policy gives it."""

from __future__ import annotations

import json

from dapo_stages import ranks
from dapo_stages.config import ModelConfig
from dapo_stages.handoff import kept
from dapo_stages.handoff.kept import Kind
from dapo_stages.handoff.manifests import Manifest
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.models.checkpointing import keep_activations
from dapo_stages.models.policy import Loaded, Policy


def key_of(policy: Manifest, base: Manifest, settings: ModelConfig) -> str:
    """What decides the weights in memory: a policy's content, that of the `base` of an adapter, and `settings`."""
    return json.dumps([policy.content_hash, base.content_hash, settings.model_dump(mode="json")])


def find(folder: PolicyFolder, settings: ModelConfig, kind: Kind, *, to_change: bool) -> Policy | None:
    """The policy of a verified folder, if it is kept; otherwise the one that is kept is dropped, to make room for it.

    One that the caller is going to change is kept no longer. An adapter is kept merged, so not for training; nor is a
    policy that several processes train, because each framework wants it loaded in its own way.
    """
    key = key_of(folder.manifest, folder.full.manifest, settings)
    found: Policy | None = None
    if not (to_change and (folder.is_adapter or ranks.count() > 1)):
        found = kept.take(kind, key) if to_change else kept.look(kind, key)
    if found is None:
        kept.drop(kind)
        return None
    restore(found)
    return found


def keep(folder: PolicyFolder, settings: ModelConfig, kind: Kind, policy: Policy, *, to_change: bool) -> None:
    """Keep a policy that was just loaded, unless the caller is going to change it."""
    if not kept.keeps():
        return
    policy.loaded = {name: Loaded(p.dtype, p.requires_grad) for name, p in policy.model.named_parameters()}
    if not to_change:
        kept.give(kind, key_of(folder.manifest, folder.full.manifest, settings), policy)


def keep_trained(policy: Policy, settings: ModelConfig, before: Manifest, published: Manifest) -> None:
    """Keep a policy after training, as the published one.

    Not if loading the published files could give something else than other weights: an adapter was attached to it, or
    saving has changed a file other than weights, as it may for a checkpoint that another program wrote. Nor if the
    weights were compiled in, or trained by several processes.
    """
    changed = policy.is_adapter or policy.is_quantized or policy.compiled or ranks.count() > 1
    if not kept.keeps() or changed or _other_files(before) != _other_files(published):
        return
    restore(policy)
    kept.give("policy", key_of(published, published, settings), policy)


def restore(policy: Policy) -> None:
    """Undo what stages do to a policy, except that its weights keep their values, rounded to the type of the files."""
    model = policy.model
    keep_activations(model)
    for name, parameter in model.named_parameters():
        loaded = policy.loaded[name]
        parameter.grad = None
        parameter.data = parameter.data.to(loaded.dtype)
        parameter.requires_grad_(loaded.requires_grad)
    model.eval()
    policy.attend("separate")


def _other_files(policy: Manifest) -> dict[str, str]:
    """SHA-256 of the files of a policy folder other than weights."""
    return {shard.name: shard.sha256 for shard in policy.shards if not shard.name.endswith(".safetensors")}
