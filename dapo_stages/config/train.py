"""The update."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import Count, Fraction, Momentum, Section


class LoraSettings(Section):
    """Low-rank adapters instead of training every weight."""

    rank: Count = Field(16, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="Scale is alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the adapters' input; above 0 the policy ratio no longer starts at 1."
    )
    target_modules: tuple[str, ...] = Field(("q_proj", "v_proj"), description="Layers that get an adapter.")


class TrainConfig(Section):
    """The DAPO update."""

    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = Field(
        "dapo", description="How tokens are averaged; whatever the number of processes."
    )
    importance_sampling_level: Literal["token", "sequence"] = Field("token", description="Level of the policy ratio.")
    epsilon_low: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="Lower clip of the ratio.")
    epsilon_high: Annotated[float, Field(gt=0)] = Field(0.28, description="Upper clip of the ratio (clip-higher).")
    delta: Annotated[float, Field(gt=1)] | None = Field(
        None, description="Dual clip of large ratios, above 1 + epsilon_high; null is off."
    )
    engine_is_cap: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Cap of the importance weight between trainer and engine."
    )
    beta: Annotated[float, Field(ge=0)] = Field(0.0, description="Weight of the KL to the policy given as --reference.")
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

    @model_validator(mode="after")
    def _delta_is_above_the_clip(self) -> Self:
        if self.delta is not None and self.delta <= 1 + self.epsilon_high:
            raise ValueError(
                f"delta must exceed 1 + epsilon_high, {1 + self.epsilon_high:g}, or be null, found {self.delta:g}"
            )
        return self
