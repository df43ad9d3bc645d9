"""How the look at the picture is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dapo_stages.config.base import Count, Section


class AttentionConfig(Section):
    """How the look at the picture is measured."""

    enabled: bool = Field(True, description="Off: every token weighs 1 and the VGR reward is neutral.")
    query: Literal["predicting", "token"] = Field(
        "predicting", description="Whose attention counts for token t: the position that predicted it, or its own."
    )
    groups: Literal["kept", "all"] = Field("kept", description="Score only groups that go on to training, or all.")
    logprobs: bool = Field(
        False, description="Also log-prob and entropy of each token under the policy, for the scheme entropy."
    )
    blank_image: bool = Field(
        False,
        description="Also log-probs with the picture blanked, and the KL between the next-token distributions with it "
        "and without, for the scheme visual_kl; log-probs and entropy come with it. A second forward pass.",
    )
    batch_completions: Count = Field(64, description="Completions per forward pass.")
    chunk_rows: Count = Field(
        256, description="Rows of attention held in memory at the same time, per group, and of logits."
    )
    patch_completions: Annotated[int, Field(ge=0)] = Field(
        8, description="Completions per iteration whose attention is kept per image token, for pictures."
    )
