"""Completions: what they are sampled from and how many."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapo_stages.config.base import Count, Fraction, Section

EngineName = Literal["transformers", "vllm", "server"]


class SamplerConfig(Section):
    """The distribution that completions are drawn from. Special tokens but the end token are never sampled."""

    temperature: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="Softmax temperature.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling; 1 is off.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Keep the k most likely tokens; 0 is off.")
    min_p: Fraction = Field(0.0, description="Drop tokens below this share of the likeliest one; 0 is off.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="1 is off.")


class CurriculumConfig(Section):
    """Questions asked more or less often, by how often they were answered right before (rollout --history)."""

    target: Fraction = Field(0.5, description="Success rate of the questions that are asked most often.")
    visits: Count = Field(2, description="Last visits to a question that its success rate is taken over.")
    floor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="Chance that a question as far from the target as can be keeps its turn; 1 changes nothing."
    )


class RolloutConfig(Section):
    """Completions of an iteration and DAPO's dynamic sampling."""

    engine: EngineName = Field(
        "transformers",
        description="What generates the completions: transformers; vLLM in this process; a server (engines.server).",
    )
    prompts_per_iteration: Count = Field(128, description="Groups an iteration asks for.")
    num_generations: Annotated[int, Field(ge=2)] = Field(8, description="Completions per prompt (the group size).")
    max_completion_length: Count = Field(384, description="Most tokens of a completion, end token included.")
    sampler: SamplerConfig = SamplerConfig()
    dynamic_sampling: bool = Field(True, description="Ask for informative groups: some but not all correct.")
    max_resample_rounds: Count = Field(
        4, description="Rounds of new prompts at most, the first included; then go on with what there is."
    )
    oversample: Annotated[float, Field(ge=1, le=64)] = Field(
        1.0, description="Groups asked for at a time, over those still missing: more finishes in fewer goes."
    )
    surplus: Literal["discard", "keep"] = Field(
        "discard",
        description="Groups beyond prompts_per_iteration: left out of training, or trained on as well.",
    )
    curriculum: CurriculumConfig | None = Field(
        None, description="Prefer questions that are answered right now and then; null asks all equally often."
    )
    groups_per_shard: Count = Field(
        32, description="Groups per Parquet shard, and per piece of work that is resumed, or shared by processes."
    )
    batch_groups: Count = Field(
        8, description="Groups that transformers generates at the same time; the others are given a shard's at once."
    )
