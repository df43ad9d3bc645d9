"""What a configuration asks of a model, checked by its family and the installed packages alone: without torch."""

from __future__ import annotations

from importlib.util import find_spec

from dapo_stages.config.attention import AttentionConfig
from dapo_stages.errors import EngineError, ModelError
from dapo_stages.models.families import FAMILIES, has_grids


def require_quantizer(kind: str) -> None:
    """Raise ModelError if bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization: {kind} needs bitsandbytes, which is not installed. Install it (.venv/bin/pip install "
            "bitsandbytes), or set model.quantization to null."
        )


def require_scores(family: str, settings: AttentionConfig) -> None:
    """Raise ModelError for a score that the family cannot have."""
    if not settings.enabled:
        return
    if settings.vision_gradient and family not in FAMILIES:
        raise ModelError(
            f"{family}: this model computes each completion in a row of its own, which has no "
            "attention.vision_gradient. Set it to false."
        )
    if settings.blank_image and settings.blank == "removed" and not has_grids(family):
        raise ModelError(
            f"{family}: images cannot be removed from the prompts of this model. Set attention.blank to patches."
        )


def require_head_scores(command: str, family: str) -> None:
    """Raise ModelError if a command that scores heads by what they write cannot have these scores of the family."""
    known = ", ".join(name for name, one in FAMILIES.items() if not one.gated)
    if family not in FAMILIES:
        raise ModelError(
            f"{command}: architecture `{family}` computes completions in rows of their own, but this needs completions "
            f"that share their prompt. Pass rollouts and a policy of {known}."
        )
    if FAMILIES[family].gated:
        raise ModelError(
            f"{command}: what a head of architecture `{family}` writes for a key depends on a gate of the token that "
            f"looks, and has no norm of its own. Pass rollouts and a policy of {known}."
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
    if not has_grids(family):
        known = ", ".join(filter(has_grids, FAMILIES))
        raise EngineError(
            f"{stage}.engine",
            f"server does not support policies of architecture {family} (only {known})",
            f"Set {stage}.engine to transformers or vllm.",
        )
