"""policy_loss with its inputs and settings by name, for tests that vary one of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

from dapo_stages.maths.loss_inputs import LossInputs
from dapo_stages.maths.loss_types import LossSettings
from dapo_stages.maths.objective import policy_loss


def loss_of(*, normalizer: float, entropy_normalizer: float = 1.0, **others: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of these fields of LossInputs and LossSettings."""
    tensors = {field.name for field in fields(LossInputs)}
    inputs = LossInputs(**{name: value for name, value in others.items() if name in tensors})
    settings = LossSettings(**{name: value for name, value in others.items() if name not in tensors})
    return policy_loss(inputs, settings, normalizer, entropy_normalizer)
