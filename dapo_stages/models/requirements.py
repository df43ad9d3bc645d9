"""What a configuration asks of a model, checked by its family and the installed packages alone: without torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dapo_stages.errors import EngineError, ModelError
from dapo_stages.models.families import FAMILIES


def require_quantizer(kind: str) -> None:
    """Raise ModelError if bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization: {kind} needs bitsandbytes, which is not installed. Install it (.venv/bin/pip install "
            "bitsandbytes), or set model.quantization to null."
        )


def require_readable_attention(path: str | Path, family: str) -> None:
    """Raise ModelError if the attention of the family cannot be read."""
    if family not in FAMILIES:
        raise ModelError(
            f"{path}: the attention of architecture `{family}` cannot be read, only that of {', '.join(FAMILIES)}. Set "
            "model.name to one of these, or attention.enabled to false."
        )


def require_whole_rows(family: str, *, splits: bool) -> None:
    """Raise ModelError if the family needs a row for each completion, in a launch that splits the weights."""
    if splits and family not in FAMILIES:
        raise ModelError(
            f"{family}: this model needs a row per completion, which a launch that splits its weights cannot train. "
            "Launch with zero2 or ddp."
        )


def require_served(stage: str, family: str) -> None:
    """Raise EngineError if the engine `server` does not take prompts of the family."""
    if family not in FAMILIES:
        raise EngineError(
            f"{stage}.engine",
            f"server does not support policies of architecture {family} (only {', '.join(FAMILIES)})",
            f"Set {stage}.engine to transformers or vllm.",
        )
