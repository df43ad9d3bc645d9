"""Policy folders: a checkpoint or an adapter with a manifest, or a manifest that refers to a hub model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.referred import REFERENCE, fetched, refers
from dapo_stages.small_files import read_json

# In the counts of prepare-data and rollout, and in what the manifest says of a policy: its system prompt and question
# template, for each dataset.
PROMPTING = "prompting"
LINEAR = "linear_attention"  # in the layer_types of a config.json
STAGES = ("init-policy", "base", "policy", "reference", "merge")


class PolicyFolder(Source):
    """A published folder that is a policy. Raises DataError for any other."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if self.manifest.stage not in STAGES:
            raise DataError(
                folder,
                f"expected a policy, got the output of {self.manifest.stage}",
                "Name the folder written by init-policy, or the policy folder inside one written by train-step.",
            )

    @property
    def version(self) -> int:
        """The iteration whose train-step made this policy; 0 for the starting policy."""
        return int(self.manifest.policy.get("version", 0))

    @property
    def prompting(self) -> list[dict[str, str | None]]:
        """How it was prompted in training, for each dataset; empty for a starting policy."""
        return list(self.manifest.policy.get(PROMPTING, []))

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter, which needs the policy it was trained on."""
        return "base" in self.manifest.policy

    @cached_property
    def full(self) -> PolicyFolder:
        """The policy with all weights: the one that an adapter was trained on, otherwise this one."""
        if not self.is_adapter:
            return self
        base = PolicyFolder((self.folder / str(self.manifest.policy["base"])).resolve())
        if base.is_adapter:
            problem = f"the base of this adapter, {base.folder}, must be a checkpoint, but is an adapter"
            raise DataError(self.folder, problem, "Name a policy written by train-step.")
        return base

    @property
    def content(self) -> str:
        """What decides its weights: its content hash, and that of the base of an adapter."""
        both = (self, self.full) if self.is_adapter else (self,)
        return "+".join(one.manifest.content_hash for one in both)

    @property
    def name(self) -> str | Path:
        """Folder or hub id of the full checkpoint."""
        about = self.full.manifest.policy
        return str(about[REFERENCE]) if refers(about) else self.full.folder

    def checkpoint(self) -> Path:
        """The full checkpoint as a local folder; a hub model is downloaded into the cache, without any code in it."""
        about = self.full.manifest.policy
        return fetched(about) if refers(about) else self.full.folder

    def decoder(self) -> dict[str, Any]:
        """What its config.json says of the language model, under text_config or, as some are published, beside it."""
        about = read_json(self.checkpoint() / "config.json")
        return {**about, **(about.get("text_config") or {})}

    @property
    def kinds_of_layers(self) -> list[str]:
        """The kind of each layer, such as LINEAR; empty if all are of one kind."""
        return list(self.decoder().get("layer_types") or ())

    def verify(self) -> None:
        """Check every file of the policy, of what it refers to, and of the base of an adapter."""
        self.verify_all()
        if self.is_adapter:
            self.full.verify_all()
