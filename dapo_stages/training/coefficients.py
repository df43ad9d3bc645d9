"""The weights of KL term and entropy bonus: fixed, or following what they control from one update to the next.

Each train-step passes them to the next in the manifest of its state; without one they start over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dapo_stages.config import TrainConfig
from dapo_stages.maths.controllers import toward_entropy, toward_kl


class Coefficients:
    """What the next update uses."""

    def __init__(self, settings: TrainConfig, before: Mapping[str, Any] | None = None) -> None:
        """Begin with the counts `before` that the previous train-step's state has under `coefficients`."""
        before = before or {}
        self._settings = settings
        self.beta = float(before.get("beta", settings.beta)) if settings.kl.target is not None else settings.beta
        control, bonus = settings.entropy_control, settings.entropy_coefficient
        self._bonus = float(before.get("entropy_coefficient", bonus)) if control is not None else bonus
        self._entropy = float(before.get("entropy", math.inf)) if control is not None else None

    @property
    def entropy(self) -> float:
        """The weight of the bonus: 0 where the entropy of the update before is above the target."""
        control = self._settings.entropy_control
        above = control is not None and self._entropy is not None and self._entropy > control.target
        return 0.0 if above else self._bonus

    def follow(self, kl: float, entropy: float, completions: float) -> None:
        """Adapt to an update: its mean KL to the reference, mean entropy and number of completions.

        Values that are not finite, as those of updates without a reference, change nothing.
        """
        settings, control = self._settings, self._settings.entropy_control
        if settings.kl.target is not None and math.isfinite(kl):
            self.beta = toward_kl(self.beta, kl, settings.kl.target, completions, settings.kl.horizon)
        if control is not None and math.isfinite(entropy):
            self._entropy = entropy
            self._bonus = toward_entropy(
                self._bonus, entropy, control.target, control.step, control.lowest, control.highest
            )

    def metrics(self) -> dict[str, float]:
        """Those that follow something, by name."""
        found = {"beta": self.beta} if self._settings.kl.target is not None else {}
        return found | ({"entropy_coefficient": self.entropy} if self._settings.entropy_control is not None else {})

    def counts(self) -> dict[str, Any]:
        """What the manifest records for the next train-step; nothing where both are fixed."""
        found: dict[str, float] = {}
        if self._settings.kl.target is not None:
            found["beta"] = self.beta
        if self._settings.entropy_control is not None:
            found["entropy_coefficient"] = self._bonus
            if self._entropy is not None and math.isfinite(self._entropy):
                found["entropy"] = self._entropy
        return {"coefficients": found} if found else {}
