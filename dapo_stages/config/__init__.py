"""One YAML file configures a run. Frozen pydantic models, one module per group of sections, define every setting, its
range and its meaning.

A stage records the sections it used in its manifest, so settings that change no result have sections of their own
(engines, report, keep).
"""

from dapo_stages.config.attention import AttentionConfig
from dapo_stages.config.base import Section
from dapo_stages.config.data import ColumnsConfig, DataConfig, SyntheticConfig
from dapo_stages.config.engines import Endpoint, EnginesConfig, ServerConfig, VllmConfig
from dapo_stages.config.evaluate import EvaluateConfig
from dapo_stages.config.loading import dump_config, load_config
from dapo_stages.config.model import ModelConfig, WarmUpConfig
from dapo_stages.config.report import KeepConfig, ReportConfig
from dapo_stages.config.rewards import JudgeConfig, RewardsConfig
from dapo_stages.config.rollout import CurriculumConfig, RolloutConfig, SamplerConfig
from dapo_stages.config.run import Config
from dapo_stages.config.schedules import Schedule
from dapo_stages.config.sft import SftConfig
from dapo_stages.config.train import GuardSettings, LoraSettings, PerceptionSettings, TrainConfig
from dapo_stages.config.weights import EarlyRewardWeights, ReplayConfig, RewardWeights, SelectConfig, WeightsConfig

__all__ = [
    "AttentionConfig",
    "ColumnsConfig",
    "Config",
    "CurriculumConfig",
    "DataConfig",
    "EarlyRewardWeights",
    "Endpoint",
    "EnginesConfig",
    "EvaluateConfig",
    "GuardSettings",
    "JudgeConfig",
    "KeepConfig",
    "LoraSettings",
    "ModelConfig",
    "PerceptionSettings",
    "ReplayConfig",
    "ReportConfig",
    "RewardWeights",
    "RewardsConfig",
    "RolloutConfig",
    "SamplerConfig",
    "Schedule",
    "Section",
    "SelectConfig",
    "ServerConfig",
    "SftConfig",
    "SyntheticConfig",
    "TrainConfig",
    "VllmConfig",
    "WarmUpConfig",
    "WeightsConfig",
    "dump_config",
    "load_config",
]
