"""Settings that change over the iterations of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from dapo_stages.config.base import Section

# Settings that may have a schedule: numbers that every iteration reads again and that no model or file depends on.
SCHEDULED = (
    "rollout.sampler.temperature",
    "rollout.curriculum.target",
    "weights.smooth_sigma",
    "weights.mixing",
    "weights.negative_scale",
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
    "train.perception.coefficient",
    "train.perception.noise",
    "train.perception.entropy_coefficient",
)


SHARES = "rollout.source_shares."  # followed by the name of a dataset


def may_change(name: str) -> bool:
    """Whether a setting may have a schedule."""
    return name in SCHEDULED or name.startswith(SHARES)


class Schedule(Section):
    """How a number changes from `start`, in the first iteration, to `end`."""

    start: float = Field(description="Value in iteration 1.")
    end: float = Field(description="Final value, from the end of `over` on.")
    over: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Fraction of planned_iterations that the change takes."
    )
    shape: Literal["linear", "cosine", "step"] = Field(
        "linear", description="A straight line, half a cosine wave, or a single step at the end of `over`."
    )

    def at(self, iteration: int, planned_iterations: int) -> float:
        """The value in an iteration (counted from 1), between start and end."""
        # The tolerance treats 0.07 · 100 = 7.000…01 as a whole number of iterations.
        progress = (iteration - 1) / (self.over * planned_iterations)
        if progress >= 1 - 1e-9:
            return self.end
        if self.shape == "step":
            return self.start
        share = progress if self.shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
        value = (1.0 - share) * self.start + share * self.end
        return min(max(value, min(self.start, self.end)), max(self.start, self.end))  # despite rounding


def by_dotted_key(values: Any) -> Any:
    """`{train: {beta: {…}}}`, from --set schedules.train.beta={…}, as `{train.beta: {…}}`; drops null."""
    if not isinstance(values, Mapping):
        return values
    flat: dict[str, Any] = {}
    for key, value in _flat(values):
        both = isinstance(value, Mapping) and isinstance(flat.get(key), Mapping)
        flat[key] = {**flat[key], **value} if both else value
    return {key: value for key, value in flat.items() if value is not None}


def replaced(values: dict[str, Any], key: str, value: float) -> dict[str, Any]:
    """A configuration's plain values with another number under a dotted key; KeyError if there is no such key."""
    first, _, rest = key.partition(".")
    if not isinstance(values, dict) or first not in values:
        raise KeyError(first)
    return values | {first: replaced(values[first], rest, value) if rest else value}


def _flat(values: Mapping[Any, Any], place: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in values.items():
        key = f"{place}{name}"
        inner = isinstance(value, Mapping) and not (may_change(key) or value.keys() & Schedule.model_fields.keys())
        flat += _flat(value, f"{key}.") if inner and value else [(key, value)]
    return flat
