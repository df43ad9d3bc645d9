"""The folder of an optimizer state, beside its policy. It may have no files (keep.state_every)."""

from __future__ import annotations

from pathlib import Path

from dapo_stages.errors import DataError
from dapo_stages.handoff import kept
from dapo_stages.handoff.manifests import MANIFEST, STATE, Source, manifest_of
from dapo_stages.handoff.policy_folders import PolicyFolder


class StateFolder(Source):
    """The state that was left by the train-step of a policy. Raises DataError for that of another policy.

    If it is not written, its hash is that of the policy, under which a process may keep it.
    """

    def __init__(self, folder: Path, policy: PolicyFolder) -> None:
        of_policy = policy.manifest.content_hash
        step = None if (folder / MANIFEST).exists() else manifest_of(folder.parent)
        self.is_written = step is None or step.policy.get("content_hash") != of_policy
        if step is None or self.is_written:
            super().__init__(folder, STATE)
        else:
            about = step.policy | {"policy_hash": of_policy}
            update = {"stage": STATE, "shards": [], "policy": about, "content_hash": of_policy}
            self.folder, self.manifest, self._verified = folder, step.model_copy(update=update), set()
        if self.manifest.policy.get("policy_hash") != of_policy:
            raise DataError(
                folder,
                f"this optimizer state belongs to a policy of iteration {self.manifest.policy.get('version')}, not to "
                f"{policy.folder}",
                "Name the state folder next to the policy, or leave --state out to start the optimizer over.",
            )

    def require(self) -> None:
        """Raise DataError if it is neither written nor kept by this process."""
        if not self.is_written and kept.look("state", self.manifest.content_hash) is None:
            raise DataError(
                self.folder / MANIFEST,
                "the optimizer state was not written, and no process keeps it any more",
                "Run make iterate, or the train-step that left it: either trains again on what was sampled before.",
            )

    def verify_all(self) -> None:
        """Check every file, if it is written."""
        if self.is_written:
            super().verify_all()
