"""Optimizers of the policy: AdamW, or Muon for matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dapo_stages.config import TrainConfig
from dapo_stages.models.checkpointing import recompute_activations
from dapo_stages.models.policy import Policy
from dapo_stages.training.combinations import require_adamw


class Optimizers:
    """One or two torch optimizers that step together under one schedule factor."""

    def __init__(self, model: torch.nn.Module, settings: TrainConfig) -> None:
        matrices: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                (matrices if settings.optimizer == "muon" and _is_matrix(name, parameter) else rest).append(parameter)
        self.kind = settings.optimizer
        self._optimizers: list[torch.optim.Optimizer] = []
        self._peaks: list[float] = []
        self._of: dict[torch.nn.Parameter, torch.optim.Optimizer] = {}
        if rest:
            adamw = torch.optim.AdamW(rest, settings.learning_rate, settings.betas, weight_decay=settings.weight_decay)
            self._add(adamw, settings.learning_rate, rest)
        if matrices:
            muon = torch.optim.Muon(
                matrices,
                settings.muon_learning_rate,
                weight_decay=settings.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            )
            self._add(muon, settings.muon_learning_rate, matrices)
        self.parameters = [*rest, *matrices]

    def only(self) -> torch.optim.Optimizer:
        """The only optimizer, for frameworks that flatten the weights. Raises ConfigError if there are two."""
        require_adamw(self.kind)
        return self._optimizers[0]

    def forget(self) -> None:
        """Let go of the weights, which a framework is about to replace by parts of them."""
        self._optimizers.clear()
        self._of.clear()
        self.parameters.clear()

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates; clears the gradients."""
        for optimizer, peak in zip(self._optimizers, self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def set_rates(self, groups: Iterable[dict[str, Any]], factor: float) -> None:
        """Set the same learning rate in the parameter groups of an optimizer that was made from the only one."""
        for group in groups:
            group["lr"] = self._peaks[0] * factor

    def state_of(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """The state of a weight after earlier steps: moments and number of steps. Empty before the first."""
        return dict(self._of[parameter].state.get(parameter, {}))

    def set_state(self, parameter: torch.nn.Parameter, state: dict[str, torch.Tensor]) -> None:
        """Restore what state_of gave. Learning rate, weight decay and betas are the current ones, not restored."""
        here = {name: value.to(parameter.device, parameter.dtype) for name, value in state.items() if name != "step"}
        counted = {"step": state["step"].cpu()} if "step" in state else {}
        self._of[parameter].state[parameter] = counted | here

    def _add(self, optimizer: torch.optim.Optimizer, peak: float, parameters: list[torch.nn.Parameter]) -> None:
        self._optimizers.append(optimizer)
        self._peaks.append(peak)
        self._of |= dict.fromkeys(parameters, optimizer)


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Muon's orthogonalized update is for hidden matrices; embeddings, heads and patch kernels get AdamW."""
    return parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head"))


def make_ready(policy: Policy, settings: TrainConfig) -> None:
    """What training needs before there is an optimizer: what is frozen, recomputed activations, packed rows."""
    if settings.freeze_vision:
        freeze(policy.vision.parameters())
    if settings.gradient_checkpointing:
        recompute_activations(policy.base)
    policy.attend("grouped")
    policy.model.train()


def freeze(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Exclude parameters from training."""
    for parameter in parameters:
        parameter.requires_grad_(False)
