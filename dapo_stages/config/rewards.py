"""Rewards of a single completion, plug-ins and a judge."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import LONGEST, Count, Later, Section
from dapo_stages.config.engines import Endpoint


class JudgeConfig(Endpoint):
    """A language model that judges completions, called through OpenAI's chat completions API. Its API key comes from
    the environment: DAPO_STAGES_JUDGE_API_KEY, or OPENAI_API_KEY over https or on this machine."""

    model: str = Field(min_length=1, description="Name of the model on the server.")
    mode: Literal["rubric", "pairwise"] = Field(
        "rubric",
        description="rubric: each completion is scored on its own. pairwise: completions of a group are compared, each "
        "pair in both orders; the reward is the fraction of comparisons won.",
    )
    rubric: str = Field(
        "Is the final answer right, and does the reasoning lead to it from what the picture shows?",
        min_length=1,
        description="What to judge.",
    )
    scale: tuple[float, float] = Field((0.0, 10.0), description="Worst and best score; they map to rewards 0 and 1.")
    pairs: Count | None = Field(
        None, description="How many others each completion is compared with, rounded up to an even number; null is all."
    )
    image: bool = Field(False, description="Send the prompt's images too.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        0.0, description="Sampling temperature of the judge; null leaves it to the server."
    )
    max_tokens: Count = Field(512, description="Most tokens of the judge's reply.")
    max_requests: Count | None = Field(
        None,
        description="Most requests per iteration: only as many groups as they are enough for, the first ones, are "
        "judged. null is no limit.",
    )
    cache: str = Field(
        "training_logs/judge-cache.sqlite", min_length=1, description="Cache of replies, inside the working folder."
    )
    concurrency: Count = Field(16, description="Requests in flight at the same time.")
    timeout: Annotated[float, Field(gt=0, le=LONGEST)] = Field(
        120.0, description="Seconds to wait for a response; receiving all of it may take twice as long."
    )

    RUNNING: ClassVar[set[str]] = {*Endpoint.model_fields, "cache"}

    @model_validator(mode="after")
    def _scale_rises(self) -> Self:
        if not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale must increase from worst to best, got {list(self.scale)}")
        return self


class RewardsConfig(Section):
    """Rewards of single completions (weight-tokens computes those that need the group or attention)."""

    overlong_max_length: Count | None = Field(
        None, description="L_max of the overlong reward; null uses rollout.max_completion_length."
    )
    overlong_cache: Count = Field(50, description="L_cache: the reward decreases over this many tokens before L_max.")
    symbolic: bool = Field(True, description="Compare answers that are not letters with math-verify.")
    symbolic_timeout: Annotated[float, Field(gt=0, le=LONGEST)] = Field(
        5.0, description="Time limit in seconds for one symbolic comparison."
    )
    truncated_answers: Annotated[Literal["closed", "any"], Later("any")] = Field(
        "closed",
        description="Which answers of completions that the length limit cut off count. closed: those in an <answer> "
        "block that is closed. any: those that are stated otherwise, too.",
    )
    partial_credit: Annotated[bool, Later(False)] = Field(
        False,
        description="Where several options are right: reward some of them, and no wrong one, with their share.",
    )
    plugins: dict[str, str] = Field(
        {},
        description="More rewards: name -> path/to/file.py:function, inside the working folder.",
    )
    plugin_timeout: Annotated[float, Field(gt=0, le=LONGEST)] = Field(
        30.0, description="Time limit in seconds of a plug-in for one group."
    )
    plugin_environment: list[str] = Field(
        [], description="Environment variables passed to plug-ins although their names or values look like secrets."
    )
    judge: JudgeConfig | None = Field(
        None, description="A language model that judges completions, for reward_judge; null is none."
    )

    def results(self) -> dict[str, Any]:
        """The values that change a reward, for manifests; others, such as time limits, may change on resuming."""
        running = {"plugin_timeout": True, "plugin_environment": True, "judge": JudgeConfig.RUNNING}
        return self.recorded(exclude=running)
