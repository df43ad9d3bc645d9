"""Advantages, token weights, replay."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import Count, Fraction, Later, Section


class RewardWeights(Section):
    """Weight of each reward in the total."""

    accuracy: float = Field(2.5, description="Weight of reward_accuracy.")
    vgr: float = Field(0.0, description="Weight of reward_vgr.")
    format: float = Field(0.5, description="Weight of reward_format.")
    overlong: float = Field(1.0, description="Weight of reward_overlong.")
    plugins: dict[str, float] = Field({}, description="Weights of plug-ins and judge; 1 where not named.")


class EarlyRewardWeights(RewardWeights):
    """The same for the first phase: the format first."""

    accuracy: float = Field(1.0, description="Weight of reward_accuracy.")
    format: float = Field(2.0, description="Weight of reward_format.")


class ReplayConfig(Section):
    """Buffer of informative groups that stand in for groups without signal."""

    size: Annotated[int, Field(ge=0)] = Field(64, description="Groups kept; 0 switches replay off.")
    var_epsilon: Annotated[float, Field(ge=0)] = Field(1e-6, description="A group enters above this reward deviation.")
    min_reward: float = Field(1.5, description="A group enters above this mean reward.")
    max_staleness: Count = Field(10, description="Iterations after which a group leaves.")
    rule: Annotated[Literal["better", "replace_all"], Later("better")] = Field(
        "better",
        description="Who gives way: groups without deviation, and those below `min_reward` where stored ones that pass "
        "score higher; or every group that fails, whatever is stored.",
    )
    max_replays: Annotated[Count | None, Later(1)] = Field(
        1, description="Iterations that a stored group is drawn in; then it leaves. null: no limit."
    )
    priority_alpha: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Stored groups are drawn in proportion to their score to this power; 0 draws all alike."
    )
    priority_beta: Fraction = Field(
        0.0, description="How much of that preference `importance` takes back in the loss; 0 nothing, 1 all of it."
    )


class WeightsConfig(Section):
    """From attention and rewards to advantages and token weights."""

    scheme: Literal["uniform", "vgr", "aei", "vision_mass", "entropy", "visual_kl"] = Field(
        "vgr",
        description="What a token counts: all the same, 1/VGR, AEI of the picture, attention on it, entropy, or the KL "
        "between next-token distributions with the picture and without (docs/weighting.md).",
    )
    clip: tuple[float, float] = Field((0.2, 3.0), description="Bounds of a token weight; they enclose 1.")
    smooth_sigma: Annotated[float, Field(ge=0)] = Field(0.0, description="Gaussian smoothing over tokens; 0 is off.")
    mean_preserving: bool = Field(True, description="Keep the mean of a completion's weights at 1 inside the bounds.")
    reward_weights: RewardWeights = RewardWeights()
    early_reward_weights: EarlyRewardWeights = EarlyRewardWeights()
    early_fraction: Fraction = Field(0.1, description="Share of planned_iterations under early_reward_weights.")
    vgr_mapping: Literal["quantile", "mad"] = Field("quantile", description="From a group's VGR to rewards.")
    vgr_min_range: Annotated[float, Field(ge=0)] = Field(5.0, description="Least quantile range that counts.")
    vgr_sigma: Annotated[float, Field(gt=0)] = Field(1.0, description="Width of the mad mapping.")
    hard_negative: bool = Field(False, description="VGR reward for correct completions only, centred on zero.")
    scale_rewards: Literal["group", "batch", "none"] = Field("group", description="What divides the advantage.")
    filter: Literal["reward", "none"] = Field(
        "reward", description="Leave groups out of the loss whose total rewards are all equal, or none."
    )
    mask_truncated_completions: bool = Field(True, description="Truncated completions stay out of the loss.")
    replay: ReplayConfig = ReplayConfig()

    @model_validator(mode="after")
    def _clip_encloses_one(self) -> Self:
        if not 0 <= self.clip[0] < 1 < self.clip[1]:
            raise ValueError(f"clip must satisfy 0 <= lo < 1 < hi, found {list(self.clip)}")
        return self
