"""Optimisers of the policy: AdamW, or Muon for matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dapo_stages.config import TrainConfig


class Optimizers:
    """One or two torch optimisers that step together under one schedule factor."""

    def __init__(self, model: torch.nn.Module, config: TrainConfig) -> None:
        matrices: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                (matrices if config.optimizer == "muon" and _is_matrix(name, parameter) else rest).append(parameter)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._peaks: list[float] = []
        if rest:
            adamw = torch.optim.AdamW(rest, config.learning_rate, config.betas, weight_decay=config.weight_decay)
            self._add(adamw, config.learning_rate)
        if matrices:
            muon = torch.optim.Muon(
                matrices,
                config.muon_learning_rate,
                weight_decay=config.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            )
            self._add(muon, config.muon_learning_rate)
        self.parameters = [*rest, *matrices]

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates; gradients are cleared."""
        for optimizer, peak in zip(self._optimizers, self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state is of other optimisers or other parameters."""
        if len(state["optimizers"]) != len(self._optimizers):
            raise ValueError(f"a state of {len(state['optimizers'])} optimisers, needed {len(self._optimizers)}")
        for optimizer, values in zip(self._optimizers, state["optimizers"], strict=True):
            settings = [{key: g[key] for key in g if key != "params"} for g in optimizer.param_groups]
            optimizer.load_state_dict(values)
            for group, configured in zip(optimizer.param_groups, settings, strict=True):
                group.update(configured)  # the moments carry on, the settings are those of now

    def _add(self, optimizer: torch.optim.Optimizer, peak: float) -> None:
        self._optimizers.append(optimizer)
        self._peaks.append(peak)


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Muon's orthogonalised update is for hidden matrices; embeddings, heads and patch kernels are AdamW's."""
    return parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head"))


def freeze(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Take parameters out of training."""
    for parameter in parameters:
        parameter.requires_grad_(False)
