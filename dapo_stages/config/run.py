"""A whole run."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from dapo_stages.config.attention import AttentionConfig
from dapo_stages.config.base import Count, Section
from dapo_stages.config.data import DataConfig
from dapo_stages.config.engines import EnginesConfig
from dapo_stages.config.evaluate import EvaluateConfig
from dapo_stages.config.model import ModelConfig, WarmUpConfig
from dapo_stages.config.report import KeepConfig, ReportConfig
from dapo_stages.config.rewards import RewardsConfig
from dapo_stages.config.rollout import RolloutConfig
from dapo_stages.config.schedules import SCHEDULED, Schedule, by_dotted_key, replaced
from dapo_stages.config.train import TrainConfig
from dapo_stages.config.weights import WeightsConfig


class Config(Section):
    """A whole run."""

    seed: int = Field(42, ge=0, description="Seed of everything that is drawn.")
    planned_iterations: Count = Field(
        100, description="Length of the run behind learning-rate schedule and reward phases; ITERS never changes it."
    )
    lag: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Train-steps by which the policy that samples is older than it could be, so that both run at "
        "the same time; make sets it by LAG.",
    )
    model: ModelConfig = ModelConfig()
    warm_up: WarmUpConfig = WarmUpConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    engines: EnginesConfig = EnginesConfig()
    rewards: RewardsConfig = RewardsConfig()
    attention: AttentionConfig = AttentionConfig()
    weights: WeightsConfig = WeightsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    keep: KeepConfig = KeepConfig()
    schedules: dict[str, Schedule] = Field(
        {}, description="Numbers that change over the iterations, by their dotted key (docs/sampling.md)."
    )

    @field_validator("schedules", mode="before")
    @classmethod
    def _by_dotted_key(cls, values: Any) -> Any:
        return by_dotted_key(values)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        longest = self.rewards.overlong_max_length or self.rollout.max_completion_length
        if self.rewards.overlong_cache > longest:
            raise ValueError(
                f"rewards.overlong_cache must not exceed the longest completion, {longest} tokens, "
                f"found {self.rewards.overlong_cache}"
            )
        if self.model.quantization is not None and self.train.lora is None:
            raise ValueError(
                f"model.quantization {self.model.quantization} needs an adapter to train (train.lora: {{rank: 16}}); "
                "found train.lora null, which trains every weight"
            )
        for phase in ("reward_weights", "early_reward_weights"):
            known = self.rewards.plugins.keys() | ({"judge"} if self.rewards.judge else set())
            unknown = sorted(getattr(self.weights, phase).plugins.keys() - known)
            if unknown:
                raise ValueError(f"weights.{phase}.plugins names {unknown[0]!r}, which is not in rewards.plugins")
        temperature = self.rollout.sampler.temperature
        for stage, engine in (("rollout", self.rollout.engine), ("evaluate", self.evaluate.engine)):
            if engine == "transformers":
                continue
            if self.model.quantization is not None:
                raise ValueError(
                    f"{stage}.engine: found {engine} with model.quantization {self.model.quantization}; needed "
                    "transformers, which samples from the quantised base that is trained"
                )
            if temperature > 2:
                raise ValueError(
                    f"rollout.sampler.temperature: found {temperature}; needed at most 2 with {stage}.engine {engine}, "
                    "because it divides what keeps special tokens from being sampled"
                )
        return self

    @model_validator(mode="after")
    def _schedules_stay_in_range(self) -> Self:
        for name, schedule in self.schedules.items():
            if name not in SCHEDULED:
                raise ValueError(f"schedules: found {name!r}; needed one of {', '.join(SCHEDULED)}")
            for end in ("start", "end"):
                try:
                    self._with({name: getattr(schedule, end)})
                except KeyError:
                    raise ValueError(
                        f"schedules.{name}: found no {name.rpartition('.')[0]} section; needed one, such as {{}}"
                    ) from None
                except ValidationError as error:
                    found, needed = getattr(schedule, end), error.errors(include_url=False)[0]["msg"]
                    needed = needed.removeprefix("Value error, ")
                    raise ValueError(f"schedules.{name}.{end}: found {found:g}; needed: {needed}") from None
        return self

    def at(self, iteration: int) -> Config:
        """The configuration of an iteration (from 1): every schedule replaced by the number it gives there."""
        values = {name: found.at(iteration, self.planned_iterations) for name, found in self.schedules.items()}
        return self._with(values) if values else self

    def _with(self, numbers: dict[str, float]) -> Config:
        """With other numbers under dotted keys, checked, and without schedules."""
        values = self.model_dump() | {"schedules": {}}
        for name, number in numbers.items():
            values = replaced(values, name, number)
        return Config.model_validate(values)

    def sections(self, *names: str) -> dict[str, Any]:
        """The named sections (dotted names reach inside one) as plain values, for a manifest.

        Keys that came later are left out while they have the default they came with (config/base.py).
        """
        everything = self.recorded()
        found: dict[str, Any] = {}
        for name in names:
            value: Any = everything
            *parents, last = name.split(".")
            for key in parents:
                value = value[key]
            if last in value:
                found[name] = value[last]
        return found
