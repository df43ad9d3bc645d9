"""Which settings go with which launch, checked before anything is loaded: without torch."""

from __future__ import annotations

from importlib.util import find_spec

from dapo_stages.config import ModelConfig
from dapo_stages.errors import ConfigError


def check_framework(kind: str, model: ModelConfig) -> None:
    """Raise ConfigError if DeepSpeed is missing, or cannot train the data type. `kind`: DEEPSPEED, FSDP, or other."""
    if kind == "DEEPSPEED":
        if find_spec("deepspeed") is None:
            raise ConfigError("DeepSpeed: it is not installed. Run pip install deepspeed.")
        if model.dtype == "float64":
            raise ConfigError("model.dtype: float64 does not work with DeepSpeed. Set it to bfloat16 or float32.")


def check_split(model: ModelConfig, *, splits: bool) -> None:
    """Raise ConfigError for quantized weights in a launch that splits them."""
    if model.quantization is not None and splits:
        raise ConfigError(
            f"model.quantization: {model.quantization} does not work in a launch that splits weights over the ranks. "
            "Launch with ddp or zero2, or set it to null."
        )


def require_adamw(optimizer: str) -> None:
    """Raise ConfigError for any other optimizer, in a launch that flattens or splits weights."""
    if optimizer != "adamw":
        raise ConfigError(
            f"train.optimizer: {optimizer} does not work in a launch that flattens weights and splits them over "
            "ranks. Set it to adamw, or launch with ddp."
        )
