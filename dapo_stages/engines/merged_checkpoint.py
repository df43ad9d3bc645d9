"""The checkpoint of a policy as a folder for programs that read no adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dapo_stages.config import ModelConfig
from dapo_stages.handoff.policy_folders import PolicyFolder


@contextmanager
def merged_checkpoint(policy: PolicyFolder, settings: ModelConfig) -> Iterator[Path]:
    """The checkpoint; for an adapter, a temporary copy of its base with the adapter merged in."""
    if not policy.is_adapter:
        yield policy.checkpoint()
        return
    from dapo_stages.models.policy_loading import open_policy, save_policy

    with TemporaryDirectory(prefix="dapo-stages-merged-") as folder:
        merged = open_policy(policy, settings.model_copy(update={"device": "cpu"}))
        save_policy(merged, Path(folder))
        del merged
        yield Path(folder)
