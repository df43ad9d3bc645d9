"""Rewards of a single completion, plug-ins and a judge."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import LONGEST, Count, Section
from dapo_stages.config.engines import Endpoint


class JudgeConfig(Endpoint):
    """A language model that judges completions, asked over OpenAI's chat completions. Its key is
    DAPO_STAGES_JUDGE_API_KEY of the environment, or OPENAI_API_KEY over https or on this machine."""

    model: str = Field(min_length=1, description="Name of the model there.")
    mode: Literal["rubric", "pairwise"] = Field(
        "rubric",
        description="rubric: each completion gets a score by itself. pairwise: completions of a group are compared, "
        "each pair in both orders; the reward is the share of comparisons won.",
    )
    rubric: str = Field(
        "Is the final answer right, and does the reasoning lead to it from what the picture shows?",
        min_length=1,
        description="What is to be judged.",
    )
    scale: tuple[float, float] = Field((0.0, 10.0), description="Worst and best score; they become rewards 0 and 1.")
    pairs: Count | None = Field(
        None, description="Others that each completion is compared with, rounded up to an even number; null is all."
    )
    image: bool = Field(False, description="Send the pictures of the question along.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        0.0, description="Of the judge's sampling; null leaves it to the server."
    )
    max_tokens: Count = Field(512, description="Longest answer of the judge.")
    max_requests: Count | None = Field(
        None,
        description="Requests that an iteration may need at most: so many groups as these are enough for, the first "
        "ones, are judged. null is no limit.",
    )
    cache: str = Field(
        "training_logs/judge-cache.sqlite", min_length=1, description="File of answers, inside the working folder."
    )
    concurrency: Count = Field(16, description="Requests under way at the same time.")
    timeout: Annotated[float, Field(gt=0, le=LONGEST)] = Field(
        120.0, description="Seconds to wait for an answer; the whole of it may take twice as long."
    )

    RUNNING: ClassVar[set[str]] = {*Endpoint.model_fields, "cache"}

    @model_validator(mode="after")
    def _scale_rises(self) -> Self:
        if not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale must rise from worst to best, found {list(self.scale)}")
        return self


class RewardsConfig(Section):
    """Rewards of a single completion (those that need the group or attention are weight-tokens' part)."""

    overlong_max_length: Count | None = Field(
        None, description="L_max of the overlong reward; null takes rollout.max_completion_length."
    )
    overlong_cache: Count = Field(50, description="L_cache: the reward falls over this many tokens before L_max.")
    symbolic: bool = Field(True, description="Compare non-letter answers with math-verify.")
    symbolic_timeout: Annotated[float, Field(gt=0, le=LONGEST)] = Field(
        5.0, description="Seconds for one symbolic comparison."
    )
    plugins: dict[str, str] = Field(
        {},
        description="Further rewards: name -> path/to/file.py:function, inside the working folder.",
    )
    plugin_timeout: Annotated[float, Field(gt=0, le=LONGEST)] = Field(
        30.0, description="Seconds that a plug-in may take for one group."
    )
    plugin_environment: list[str] = Field(
        [], description="Variables that plug-ins see although their names or values look like secrets."
    )
    judge: JudgeConfig | None = Field(None, description="A language model as judge, for reward_judge; null is none.")

    def results(self) -> dict[str, Any]:
        """The values that change a reward, for a manifest: a longer time limit carries on where a run stopped."""
        running = {"plugin_timeout": True, "plugin_environment": True, "judge": JudgeConfig.RUNNING}
        return self.recorded(exclude=running)
