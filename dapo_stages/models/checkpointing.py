"""Gradient checkpointing: activations of a layer are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any


def recompute_activations(model: Any) -> None:
    """Train with gradient checkpointing."""
    # The newer of two names; releases of transformers that have both warn about the older one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.enable_input_require_grads()


def keep_activations(model: Any) -> None:
    """Undo that, if it was done."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
        disable()
    if hasattr(model, "disable_input_require_grads"):
        model.disable_input_require_grads()
