"""Terms of the objective that have settings of their own."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import Positive, Section


class KlSettings(Section):
    """The KL term, which train.beta weighs (docs/objective.md)."""

    estimator: Literal["k1", "k2", "k3", "abs"] = Field(
        "k3", description="Estimate of the divergence at a token: the value of the term."
    )
    gradient: Literal["reverse", "corrected", "own"] = Field(
        "reverse",
        description="reverse: that of KL(policy || reference), new - ref. corrected: that of the estimate times the "
        "policy ratio (TRL). own: that of the estimate, which grows exponentially for k3.",
    )
    clamp: Positive | None = Field(
        None,
        description="Largest size of the estimate at a token (verl, EasyR1, ms-swift: 10); with gradient own, a token "
        "beyond it has no gradient. null is off.",
    )
    target: Positive | None = Field(
        None,
        description="KL (nats per token) that the weight of the term follows after every update, from train.beta on "
        "(verl's adaptive controller); null keeps it at train.beta.",
    )
    horizon: Positive = Field(
        10000.0,
        description="Over how many completions it follows: a fifth of completions / horizon at most per update.",
    )


class EntropyControl(Section):
    """An entropy bonus that follows the entropy, as Skywork-OR1's and TRL's use_adaptive_entropy."""

    target: Positive = Field(
        0.2,
        description="Entropy (nats per token) at or below which the bonus counts and grows; above it, it does not "
        "count and shrinks.",
    )
    step: Positive = Field(0.005, description="By how much its weight changes per update.")
    lowest: Annotated[float, Field(ge=0)] = Field(0.0, description="Smallest weight.")
    highest: Positive = Field(1.0, description="Largest weight.")

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.lowest > self.highest:
            raise ValueError(f"lowest must be at most highest, got {self.lowest:g} and {self.highest:g}")
        return self


class EngineMaskSettings(Section):
    """Bounds on the importance weight exp(old - sampling), beyond which tokens leave the policy term."""

    level: Literal["token", "sequence", "sequence_mean"] = Field(
        "token", description="As engine_is_level: the weight of a token, or of a completion, which leaves as a whole."
    )
    low: Positive | None = Field(None, description="Lower bound; null is none.")
    high: Positive | None = Field(None, description="Upper bound; null is none.")

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("engine_mask needs low or high, got null for both; null instead of the section is off")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low must be less than high, got {self.low:g} and {self.high:g}")
        return self
