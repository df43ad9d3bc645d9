"""The update."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import Count, Fraction, Momentum, Positive, Section


class LoraSettings(Section):
    """Low-rank adapters instead of training every weight."""

    rank: Count = Field(16, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="Scale is alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the adapters' input; above 0 the policy ratio no longer starts at 1."
    )
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "v_proj"),
        description="Layers that get an adapter, by names or their ends; none whose weights are tied to another's.",
    )


class GuardSettings(Section):
    """Where numbers blow up: `skip` leaves weights and moments as they are, `halt` ends the stage without an output."""

    non_finite: Literal["skip", "halt"] = Field("skip", description="A loss or gradient that is NaN or infinite.")
    grad_norm: Literal["skip", "halt"] = Field("skip", description="A gradient above max_grad_norm, before clipping.")
    max_grad_norm: Positive | None = Field(
        1e6, description="Norm that is no gradient any more (train.max_grad_norm clips what is); null is off."
    )
    ratio: Literal["skip", "halt"] = Field("halt", description="Log-ratios above max_log_ratio.")
    max_log_ratio: Positive | None = Field(
        5.0,
        description="Mean of abs(log-ratio) in nats per token: of the policy to the one before this train-step, and to "
        "what the engine recorded of this very policy; null is off.",
    )
    no_signal: Literal["skip", "halt", "train"] = Field(
        "skip",
        description="An update whose advantages are all 0 (all rewards equal), without KL and entropy bonus; `train` "
        "lets momentum move the policy.",
    )
    max_skipped: Count | None = Field(
        8,
        description="Updates in a row, over iterations, that may be skipped for their numbers; one more halts. null is "
        "off.",
    )
    collapse_below: Fraction | None = Field(
        0.02,
        description="Share of well-formed, or of finished, completions below which rollouts have collapsed, if half of "
        "them were so in an earlier iteration: halt. null is off.",
    )


class TrainConfig(Section):
    """The DAPO update."""

    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo"] = Field(
        "dapo", description="The loss, and how tokens are averaged; whatever the number of processes."
    )
    importance_sampling_level: Literal["token", "sequence"] | None = Field(
        None, description="Level of the policy ratio; null is token, and sequence under gspo."
    )
    epsilon_low: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Lower clip of the ratio, 1 - epsilon_low; cispo has none."
    )
    epsilon_high: Annotated[float, Field(gt=0)] = Field(
        0.28, description="Upper clip of the ratio, 1 + epsilon_high (clip-higher), of whatever loss."
    )
    delta: Annotated[float, Field(gt=1)] | None = Field(
        None, description="Dual clip of large ratios, above 1 + epsilon_high; null is off."
    )
    engine_is_cap: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Cap of the importance weight between trainer and engine."
    )
    engine_is_level: Literal["token", "sequence"] = Field(
        "token", description="Whether that weight is of each token or the product over its completion."
    )
    beta: Annotated[float, Field(ge=0)] = Field(0.0, description="Weight of the KL to the policy given as --reference.")
    reference_update_every: Count | None = Field(
        None,
        description="Train-steps after which the reference moves towards the policy (TR-DPO); null keeps it. The new "
        "one is in the train-step's folder. Read if beta > 0.",
    )
    reference_mixup_alpha: Annotated[float, Field(gt=0, le=1)] = Field(
        0.6, description="Share of the policy in the new reference, the rest is of the old one; 1 replaces it."
    )
    entropy_coefficient: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Bonus for the mean entropy of the tokens in the policy term, in nats; 0 is off."
    )
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of tokens, by entropy, that the loss keeps; 1 keeps all."
    )
    updates_per_iteration: Count = Field(4, description="Mini-batches (optimiser steps) per iteration.")
    batch_completions: Count = Field(
        4,
        description="Completions per forward and backward of a process; gradients accumulate over a mini-batch, whose "
        "micro-batches the processes share.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: matrices by Muon, the rest by AdamW; alone or under DDP."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Peak learning rate.")
    muon_learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="Peak learning rate of Muon's matrices (scaled to match AdamW's update size)."
    )
    betas: tuple[Momentum, Momentum] = Field((0.9, 0.999), description="AdamW's moments.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="Decoupled weight decay.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Over all planned updates.")
    warmup_fraction: Fraction = Field(0.05, description="Share of the planned updates that warms up.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradient clipping.")
    gradient_checkpointing: bool = Field(True, description="Recompute activations in the backward pass.")
    freeze_vision: bool = Field(False, description="Keep the vision tower as it is.")
    lora: LoraSettings | None = Field(None, description="Adapters; null trains every weight.")
    logprob_chunk: Count = Field(1024, description="Rows of logits held in memory at the same time.")
    guard: GuardSettings = GuardSettings()

    @model_validator(mode="after")
    def _delta_is_above_the_clip(self) -> Self:
        if self.delta is not None and self.delta <= 1 + self.epsilon_high:
            raise ValueError(
                f"delta must exceed 1 + epsilon_high, {1 + self.epsilon_high:g}, or be null, found {self.delta:g}"
            )
        return self

    @model_validator(mode="after")
    def _loss_type_has_what_is_set(self) -> Self:
        if self.loss_type == "gspo" and self.importance_sampling_level == "token":
            raise ValueError(
                "importance_sampling_level must be sequence or null under loss_type gspo, found token; the ratio of "
                "the token with gspo's normaliser is loss_type grpo"
            )
        if self.loss_type == "cispo" and self.delta is not None:
            raise ValueError(
                f"delta must be null under loss_type cispo, found {self.delta:g}; epsilon_high caps its ratio for "
                "advantages of either sign"
            )
        return self
