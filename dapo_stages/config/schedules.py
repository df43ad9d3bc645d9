"""Numbers that change over the iterations of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from dapo_stages.config.base import Section

# What may have a schedule: numbers that are read anew in every iteration and belong to no model or file.
SCHEDULED = (
    "rollout.sampler.temperature",
    "rollout.curriculum.target",
    "weights.smooth_sigma",
    "weights.reward_weights.accuracy",
    "weights.reward_weights.vgr",
    "weights.reward_weights.format",
    "weights.reward_weights.overlong",
    "weights.replay.min_reward",
    "weights.replay.priority_alpha",
    "weights.replay.priority_beta",
    "train.epsilon_low",
    "train.epsilon_high",
    "train.engine_is_cap",
    "train.beta",
    "train.entropy_coefficient",
    "train.top_entropy_quantile",
)


class Schedule(Section):
    """A number's way from `start`, in the first iteration, to `end`."""

    start: float = Field(description="Value in iteration 1.")
    end: float = Field(description="Value from the end of the share on.")
    over: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Share of planned_iterations that it takes.")
    shape: Literal["linear", "cosine", "step"] = Field(
        "linear", description="Straight, half a cosine wave, or all at once when the share is over."
    )

    def at(self, iteration: int, planned_iterations: int) -> float:
        """The value in an iteration (counted from 1), between start and end."""
        # The tolerance keeps 0.07 · 100 = 7.000…01 a whole number of iterations.
        progress = (iteration - 1) / (self.over * planned_iterations)
        if progress >= 1 - 1e-9:
            return self.end
        if self.shape == "step":
            return self.start
        share = progress if self.shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
        value = (1.0 - share) * self.start + share * self.end
        return min(max(value, min(self.start, self.end)), max(self.start, self.end))  # whatever is rounded


def by_dotted_key(values: Any) -> Any:
    """`{train: {beta: {…}}}`, what --set schedules.train.beta={…} gives, as `{train.beta: {…}}`; null is left out."""
    if not isinstance(values, Mapping):
        return values
    found: dict[str, Any] = {}
    for key, value in _flat(values):
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = {**found[key], **value} if both else value
    return {key: value for key, value in found.items() if value is not None}


def replaced(values: dict[str, Any], key: str, value: float) -> dict[str, Any]:
    """A configuration's plain values with another number under a dotted key; KeyError if there is no such key."""
    first, _, rest = key.partition(".")
    if not isinstance(values, dict) or first not in values:
        raise KeyError(first)
    return values | {first: replaced(values[first], rest, value) if rest else value}


def _flat(values: Mapping[Any, Any], place: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        key = f"{place}{name}"
        inner = isinstance(value, Mapping) and not (key in SCHEDULED or value.keys() & Schedule.model_fields.keys())
        found += _flat(value, f"{key}.") if inner and value else [(key, value)]
    return found
