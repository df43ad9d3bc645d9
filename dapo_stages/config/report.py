"""What people look at, and what is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapo_stages.config.base import Count, Section


class ReportConfig(Section):
    """What people look at."""

    samples: Annotated[int, Field(ge=0)] = Field(4, description="Groups per iteration shown in full in Markdown.")
    completions: Annotated[int, Field(ge=0)] = Field(
        256,
        description="Completions per iteration to look through in report.html; it has those of the latest iterations.",
    )
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = Field((), description="Where the figures go besides files.")
    project: str = Field("dapo-stages", description="W&B project.")


class KeepConfig(Section):
    """How many iterations' worth of large files stay; null keeps all."""

    rollouts: Count | None = Field(
        None, description="Rollout, attention and weights folders; under rollout.curriculum rollout folders all stay."
    )
    states: Count | None = Field(2, description="Optimiser states: a train-step needs the one before.")
    policies: Count | None = Field(
        None, description="Policies, and references; what a kept adapter belongs to and the reference in use stay too."
    )
    best: bool = Field(
        True, description="Keep the policy with the best held-out accuracy too, however old (best.json names it)."
    )
