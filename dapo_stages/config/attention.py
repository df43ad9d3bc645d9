"""How attention to the image is measured."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import Count, Later, Section

GRADIENT_DIRECTIONS = 4  # in which attention.vision_gradient takes derivatives
BlankKind = Literal["gray", "patches", "removed", "noise", "exchanged"]


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
    blank: Annotated[BlankKind, Later("gray")] = Field(
        "gray",
        description="What blank_image makes of an image: gray, some squares black, taken out of the prompt, random "
        "pixels, or another prompt's image, drawn from seed and group among all of the rollout (docs/weighting.md).",
    )
    blank_share: Annotated[float, Field(gt=0, le=1), Later(0.6)] = Field(
        0.6, description="Probability that a square is blackened, for blank: patches."
    )
    blank_patch: Annotated[Count, Later(14)] = Field(14, description="Side of such a square, in pixels.")
    blank_draws: Annotated[Count, Later(1)] = Field(
        1,
        description="How often the changed images are drawn; each draw is another forward pass, and all are averaged.",
    )
    vision_cosine: Annotated[bool, Later(False)] = Field(
        False,
        description="Also record the cosine of the hidden state that predicted each token and the mean one of the "
        "image's tokens, in the last layer; includes logprobs and entropy.",
    )
    rollout_mass: Annotated[bool, Later(False)] = Field(
        False, description="Also record attention rollout to the image, over all layers together."
    )
    vision_gradient: Annotated[bool, Later(False)] = Field(
        False,
        description="Also record the norm of the gradient of each token's logprob at the image's embeddings, estimated "
        f"in {GRADIENT_DIRECTIONS} random directions, each a forward pass of more than twice the work; includes "
        "logprobs and entropy.",
    )
    batch_completions: Count = Field(64, description="Completions per forward pass.")
    chunk_rows: Count = Field(
        256, description="Rows of attention (per group) and of logits held in memory at the same time."
    )
    patch_completions: Annotated[int, Field(ge=0)] = Field(
        8, description="Completions per iteration whose attention is kept per image token, for heat maps in the report."
    )

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        if self.blank_draws > 1 and self.blank in ("gray", "removed"):
            raise ValueError(f"blank_draws must be 1 with blank: {self.blank}, whose draws are all the same")
        return self
