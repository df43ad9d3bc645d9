"""Policy folders: a checkpoint with a manifest, or a manifest that refers to a hub model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dapo_stages.config import ModelConfig
from dapo_stages.errors import DataError
from dapo_stages.manifests import Source

if TYPE_CHECKING:
    from dapo_stages.models.policy import Policy

STAGES = ("init-policy", "policy")


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


def open_policy(source: Source, config: ModelConfig, *, trainable: bool = False) -> Policy:
    """Verify a policy folder and load it, or what it refers to.

    A policy that is an adapter is merged into its base for use, and kept apart if it is to be trained on.
    """
    from dapo_stages.models.adapters import load_adapter
    from dapo_stages.models.policy import load_policy

    verify(source)
    policy = load_policy(base_of(source), config)
    if "base" in source.manifest.policy:
        load_adapter(policy, source.folder, trainable=trainable)
    return policy


def verify(source: Source) -> None:
    """Check every file of a policy, and of the one it is an adapter of."""
    source.verify_all()
    if "base" in source.manifest.policy:
        _adapted(source).verify_all()


def base_of(source: Source) -> str | Path:
    """The checkpoint itself: this folder, the hub model it refers to, or the base of an adapter."""
    about = source.manifest.policy
    if "reference" in about:
        return str(about["reference"])
    if "base" in about:
        return base_of(_adapted(source))
    return source.folder


def _adapted(source: Source) -> Source:
    """The policy that an adapter was trained on."""
    return check_policy(Source((source.folder / str(source.manifest.policy["base"])).resolve()))


def version_of(source: Source) -> int:
    """The iteration whose train-step made this policy; 0 for the starting one."""
    return int(source.manifest.policy.get("version", 0))
