"""How attention to the image is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapo_stages.config.base import Count, Section


class AttentionConfig(Section):
    """How attention to the image is measured."""

    enabled: bool = Field(True, description="If off, every token has weight 1 and the VGR reward is neutral.")
    query: Literal["predicting", "token"] = Field(
        "predicting",
        description="Whose attention counts for token t: that of the position that predicted it, or its own.",
    )
    groups: Literal["kept", "all"] = Field(
        "kept", description="Score only the groups that are kept for training, or all."
    )
    logprobs: bool = Field(
        False, description="Also record each token's logprob and entropy under the policy, for the scheme entropy."
    )
    blank_image: bool = Field(
        False,
        description="Also record logprobs with the image blanked, and the KL between the next-token distributions with "
        "and without it, for the scheme visual_kl; includes logprobs and entropy. Costs a second forward pass.",
    )
    batch_completions: Count = Field(64, description="Completions per forward pass.")
    chunk_rows: Count = Field(
        256, description="Rows of attention (per group) and of logits held in memory at the same time."
    )
    patch_completions: Annotated[int, Field(ge=0)] = Field(
        8, description="Completions per iteration whose attention is kept per image token, for heat maps in the report."
    )
