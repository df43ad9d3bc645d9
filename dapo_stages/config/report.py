"""Reports for people, and which large files are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapo_stages.config.base import Count, Later, Section


class ReportConfig(Section):
    """Reports and trackers."""

    samples: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        4,
        description="Groups per iteration shown in full in rollout_results.md; `all` writes every group, in pages of "
        "50 beside each report, which rollout_results.md links to.",
    )
    completions: Annotated[int, Field(ge=0)] = Field(
        256,
        description="Completions per iteration in report.html, which shows the latest iterations.",
    )
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = Field(
        (), description="Experiment trackers that also get the metrics."
    )
    project: str = Field("dapo-stages", description="W&B project.")


class KeepConfig(Section):
    """For how many iterations large files are kept; null keeps all."""

    rollouts: Count | None = Field(
        None,
        description="Rollout, attention and weights folders; with rollout.curriculum all rollout folders are kept.",
    )
    states: Count | None = Field(2, description="Optimizer states; a train-step needs the previous one.")
    state_every: Annotated[Count, Later(1)] = Field(
        1,
        description="Every how many iterations a process that stays (make RESIDENT=1) writes the optimizer state. It "
        "keeps the others in memory; after a crash, the train-steps since the last written state are made again, "
        "without sampling. A process that does not stay writes every state.",
    )
    policies: Count | None = Field(
        None, description="Policies and references; the base of a kept adapter and the reference in use are kept too."
    )
    best: bool = Field(
        True, description="Also keep the policy with the best held-out accuracy, however old (best.json names it)."
    )
