"""A policy under training, as seen by one rank of a launch: a single process, or DDP (the whole model on each rank).

This is all that the update uses of accelerate and the frameworks. A loss is a rank's share of the sum over all ranks;
the frameworks average gradients over ranks, hence the factors of `ranks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from dapo_stages.config import TrainConfig
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.shared_prefix.packing import Packed, SeparateRows
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.stored_state import InMemory, State, Stored


class Step(NamedTuple):
    """The result of an optimizer step."""

    norm: float  # of the whole gradient, before clipping
    applied: bool  # False: nothing has changed


class Worker:
    """A policy under training in a single process; subclasses override what differs in other launches."""

    rank, ranks = 0, 1

    def __init__(self, forward: GroupLogprobs, optimizers: Optimizers, settings: TrainConfig) -> None:
        self._forward: Any = forward
        self._optimizers, self._max_norm = optimizers, settings.max_grad_norm
        self._no_gradient = settings.guard.max_grad_norm or math.inf
        self._model, self._exact = forward.model, forward.rounds
        self._trained = {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def forward(self, batch: Packed | SeparateRows, chunks: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs and entropies of the batch's completion tokens, as GroupLogprobs gives them."""
        found: tuple[torch.Tensor, torch.Tensor] = self._forward(batch, chunks)
        return found

    def pass_(self, *, last: bool) -> AbstractContextManager[object]:
        """Context of a forward and backward pass; `last` of this optimizer step, when gradients are exchanged."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of this rank's part of the loss."""
        torch.autograd.backward(loss)

    def step(self, factor: float, healthy: bool) -> Step:
        """Clip and update at `factor` times the peak learning rate, unless the gradient or the loss has blown up."""
        norm = self._clip()
        applied = healthy and bool(torch.isfinite(norm) & (norm <= self._no_gradient))
        if applied:
            self._optimizers.step(factor)
        else:
            for parameter in self._optimizers.parameters:
                parameter.grad = None
        return Step(float(norm), applied)

    def _clip(self) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(self._optimizers.parameters, self._max_norm)

    def is_sound(self) -> bool:
        """Whether all weights under training are finite, on all ranks."""
        broken = [(~torch.isfinite(self._held(parameter))).sum() for parameter in self._trained.values()]
        return self.total({"broken": torch.stack(broken).sum()})["broken"] == 0

    def _held(self, parameter: torch.Tensor) -> torch.Tensor:
        """This rank's part of a weight."""
        return parameter.detach()

    def total(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Sums over all ranks; for names that end in `_min` or `_max`, the extremes."""
        return {name: float(value) for name, value in sums.items()}

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The values [n] of all ranks in one row; n may differ between ranks, and no value may be negative."""
        return values

    # ---- For saving. All ranks call these together, for the same parameters in the same order. -----------------------

    @property
    def optimizer(self) -> str:
        """The configured kind of optimizer."""
        return self._optimizers.kind

    @property
    def trained(self) -> Sequence[str]:
        """Names of the weights that are trained."""
        return list(self._trained)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The whole model's weights, on rank 0; None if those in memory are whole."""
        return None

    def gradient(self, name: str) -> torch.Tensor | None:
        """The whole gradient of a weight, after the last pass and before the step; None if it has none."""
        gradient: torch.Tensor | None = self._trained[name].grad
        return gradient

    def state_of(self, name: str) -> State:
        """The optimizer's tensors of a weight, whole, and its exact value (`master`) if the checkpoint rounds it."""
        parameter = self._trained[name]
        master = {"master": parameter.detach()} if self._exact else {}
        return self._optimizers.state_of(parameter) | master

    def held(self, name: str) -> Stored:
        """The same, but only the part that this rank holds; any rank may call it by itself."""
        return InMemory(self.state_of(name))

    def set_state(self, name: str, stored: Stored) -> None:
        """Restore what state_of gave, here or in another kind of launch. Raises ValueError if it does not fit."""
        parameter = self._trained[name]
        stored.check(name, parameter.shape)
        self._restore(parameter, stored.whole())

    def _restore(self, parameter: Any, state: State) -> None:
        moments = dict(state)
        if (master := moments.pop("master", None)) is not None:
            with torch.no_grad():
                parameter.copy_(master)
        if moments:
            self._optimizers.set_state(parameter, moments)


class Ranked(Worker):
    """What all launches with several ranks share."""

    def __init__(self, accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, settings: TrainConfig) -> None:
        super().__init__(forward, optimizers, settings)
        self._accelerator = accelerator
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes

    def total(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        from torch.distributed import ReduceOp, all_reduce

        found: dict[str, float] = {}
        extremes = {"_min": ReduceOp.MIN, "_max": ReduceOp.MAX}
        for how in (ReduceOp.SUM, *extremes.values()):
            names = [name for name in sums if extremes.get(name[-4:], ReduceOp.SUM) == how]
            if names:
                values = torch.stack([sums[name].detach().double() for name in names]).to(self._accelerator.device)
                all_reduce(values, how)
                found |= dict(zip(names, values.tolist(), strict=True))
        return {name: found[name] for name in sums}

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        padded = self._accelerator.pad_across_processes(values, pad_index=-1)
        everything: torch.Tensor = self._accelerator.gather(padded)
        return everything[everything > -0.5]

    def _collect(self, whole: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy all weights and buffers to the memory of rank 0, one by one; `whole` assembles one on all ranks.

        For an adapter only the trained weights, as no others are saved.
        """
        named = self._model.state_dict(keep_vars=True)
        if hasattr(self._model, "get_base_model"):
            named = {name: named[name] for name in self._trained}
        found: dict[int, torch.Tensor] = {}  # tied weights have several names
        for value in {id(value): value for value in named.values()}.values():
            full = whole(value)
            if self.rank == 0:
                found[id(value)] = full.detach().cpu()
        return {name: found[id(value)] for name, value in named.items()} if self.rank == 0 else {}


class Replicated(Ranked):
    """DDP: the whole model on every rank."""

    def __init__(self, accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, settings: TrainConfig) -> None:
        super().__init__(accelerator, forward, optimizers, settings)
        self._forward = accelerator.prepare_model(forward)
        if settings.reduce_dtype == "bfloat16":
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            # By its own name, torch takes it only with NCCL; gloo adds up bfloat16, too.
            self._forward.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))

    def pass_(self, *, last: bool) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = nullcontext() if last else self._forward.no_sync()
        return context

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(loss * self.ranks)
