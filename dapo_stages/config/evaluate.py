"""Held-out questions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dapo_stages.config.base import Count, Section


class EvaluateConfig(Section):
    """Held-out questions."""

    num_generations: Annotated[int, Field(ge=0)] = Field(4, description="Samples per question (mean@k).")
    greedy: bool = Field(True, description="Also answer greedily.")
    blank_image: bool = Field(False, description="Also answer greedily with the picture blanked.")
    max_questions: Count | None = Field(None, description="Use only the first questions.")
    questions_per_shard: Count = Field(
        32, description="Questions per Parquet shard, and per piece of work that is resumed, or shared by processes."
    )
    batch_groups: Count = Field(16, description="Questions generated at the same time.")
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = Field(
        2000, description="Random weightings of the questions behind an interval that has no formula."
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="Confidence of the intervals.")
