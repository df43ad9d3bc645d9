"""Policy folders: a checkpoint or an adapter with a manifest, or a manifest that refers to a hub model."""

from __future__ import annotations

from pathlib import Path

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.referred import REFERENCE, fetched, refers

STAGES = ("init-policy", "policy", "reference", "merge")


def check_policy(source: Source) -> Source:
    """Refuse a folder that is not a policy."""
    if source.manifest.stage not in STAGES:
        raise DataError(
            source.folder,
            f"the output of {source.manifest.stage}",
            "a policy",
            "Name the folder written by init-policy, or the policy folder inside one written by train-step.",
        )
    return source


def base_of(source: Source) -> str | Path:
    """The name of the checkpoint itself: this folder, what it refers to (a folder, a hub id), or that of an adapter."""
    whole = adapted_by(source) if is_adapter(source) else source
    return str(whole.manifest.policy[REFERENCE]) if refers(whole.manifest.policy) else whole.folder


def folder_of(source: Source) -> Path:
    """The same as a folder of this machine; one of the hub is fetched into the cache, without any code in it."""
    whole = adapted_by(source) if is_adapter(source) else source
    return fetched(whole.manifest.policy) if refers(whole.manifest.policy) else whole.folder


def is_adapter(source: Source) -> bool:
    """Whether the folder holds an adapter, of no use without the policy it was trained on."""
    return "base" in source.manifest.policy


def adapted_by(source: Source) -> Source:
    """The policy that an adapter was trained on."""
    base = check_policy(Source((source.folder / str(source.manifest.policy["base"])).resolve()))
    if is_adapter(base):
        do = "Name a policy written by train-step."
        raise DataError(source.folder, f"an adapter over the adapter {base.folder}", "one over a checkpoint", do)
    return base


def verify(source: Source) -> None:
    """Check every file of a policy, of what it refers to, and of the policy under it."""
    source.verify_all()
    if is_adapter(source):
        adapted_by(source).verify_all()


def version_of(source: Source) -> int:
    """The iteration whose train-step made this policy; 0 for the starting one."""
    return int(source.manifest.policy.get("version", 0))
