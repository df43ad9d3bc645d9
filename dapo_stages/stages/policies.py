"""Policy folders: a checkpoint or an adapter with a manifest, or a manifest that refers to a hub model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dapo_stages.config import ModelConfig
from dapo_stages.errors import DataError, ModelError
from dapo_stages.manifests import Source

if TYPE_CHECKING:
    from dapo_stages.models.policy import Policy

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


def open_policy(source: Source, config: ModelConfig, *, trainable: bool = False) -> Policy:
    """Verify a policy folder and load it, or what it refers to.

    A policy that is an adapter is merged into its base for use, and kept apart if it is to be trained on.
    """
    from dapo_stages.models.adapters import load_adapter
    from dapo_stages.models.policy import load_policy

    verify(source)
    policy = load_policy(base_of(source), config)
    if is_adapter(source):
        load_adapter(policy, source.folder, trainable=trainable)
    return policy


def base_of(source: Source) -> str | Path:
    """The checkpoint itself: this folder, the hub model it refers to, or the base of an adapter."""
    about = source.manifest.policy
    if "reference" in about:
        return str(about["reference"])
    if is_adapter(source):
        return base_of(adapted_by(source))
    return source.folder


def folder_of(source: Source) -> Path:
    """The checkpoint as a folder of this machine; one of the hub is fetched into the cache, without any code in it."""
    from huggingface_hub import snapshot_download

    where = base_of(source)
    if Path(where).is_dir():
        return Path(where)
    try:
        return Path(snapshot_download(str(where), allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt"]))
    except (OSError, ValueError) as error:  # huggingface_hub's errors are OSErrors
        raise ModelError(
            f"{where}: found no way to fetch it ({' '.join(str(error).split())[:200]}); needed the checkpoint that "
            f"{source.folder} refers to. Check the connection, or set model.name to a folder and run init-policy again."
        ) from None


def is_adapter(source: Source) -> bool:
    """Whether the folder holds an adapter, of no use without the policy it was trained on."""
    return "base" in source.manifest.policy


def adapted_by(source: Source) -> Source:
    """The policy that an adapter was trained on."""
    return check_policy(Source((source.folder / str(source.manifest.policy["base"])).resolve()))


def verify(source: Source) -> None:
    """Check every file of a policy and of the policy under it."""
    source.verify_all()
    if is_adapter(source):
        adapted_by(source).verify_all()


def version_of(source: Source) -> int:
    """The iteration whose train-step made this policy; 0 for the starting one."""
    return int(source.manifest.policy.get("version", 0))
