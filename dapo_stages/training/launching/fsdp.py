"""FSDP2: weights, gradients and optimizer state split over the ranks, layer by layer, by torch's fully_shard."""

from __future__ import annotations

import math
from typing import Any

import torch

from dapo_stages.config import TrainConfig
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.precision import use_master_weights
from dapo_stages.training.launching.rank_workers import Ranked
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.stored_state import STEP, PartInMemory, State, Stored


class Sharded(Ranked):
    """Gradients are exchanged in every pass: keeping them whole until the last would need the memory that is saved."""

    def __init__(self, accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, settings: TrainConfig) -> None:
        optimizers.only()
        optimizers.forget()  # or whole weights would stay
        _shard(forward, getattr(accelerator.state, "fsdp_plugin", None), accelerator.device, settings)
        super().__init__(accelerator, forward, Optimizers(forward.model, settings), settings)  # on the sharded weights

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(loss * self.ranks)

    def _clip(self) -> torch.Tensor:
        return _whole(super()._clip())

    def _held(self, parameter: Any) -> torch.Tensor:
        return _local(parameter).detach()

    def weights(self) -> dict[str, torch.Tensor] | None:
        return self._collect(_whole)

    def gradient(self, name: str) -> torch.Tensor | None:
        gradient = self._trained[name].grad
        return None if gradient is None else _whole(gradient)

    def state_of(self, name: str) -> State:
        return {key: _whole(value) for key, value in super().state_of(name).items()}

    def held(self, name: str) -> Stored:
        parameter: Any = self._trained[name]
        state = {
            key: value if key == STEP else _local(value).flatten() for key, value in super().state_of(name).items()
        }
        return PartInMemory(state, *self._range(parameter), parameter.shape)

    def _range(self, parameter: Any) -> tuple[int, int]:
        """The elements of a flattened weight that this rank has: fully_shard gives each rank some rows."""
        rows = parameter.to_local().shape[0]
        width = math.prod(parameter.shape[1:])
        start = min(self.rank * -(-parameter.shape[0] // self.ranks), parameter.shape[0]) * width
        return start, start + rows * width

    def set_state(self, name: str, stored: Stored) -> None:
        """From this rank's part alone."""
        parameter: Any = self._trained[name]
        stored.check(name, parameter.shape)
        part = stored.part(*self._range(parameter))
        self._restore(
            parameter, {key: value if key == STEP else _spread(value, parameter) for key, value in part.items()}
        )


def _shard(forward: GroupLogprobs, plugin: Any, device: torch.device, settings: TrainConfig) -> None:
    """Split every layer by itself, and the rest as one; transformers names the layers in `_no_split_modules`.

    Exact copies of trained weights are made just before they are split, so no rank ever holds all of them.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    low = torch.bfloat16 if forward.rounds else None
    sums = torch.bfloat16 if settings.reduce_dtype == "bfloat16" else torch.float32 if low else None
    how: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=low, reduce_dtype=sums),
    }
    if plugin is not None and plugin.cpu_offload:
        how["offload_policy"] = plugin.cpu_offload
    layers = {name for module in forward.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in forward.modules():
        if type(module).__name__ in layers:
            use_master_weights(module.parameters())
            fully_shard(module, **how, reshard_after_forward=plugin.reshard_after_forward if plugin else True)
    use_master_weights(forward.parameters())
    fully_shard(forward, **how)


def _spread(local: torch.Tensor, like: Any) -> torch.Tensor:
    """A tensor that is split as another one is, from the elements of this rank."""
    from torch.distributed.tensor import DTensor

    own = local.to(like.device).reshape(like.to_local().shape)
    spread: torch.Tensor = DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return spread


def _local(value: Any) -> torch.Tensor:
    """This rank's part of a tensor that is split over the ranks; any other as it is."""
    part: torch.Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part


def _whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor that is split over the ranks, assembled; any other as it is."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value
