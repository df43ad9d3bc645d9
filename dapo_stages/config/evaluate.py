"""Evaluation on the held-out prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dapo_stages.config.base import Count, Later, Section
from dapo_stages.config.rollout import BatchGroups, EngineName, SamplerConfig


class EvaluateConfig(Section):
    """Evaluation on the held-out prompts."""

    engine: Annotated[EngineName, Later("transformers")] = Field(
        "transformers", description="Engine that generates the completions; see rollout.engine."
    )
    num_generations: Annotated[int, Field(ge=0)] = Field(4, description="Sampled completions per prompt (mean@k).")
    sampler: Annotated[SamplerConfig | None, Later(None)] = Field(
        None, description="The distribution that they are sampled from; null is rollout.sampler, without schedules."
    )
    max_completion_length: Annotated[Count | None, Later(None)] = Field(
        None, description="Most tokens of a completion, also greedily; null is rollout.max_completion_length."
    )
    greedy: bool = Field(True, description="Also decode greedily.")
    blank_image: bool = Field(False, description="Also decode greedily with the image blanked.")
    max_questions: Count | None = Field(None, description="Use only the first prompts.")
    questions_per_shard: Count = Field(
        32, description="Prompts per Parquet shard, the unit of work that is resumed or given to one process."
    )
    batch_groups: BatchGroups = Field(16, description="Prompts per batch with transformers; as rollout.batch_groups.")
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = Field(
        2000, description="Bootstrap resamples (random weightings of the prompts) for intervals without a formula."
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="Confidence level of the intervals.")
