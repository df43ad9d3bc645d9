"""The configuration of a run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from dapo_stages.config.attention import AttentionConfig
from dapo_stages.config.base import Count, Later, Section, complaint
from dapo_stages.config.data import DataConfig
from dapo_stages.config.engines import EnginesConfig
from dapo_stages.config.evaluate import EvaluateConfig
from dapo_stages.config.model import ModelConfig, WarmUpConfig
from dapo_stages.config.report import KeepConfig, ReportConfig
from dapo_stages.config.rewards import RewardsConfig
from dapo_stages.config.rollout import RolloutConfig
from dapo_stages.config.schedules import SCHEDULED, SHARES, Schedule, by_dotted_key, may_change, replaced
from dapo_stages.config.sft import SftConfig
from dapo_stages.config.train import TrainConfig
from dapo_stages.config.weights import WeightsConfig

Verify = Literal["changed", "always"]
SamplingStage = Literal["rollout", "evaluate"]


class Config(Section):
    """The configuration of a run."""

    seed: int = Field(42, ge=0, description="Seed of all randomness.")
    planned_iterations: Count = Field(
        100,
        description="Iterations that learning-rate schedule and reward phases are spread over; ITERS never changes it.",
    )
    lag: Annotated[int, Field(ge=0)] = Field(
        0,
        description="How many train-steps behind the latest policy rollouts are sampled, so that sampling and training "
        "can run at the same time; make sets it from LAG.",
    )
    model: ModelConfig = ModelConfig()
    warm_up: WarmUpConfig = WarmUpConfig()
    data: DataConfig = DataConfig()
    sft: Annotated[SftConfig | None, Later(None)] = Field(
        None, description="Supervised steps before the run, in init-policy; null is none."
    )
    rollout: RolloutConfig = RolloutConfig()
    engines: EnginesConfig = EnginesConfig()
    rewards: RewardsConfig = RewardsConfig()
    attention: AttentionConfig = AttentionConfig()
    weights: WeightsConfig = WeightsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    keep: KeepConfig = KeepConfig()
    verify: Annotated[Verify, Later("changed")] = Field(
        "changed",
        description="Which input files are read to be compared with their hashes: those that have changed since they "
        "were last hashed on this machine, by their times, or always all.",
    )
    schedules: dict[str, Schedule] = Field(
        {}, description="Settings that change over the iterations, by dotted key (docs/sampling.md)."
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
                f"rewards.overlong_cache must be at most the longest completion ({longest} tokens), "
                f"got {self.rewards.overlong_cache}"
            )
        if self.model.quantization is not None and self.train.lora is None:
            raise ValueError(
                f"model.quantization {self.model.quantization} needs an adapter to train (train.lora: {{rank: 16}}), "
                "but train.lora is null, which trains every weight"
            )
        if self.model.quantization is not None and self.attention.vision_gradient:
            raise ValueError(
                f"attention.vision_gradient must be false with model.quantization {self.model.quantization}, whose "
                "layers have no derivative in forward mode"
            )
        if self.warm_up.captions and (task := self.data.synthetic.task) != "places":
            raise ValueError(f"warm_up.captions is {self.warm_up.captions:g}, but task {task} has no captions")
        for phase in ("reward_weights", "early_reward_weights"):
            known = self.rewards.plugins.keys() | ({"judge"} if self.rewards.judge else set())
            unknown = sorted(getattr(self.weights, phase).plugins.keys() - known)
            if unknown:
                raise ValueError(f"weights.{phase}.plugins names {unknown[0]!r}, which is not in rewards.plugins")
        for followed, fixed in (("kl.target", "beta"), ("entropy_control", "entropy_coefficient")):
            is_set = self.train.kl.target is not None if fixed == "beta" else self.train.entropy_control is not None
            if is_set and f"train.{fixed}" in self.schedules:
                raise ValueError(f"train.{followed} and a schedule of train.{fixed} cannot both say how it changes")
        self._check_informative()
        self._check_shares()
        stages: tuple[tuple[SamplingStage, str], ...] = (
            ("rollout", self.rollout.engine),
            ("evaluate", self.evaluate.engine),
        )
        for stage, engine in stages:
            temperature, own = self.sampled(stage).sampler.temperature, stage == "evaluate" and self.evaluate.sampler
            if engine == "transformers":
                continue
            if self.model.quantization is not None:
                raise ValueError(
                    f"{stage}.engine must be transformers with model.quantization {self.model.quantization}, to sample "
                    f"from the quantized base that is trained (got {engine})"
                )
            if temperature > 2:
                key = f"{stage if own else 'rollout'}.sampler.temperature"
                raise ValueError(
                    f"{key} must be at most 2 with {stage}.engine {engine}, because it divides the bias that keeps "
                    f"special tokens from being sampled (got {temperature})"
                )
        return self

    def _check_informative(self) -> None:
        """Raise ValueError if rollout.informative names a reward that rollout does not know."""
        if self.rollout.informative is None:
            return
        reward = self.rollout.informative.reward
        known = ["accuracy", "format", "overlong", *sorted(self.rewards.plugins)]
        known += ["judge"] if self.rewards.judge else []
        if reward not in (*known, "total"):
            raise ValueError(
                f"rollout.informative.reward must be one of {', '.join([*known, 'total'])}, got {reward!r}"
            )
        if reward == "total":
            for phase in ("reward_weights", "early_reward_weights"):
                if weight := getattr(self.weights, phase).vgr:
                    raise ValueError(
                        f"rollout.informative.reward total needs weights.{phase}.vgr 0, because VGR is not known at "
                        f"rollout (got {weight:g})"
                    )

    def _check_shares(self) -> None:
        """Raise ValueError if rollout.source_shares does not fit data.sources."""
        shares, names = self.rollout.source_shares, self.data.sources.keys()
        if shares and shares.keys() != names:
            raise ValueError(
                f"rollout.source_shares must name the datasets of data.sources ({', '.join(names) or 'none'}), got "
                f"{', '.join(shares)}"
            )
        if shares and not any(shares.values()):
            raise ValueError("rollout.source_shares must have a share above 0")
        if shares and self.rollout.curriculum is not None:
            raise ValueError(
                "rollout.source_shares cannot be combined with rollout.curriculum, which swaps prompts of all datasets"
            )

    @model_validator(mode="after")
    def _schedules_stay_in_range(self) -> Self:
        for name, schedule in self.schedules.items():
            if not may_change(name):
                known = ", ".join([*SCHEDULED, f"{SHARES}NAME"])
                raise ValueError(f"schedules: {name!r} cannot have a schedule (expected one of {known})")
            for end in ("start", "end"):
                try:
                    self._with({name: getattr(schedule, end)})
                except KeyError:
                    section = name.rpartition(".")[0]
                    raise ValueError(f"schedules.{name} needs the section {section}, such as {{}}") from None
                except ValidationError as error:
                    problem, value = error.errors(include_url=False)[0], f"{getattr(schedule, end):g}"
                    if problem["type"] == "value_error":
                        raise ValueError(f"schedules.{name}.{end} is {value}{complaint(problem)}") from None
                    raise ValueError(f"schedules.{name}.{end}{complaint(problem)} (got {value})") from None
        return self

    def at(self, iteration: int) -> Config:
        """The configuration of an iteration (from 1): every schedule replaced by its value there."""
        values = {name: schedule.at(iteration, self.planned_iterations) for name, schedule in self.schedules.items()}
        return self._with(values) if values else self

    def _with(self, numbers: dict[str, float]) -> Config:
        """A validated copy with other numbers under dotted keys, and without schedules."""
        values = self.model_dump() | {"schedules": {}}
        for name, number in numbers.items():
            values = replaced(values, name, number)
        return Config.model_validate(values)

    def sampled(self, stage: SamplingStage) -> RolloutConfig:
        """How completions are sampled in a stage: as in rollout, but for what evaluate has of its own."""
        own = self.evaluate if stage == "evaluate" else None
        if own is None or (own.sampler is None and own.max_completion_length is None):
            return self.rollout
        return self.rollout.model_copy(
            update={
                "sampler": own.sampler or self.rollout.sampler,
                "max_completion_length": own.max_completion_length or self.rollout.max_completion_length,
            }
        )

    @property
    def micro_batch(self) -> int:
        """train.batch_completions where memory is not looked at: a whole group for auto."""
        asked = self.train.batch_completions
        return self.rollout.num_generations if asked == "auto" else asked

    def sections(self, *names: str) -> dict[str, Any]:
        """The named sections (dotted names go into one) as plain values, for a manifest.

        Later settings are left out while they have their original default (config/base.py).
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
