"""Policy folders: a checkpoint or an adapter with a manifest, or a manifest that refers to a hub model."""

from __future__ import annotations

from pathlib import Path

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.referred import REFERENCE, fetched, refers

STAGES = ("init-policy", "policy", "reference", "merge")


def check_policy(source: Source) -> Source:
    """Raise DataError for a folder that is not a policy."""
    if source.manifest.stage not in STAGES:
        raise DataError(
            source.folder,
            f"expected a policy, got the output of {source.manifest.stage}",
            "Name the folder written by init-policy, or the policy folder inside one written by train-step.",
        )
    return source


def base_of(source: Source) -> str | Path:
    """Folder or hub id of the full checkpoint: this folder, what it refers to, or what an adapter was trained on."""
    full = adapted_by(source) if is_adapter(source) else source
    return str(full.manifest.policy[REFERENCE]) if refers(full.manifest.policy) else full.folder


def folder_of(source: Source) -> Path:
    """The same as a local folder; a hub model is downloaded into the cache, without any code in it."""
    full = adapted_by(source) if is_adapter(source) else source
    return fetched(full.manifest.policy) if refers(full.manifest.policy) else full.folder


def is_adapter(source: Source) -> bool:
    """Whether the folder holds an adapter, which needs the policy it was trained on."""
    return "base" in source.manifest.policy


def adapted_by(source: Source) -> Source:
    """The policy that an adapter was trained on."""
    base = check_policy(Source((source.folder / str(source.manifest.policy["base"])).resolve()))
    if is_adapter(base):
        problem = f"the base of this adapter, {base.folder}, must be a checkpoint, but is an adapter"
        raise DataError(source.folder, problem, "Name a policy written by train-step.")
    return base


def verify(source: Source) -> None:
    """Check every file of a policy, of what it refers to, and of the base of an adapter."""
    source.verify_all()
    if is_adapter(source):
        adapted_by(source).verify_all()


def version_of(source: Source) -> int:
    """The iteration whose train-step made this policy; 0 for the starting policy."""
    return int(source.manifest.policy.get("version", 0))
