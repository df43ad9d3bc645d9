"""Completions: the sampled distribution, and how many."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import Count, Fraction, Later, Section

BatchGroups = Count | Literal["auto"]
EngineName = Literal["transformers", "vllm", "server"]


class SamplerConfig(Section):
    """The distribution that completions are sampled from. Special tokens are never sampled, except the end token."""

    temperature: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="Softmax temperature.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling; 1 is off.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Keep the k most likely tokens; 0 is off.")
    min_p: Fraction = Field(
        0.0, description="Drop tokens below this fraction of the most likely one's probability; 0 is off."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="1 is off.")


class CurriculumConfig(Section):
    """Sample prompts more or less often, by their success rate so far (rollout --history)."""

    target: Fraction = Field(0.5, description="Success rate of the prompts that are sampled most often.")
    visits: Count = Field(2, description="Latest rollouts of a prompt that its success rate is computed from.")
    floor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1,
        description="Probability that a prompt with the success rate farthest from target keeps its turn; 1 is off.",
    )


class InformativeConfig(Section):
    """Which groups are informative: those whose completions differ in a reward."""

    reward: str = Field(
        "accuracy",
        description="accuracy, format, overlong, a plug-in's name, judge, or total (by weights.reward_weights).",
    )
    low: float | None = Field(None, description="The group's mean of that reward must be above this.")
    high: float | None = Field(None, description="The group's mean of that reward must be below this.")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low must be below high, got low={self.low:g} and high={self.high:g}")
        return self


class RolloutConfig(Section):
    """Completions of an iteration, and DAPO's dynamic sampling."""

    engine: EngineName = Field(
        "transformers",
        description="Engine that generates completions: transformers; vLLM in this process; a server (engines.server).",
    )
    prompts_per_iteration: Count = Field(128, description="Groups per iteration.")
    num_generations: Annotated[int, Field(ge=2)] = Field(8, description="Completions per prompt (the group size).")
    max_completion_length: Count = Field(384, description="Most tokens of a completion, including the end token.")
    sampler: SamplerConfig = SamplerConfig()
    dynamic_sampling: bool = Field(
        True, description="Sample until there are enough informative groups (some, but not all, completions correct)."
    )
    informative: Annotated[InformativeConfig | None, Later(None)] = Field(
        None, description="Another reward than accuracy that decides which groups are informative; null is accuracy."
    )
    max_resample_rounds: Count = Field(
        4, description="Most rounds of new prompts, including the first; then continue with the groups there are."
    )
    oversample: Annotated[float, Field(ge=1, le=64)] = Field(
        1.0,
        description="Groups to sample at a time, as a multiple of those still missing; more needs fewer passes.",
    )
    surplus: Literal["discard", "keep"] = Field(
        "discard",
        description="Whether groups beyond prompts_per_iteration are left out of training, or trained on as well.",
    )
    curriculum: CurriculumConfig | None = Field(
        None, description="Prefer prompts that are sometimes answered correctly; null samples all equally often."
    )
    source_shares: Annotated[dict[str, Annotated[float, Field(ge=0)]], Later({})] = Field(
        {},
        description="How large a share of the prompts each dataset of data.sources gets, for example "
        "`{charts: 1, photos: 3}`; empty is in proportion to their sizes. Shares may have schedules.",
    )
    groups_per_shard: Count = Field(
        32, description="Groups per Parquet shard, the unit of work that is resumed or given to one process."
    )
    batch_groups: BatchGroups = Field(
        8,
        description="Groups per batch with transformers; other engines get a whole shard at once. auto: as many as the "
        "memory of the GPU has room for, by what the last batch took (without one, 8); draws then depend on that.",
    )
