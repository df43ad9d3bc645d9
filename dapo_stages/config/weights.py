"""Advantages, token weights, replay."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from dapo_stages.config.base import Count, Fraction, Later, Section, named_or_own
from dapo_stages.config.layers import Layers

OF_LAYERS = ("vgr", "aei", "vgr_entropy")  # schemes that weights.layers applies to: those of the VGR


class RewardWeights(Section):
    """Weight of each reward in the total."""

    accuracy: float = Field(2.5, description="Weight of reward_accuracy.")
    vgr: float = Field(0.0, description="Weight of reward_vgr.")
    format: float = Field(0.5, description="Weight of reward_format.")
    overlong: float = Field(1.0, description="Weight of reward_overlong.")
    plugins: dict[str, float] = Field({}, description="Weights of plug-ins and the judge; 1 unless given.")


class EarlyRewardWeights(RewardWeights):
    """Reward weights of the first phase, which emphasize the format."""

    accuracy: float = Field(1.0, description="Weight of reward_accuracy.")
    format: float = Field(2.0, description="Weight of reward_format.")


class ReplayConfig(Section):
    """Buffer of informative groups that replace groups without signal."""

    size: Annotated[int, Field(ge=0)] = Field(64, description="Most groups in the buffer; 0 turns replay off.")
    var_epsilon: Annotated[float, Field(ge=0)] = Field(
        1e-6, description="A group is stored if the standard deviation of its rewards is above this."
    )
    min_reward: float = Field(1.5, description="A group is stored if its mean reward is above this.")
    max_staleness: Count = Field(10, description="Iterations after which a group leaves the buffer.")
    rule: Annotated[Literal["better", "replace_all"], Later("better")] = Field(
        "better",
        description="Which groups are replaced. better: those with equal rewards, and those below `min_reward` if "
        "stored groups score higher. replace_all: every group that would not be stored.",
    )
    max_replays: Annotated[Count | None, Later(1)] = Field(
        1, description="How many iterations a stored group is drawn in before it leaves; null is no limit."
    )
    priority_alpha: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Stored groups are drawn in proportion to score ** priority_alpha; 0 draws uniformly."
    )
    priority_beta: Fraction = Field(
        0.0, description="How much of that preference importance weights undo in the loss; 0 nothing, 1 all of it."
    )


SCHEMES = (
    "uniform", "vgr", "aei", "vision_mass", "entropy", "visual_kl", "vgr_entropy", "rollout_mass", "vision_gradient",
    "vppo", "pgpo", "tor", "vepo", "pepo", "vgpo",
)  # fmt: skip
ADVANTAGES = ("grpo", "gdpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "pass_at_k", "opo")
Language = Literal["en", "zh"]


class SelectConfig(Section):
    """Which tokens are in the loss; the others weigh 0, whatever the lower bound of `weights.clip`."""

    top: Annotated[float, Field(gt=0, le=1)] = Field(
        description="Fraction of the tokens that is selected, those with the largest raw weights."
    )
    by: Literal["completion", "batch"] = Field(
        "completion", description="Whether that is of each completion, or of all tokens in the loss of the iteration."
    )
    equal: bool = Field(False, description="Let all selected tokens weigh the same, instead of by their raw weights.")


class WeightsConfig(Section):
    """From attention and rewards to advantages and token weights."""

    scheme: str = Field(
        "vgr",
        description="What a token's weight comes from: nothing (uniform), 1/VGR, attention, entropy, the dependence on "
        f"the image, or a published formula: {', '.join(SCHEMES)} (docs/weighting.md). Or a function of yours, "
        "path/to/file.py:function.",
    )
    layers: Annotated[Layers, Later("all")] = Field(
        "all",
        description="Layers whose VGR vgr, aei and vgr_entropy take: all, a third of them (early, middle, late), "
        "`{last: 6}`, or a list counted from 0. For the latter two score-attention measures them in addition.",
    )
    clip: tuple[float, float] = Field(
        (0.2, 3.0), description="Lower and upper bound of a token weight; must enclose 1."
    )
    smooth_sigma: Annotated[float, Field(ge=0)] = Field(0.0, description="Gaussian smoothing over tokens; 0 is off.")
    mean_preserving: bool = Field(True, description="Keep the mean weight of a completion at 1, within the bounds.")
    select: Annotated[SelectConfig | None, Later(None)] = Field(
        None, description="Keep only the tokens with the largest raw weights in the loss; null keeps all."
    )
    position_bonus: Annotated[float, Field(ge=0, le=2), Later(0.0)] = Field(
        0.0,
        description="By how much the last token weighs more than the first, in multiples of the mean weight; linear.",
    )
    mixing: Annotated[Fraction, Later(1.0)] = Field(
        1.0, description="Share λ of these weights, 1 - λ + λ w: 0 weighs all alike. A schedule can raise it."
    )
    stop_words: Annotated[Language | tuple[Language, ...] | None, Later(None)] = Field(
        None, description="Languages whose function words count as stop words: en, zh, or a list of both."
    )
    stop_word_weight: Annotated[float, Field(ge=0), Later(0.2)] = Field(
        0.2, description="Factor on the raw weights of stop words."
    )
    answer_tokens: Annotated[Annotated[float, Field(ge=0)] | None, Later(None)] = Field(
        None,
        description="Raw weight of tokens inside `<answer>…</answer>`, in multiples of the mean of the others; null "
        "leaves it to the scheme.",
    )
    format_tokens: Annotated[Annotated[float, Field(ge=0)] | None, Later(None)] = Field(
        None, description="The same for the tokens of the tags of think and answer."
    )
    completion_factor: Annotated[Literal["none", "vppo", "vgpo", "dyco"], Later("none")] = Field(
        "none",
        description="Let completions of a group that depend or look more on the image weigh more, with mean 1: by k3, "
        "by vision_cosine, or by attention to image and question (docs/weighting.md).",
    )
    negative_scale: Annotated[float, Field(ge=0), Later(1.0)] = Field(
        1.0, description="Factor on the token weights of completions with a negative advantage."
    )
    reward_weights: RewardWeights = RewardWeights()
    early_reward_weights: EarlyRewardWeights = EarlyRewardWeights()
    early_fraction: Fraction = Field(0.1, description="Fraction of planned_iterations with early_reward_weights.")
    vgr_mapping: Literal["quantile", "mad"] = Field("quantile", description="How a group's VGR values become rewards.")
    vgr_layers: Annotated[Layers, Later("all")] = Field(
        "all", description="Layers whose VGR is rewarded; the values are those of weights.layers."
    )
    vgr_min_range: Annotated[float, Field(ge=0)] = Field(
        5.0, description="Smallest quantile range that is not treated as noise."
    )
    vgr_min_relative_range: Annotated[Annotated[float, Field(ge=0)] | None, Later(None)] = Field(
        None,
        description="Smallest spread of a group's VGR that is not treated as noise, as a fraction of its median: the "
        "quantile range, or for mad twice the MAD. null: 0.1 for quantile, 0 for mad.",
    )
    vgr_sigma: Annotated[float, Field(gt=0)] = Field(1.0, description="Width of the mad mapping.")
    hard_negative: bool = Field(False, description="VGR reward for correct completions only, centered on zero.")
    advantage: Annotated[str, Later("grpo")] = Field(
        "grpo",
        description=f"How rewards become advantages: {', '.join(ADVANTAGES)} (docs/objective.md). grpo subtracts the "
        "group's mean and divides by what scale_rewards says, which the others do not read. Or a function of yours, "
        "path/to/file.py:function.",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="Whose standard deviation of rewards divides the advantage."
    )
    filter: Literal["reward", "none"] = Field(
        "reward",
        description="reward: leave groups whose total rewards are all equal out of the loss. none: keep all groups.",
    )
    mask_truncated_completions: bool = Field(True, description="Leave truncated completions out of the loss.")
    replay: ReplayConfig = ReplayConfig()

    @field_validator("scheme", mode="after")
    @classmethod
    def _known_scheme(cls, scheme: str) -> str:
        return named_or_own(scheme, SCHEMES)

    @field_validator("advantage", mode="after")
    @classmethod
    def _known_advantage(cls, advantage: str) -> str:
        return named_or_own(advantage, ADVANTAGES)

    @model_validator(mode="after")
    def _layers_count(self) -> Self:
        if self.layers != "all" and self.scheme in SCHEMES and self.scheme not in OF_LAYERS:
            schemes = ", ".join(OF_LAYERS[:-1]) + f" and {OF_LAYERS[-1]}"
            raise ValueError(
                f"layers must be all with scheme {self.scheme}, which is not made of VGR; {schemes} take other layers"
            )
        return self

    @model_validator(mode="after")
    def _scale_is_that_of_grpo(self) -> Self:
        if self.advantage != "grpo" and self.scale_rewards != "group":
            raise ValueError(
                f"scale_rewards must be group, its default, with advantage {self.advantage}, got {self.scale_rewards}; "
                "only grpo lets one choose what it divides by"
            )
        return self

    @model_validator(mode="after")
    def _clip_encloses_one(self) -> Self:
        if not 0 <= self.clip[0] < 1 < self.clip[1]:
            raise ValueError(f"clip must satisfy 0 <= lo < 1 < hi, got {list(self.clip)}")
        return self
