"""Supervised steps before a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dapo_stages.config.base import Count, Fraction, Positive, Section


class SftConfig(Section):
    """Supervised steps on a dataset, with which init-policy prepares the starting policy for format and task
    (docs/policies.md). Optimizer, weight decay, adapter and micro-batches are those of `train`."""

    source: Annotated[str | None, Field(min_length=1)] = Field(
        None,
        description="Dataset to learn from, read like data.source; null: the training rows of the run's own. Held-out "
        "rows are never learned from, nor are rows of another dataset that have their images.",
    )
    completion: str = Field(
        "<think>\n</think>\n<answer>{{ solution }}</answer>",
        min_length=1,
        description="Jinja template of the completion to learn; `solution`, `problem`, `options` and the row's columns "
        "are its variables: `<think>{{ rationale }}</think><answer>{{ solution }}</answer>`.",
    )
    steps: Count = Field(100, description="Optimizer steps.")
    batch_size: Count = Field(
        32, description="Rows per step; once all have been learned from, they are shuffled again."
    )
    learning_rate: Positive = Field(
        1e-5, description="Highest learning rate of AdamW; it rises over warmup_fraction of the steps, then falls to 0."
    )
    muon_learning_rate: Positive = Field(0.01, description="The same for matrices, if train.optimizer is muon.")
    warmup_fraction: Fraction = Field(0.05, description="Fraction of the steps over which the learning rate rises.")
