"""What a stage was asked to make, and whether it exists."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from dapo_stages.config.run import Verify
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import (
    MANIFEST,
    Source,
    fingerprint,
    read_manifest,
)
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.handoff.unfinished import notes


@dataclass(frozen=True)
class Plan:
    """What a stage was asked to make, known before it starts."""

    stage: str
    out: Path
    config: dict[str, Any]
    seed: int
    inputs: dict[str, Source] = field(default_factory=dict)
    rewards: tuple[str, ...] = ()
    verify: Verify = "changed"
    beside: tuple[str, ...] = ()  # folders inside `out` that are outputs of their own and come with this one
    starts_over: bool = False  # an interrupted run of it starts over, so there is nothing to lose

    @property
    def policy(self) -> PolicyFolder:
        """The input `policy` of a stage that has one."""
        policy = self.inputs["policy"]
        assert isinstance(policy, PolicyFolder)
        return policy

    @property
    def fingerprint(self) -> str:
        hashes = {name: source.manifest.content_hash for name, source in self.inputs.items()}
        return fingerprint(self.stage, self.config, self.seed, hashes)

    def could_be(self, made_from: str) -> bool:
        """Whether this is the fingerprint of this plan, with its inputs or with what these replace."""
        hashes = [[one.manifest.content_hash, *one.manifest.replaces] for one in self.inputs.values()]
        return any(
            made_from == fingerprint(self.stage, self.config, self.seed, dict(zip(self.inputs, of_inputs, strict=True)))
            for of_inputs in product(*hashes)
        )

    def state(self) -> str:
        """`new`, `partial` (interrupted), `complete` (nothing to do), `stale` (made from something else), or
        `incomplete` (complete, but an output beside it is missing).

        An output whose files were pruned is complete: its manifest still says what it was made from. One that is
        incomplete may have been made from what its inputs replace: then these were made again just before.
        """
        if (self.out / MANIFEST).exists():
            try:
                made = read_manifest(self.out)
            except DataError:  # damaged, or of another version
                return "stale"
            if not all((self.out / name / MANIFEST).exists() for name in self.beside):
                return "incomplete" if self.could_be(made.fingerprint) else "stale"
            return "complete" if made.fingerprint == self.fingerprint else "stale"
        return "partial" if notes(self.out) else "new"
