"""Held-out questions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dapo_stages.config.base import Count, Later, Section
from dapo_stages.config.rollout import EngineName


class EvaluateConfig(Section):
    """Held-out questions."""

    engine: Annotated[EngineName, Later("transformers")] = Field(
        "transformers", description="What answers the questions; the engines are those of rollout.engine."
    )
    num_generations: Annotated[int, Field(ge=0)] = Field(4, description="Samples per question (mean@k).")
    greedy: bool = Field(True, description="Also answer greedily.")
    blank_image: bool = Field(False, description="Also answer greedily with the picture blanked.")
    max_questions: Count | None = Field(None, description="Use only the first questions.")
    questions_per_shard: Count = Field(
        32, description="Questions per Parquet shard, and per piece of work that is resumed, or shared by processes."
    )
    batch_groups: Count = Field(
        16, description="Questions that transformers answers at the same time; the others are given a shard's at once."
    )
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = Field(
        2000, description="Random weightings of the questions behind an interval that has no formula."
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="Confidence of the intervals.")
