"""How the ranks of a launch train one policy: alone, replicated (DDP), or split by FSDP2 or DeepSpeed's ZeRO.

accelerate sets up the ranks and the frameworks; this is what the update needs of them and no more. A loss is a
rank's share of the sum over all ranks; the frameworks average gradients over ranks, hence the factors of `ranks`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import Any, NamedTuple

import torch

from dapo_stages.config import ModelConfig, TrainConfig
from dapo_stages.errors import ConfigError
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.optimizers import Optimizers
from dapo_stages.models.packing import Packed
from dapo_stages.models.separate import SeparateRows

State = dict[str, torch.Tensor]


class Step(NamedTuple):
    """What became of an optimiser step."""

    norm: float  # of the whole gradient, before clipping
    applied: bool  # False: something was not finite, and nothing was changed


class Worker:
    """A policy under training in a process of its own; the other kinds differ from it in what they override."""

    rank, ranks = 0, 1

    def __init__(self, forward: GroupLogprobs, optimizers: Optimizers, config: TrainConfig) -> None:
        self._forward: Any = forward
        self._optimizers, self._max_norm = optimizers, config.max_grad_norm
        self._model, self._exact = forward.model, forward.rounds
        self._trained = {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def forward(self, batch: Packed | SeparateRows, chunks: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies of the batch's completion tokens, as GroupLogprobs gives them."""
        found: tuple[torch.Tensor, torch.Tensor] = self._forward(batch, chunks)
        return found

    def pass_(self, *, last: bool) -> AbstractContextManager[object]:
        """Around a forward and backward pass; `last`: of this optimiser step, when gradients are exchanged."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of this rank's part of the loss."""
        torch.autograd.backward(loss)

    def step(self, factor: float, healthy: bool) -> Step:
        """Clip and update at `factor` times the peak learning rate, unless gradients or loss are not finite."""
        norm = _whole(torch.nn.utils.clip_grad_norm_(self._optimizers.parameters, self._max_norm))
        applied = bool(torch.isfinite(norm)) and healthy
        if applied:
            self._optimizers.step(factor)
        else:
            for parameter in self._optimizers.parameters:
                parameter.grad = None
        return Step(float(norm), applied)

    def total(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Sums over all ranks; of names in `_max` the largest."""
        return {name: float(value) for name, value in sums.items()}

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The values [n] of all ranks in one row; n may differ, and no value is below 0."""
        return values

    # ---- What is saved. All ranks call these together, for the same parameters in the same order. --------------------

    @property
    def optimizer(self) -> str:
        """The configured kind of optimiser."""
        return self._optimizers.kind

    @property
    def trained(self) -> Sequence[str]:
        """Names of the weights that are trained."""
        return list(self._trained)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The whole model's weights, on rank 0; None: they are those in memory."""
        return None

    def gradient(self, name: str) -> torch.Tensor | None:
        """The whole gradient of a weight, after the last pass and before the step; None if it has none."""
        return self._trained[name].grad

    def state_of(self, name: str) -> State:
        """The optimiser's tensors of a weight, whole, and its exact value (`master`) where the checkpoint rounds it."""
        parameter = self._trained[name]
        master = {"master": parameter.detach()} if self._exact else {}
        return self._optimizers.state_of(parameter) | master

    def set_state(self, name: str, state: State) -> None:
        """Put back what state_of gave, here or under another kind of launch. Raises ValueError if it does not fit."""
        parameter = self._trained[name]
        _check_shapes(name, state, parameter.shape)
        moments = dict(state)
        if (master := moments.pop("master", None)) is not None:
            with torch.no_grad():
                parameter.copy_(master)
        if moments:
            self._optimizers.set_state(parameter, moments)


class _Ranked(Worker):
    """What all kinds with several ranks share."""

    def __init__(self, accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, config: TrainConfig) -> None:
        super().__init__(forward, optimizers, config)
        self._accelerator = accelerator
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes

    def total(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        from torch.distributed import ReduceOp, all_reduce

        found: dict[str, float] = {}
        for largest, how in ((False, ReduceOp.SUM), (True, ReduceOp.MAX)):
            names = [name for name in sums if name.endswith("_max") == largest]
            if names:
                values = torch.stack([sums[name].detach().double() for name in names]).to(self._accelerator.device)
                all_reduce(values, how)
                found |= dict(zip(names, values.tolist(), strict=True))
        return {name: found[name] for name in sums}

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        padded = self._accelerator.pad_across_processes(values, pad_index=-1)
        everything: torch.Tensor = self._accelerator.gather(padded)
        return everything[everything > -0.5]


class Replicated(_Ranked):
    """DDP: the whole model on every rank."""

    def __init__(self, accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, config: TrainConfig) -> None:
        super().__init__(accelerator, forward, optimizers, config)
        self._forward = accelerator.prepare_model(forward)

    def pass_(self, *, last: bool) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = nullcontext() if last else self._forward.no_sync()
        return context

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(loss * self.ranks)


class Sharded(_Ranked):
    """FSDP2: weights, gradients and optimiser state are split over the ranks, layer by layer.

    Gradients are exchanged in every pass: to keep them whole until the last would take the memory that splitting saves.
    """

    def __init__(self, accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, config: TrainConfig) -> None:
        optimizers.only()
        _shard(forward, getattr(accelerator.state, "fsdp_plugin", None), accelerator.device)
        super().__init__(accelerator, forward, Optimizers(forward.model, config), config)  # over the parts

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(loss * self.ranks)

    def weights(self) -> dict[str, torch.Tensor] | None:
        whole: dict[int, torch.Tensor] = {}
        named = self._model.state_dict(keep_vars=True)
        for value in {id(value): value for value in named.values()}.values():
            full = _whole(value.detach())
            if self.rank == 0:
                whole[id(value)] = full.cpu()
        return {name: whole[id(value)] for name, value in named.items()} if self.rank == 0 else {}

    def gradient(self, name: str) -> torch.Tensor | None:
        gradient = self._trained[name].grad
        return None if gradient is None else _whole(gradient)

    def state_of(self, name: str) -> State:
        return {key: _whole(value) for key, value in super().state_of(name).items()}

    def set_state(self, name: str, state: State) -> None:
        from torch.distributed.tensor import DTensor, distribute_tensor

        parameter: Any = self._trained[name]
        _check_shapes(name, state, parameter.shape)
        assert isinstance(parameter, DTensor)
        parts = {
            key: value
            if key == "step"
            else distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            for key, value in state.items()
        }
        super().set_state(name, parts)


class Zero(_Ranked):
    """DeepSpeed ZeRO: optimiser state (1), gradients (2) and weights (3) are split over the ranks."""

    def __init__(self, accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, config: TrainConfig) -> None:
        super().__init__(accelerator, forward, optimizers, config)
        adamw = optimizers.only()
        _configure(accelerator.state.deepspeed_plugin, config, low=forward.rounds)
        with redirect_stdout(sys.stderr):
            self._engine = self._forward = accelerator.prepare(forward, adamw)[0]
        self._zero = self._engine.optimizer
        self._stage = int(self._engine.zero_optimization_stage())

    @contextmanager
    def pass_(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self.ranks)

    def step(self, factor: float, healthy: bool) -> Step:
        self._optimizers.set_rates(self._zero.param_groups, factor)
        self._engine.step()
        if self._zero.overflow:  # DeepSpeed found it by itself and left everything as it was
            return Step(float("inf"), False)
        return Step(float(self._engine.get_global_grad_norm()), True)

    def weights(self) -> dict[str, torch.Tensor] | None:
        if self._stage < 3:
            return None
        from deepspeed import zero

        whole: dict[int, torch.Tensor] = {}
        named = self._model.state_dict(keep_vars=True)
        for value in {id(value): value for value in named.values()}.values():
            with zero.GatheredParameters([value] if hasattr(value, "ds_id") else []):
                if self.rank == 0:
                    whole[id(value)] = value.detach().cpu().clone()
        return {name: whole[id(value)] for name, value in named.items()} if self.rank == 0 else {}

    def gradient(self, name: str) -> torch.Tensor | None:
        from deepspeed.utils import safe_get_full_grad

        found: torch.Tensor | None = safe_get_full_grad(self._trained[name])
        return found

    def state_of(self, name: str) -> State:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._trained[name]
        state: State = {}
        held = self._zero.optimizer.state.get(self._flat[0], {})
        if held:
            state = {key: safe_get_full_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq")}
            state["step"] = torch.tensor(float(held["step"]))
        if self._exact:
            state["master"] = safe_get_full_fp32_param(parameter)
        return state

    def set_state(self, name: str, state: State) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter = self._trained[name]
        _check_shapes(name, state, getattr(parameter, "ds_shape", parameter.shape))
        if "step" in state:
            self._begin(float(state["step"]))
        for key, value in state.items():
            if key == "master":
                safe_set_full_fp32_param(parameter, value.to(parameter.device))
            elif key != "step":
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)

    @property
    def _flat(self) -> list[torch.Tensor]:
        """This rank's parts of the weights, flattened, as the optimiser knows them."""
        parts = self._zero.fp32_partitioned_groups_flat if self._stage == 3 else None
        found: list[torch.Tensor] = parts or self._zero.single_partition_of_fp32_groups
        return found

    def _begin(self, step: float) -> None:
        """Give the optimiser, which makes its state in its first step, one of zeros to fill."""
        base = self._zero.optimizer
        for flat in self._flat:
            state = base.state[flat]
            if not state:
                state |= {key: torch.zeros_like(flat) for key in ("exp_avg", "exp_avg_sq")}
            # One count for all: weights that never had a gradient have none of their own.
            count = max(float(state.get("step", 0)), step)
            state["step"] = torch.tensor(count) if isinstance(base, torch.optim.AdamW) else int(count)
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()


def join(model: ModelConfig, device: torch.device) -> Any:
    """The Accelerator of this launch; None in a process that is alone. Call it before the model is loaded.

    Raises ConfigError where accelerate does something else than was configured, which it does without a word.
    """
    wanted = _configured()
    if wanted is None:
        return None
    _check_combination(wanted, model, device)
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before deepspeed is imported, which transformers may do
    # DeepSpeed calls what torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    if on_cpu:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    with redirect_stdout(sys.stderr):  # DeepSpeed prints, and its logger keeps what is stdout when it is imported
        accelerator = Accelerator(
            cpu=on_cpu and wanted != "DEEPSPEED",
            mixed_precision="bf16" if wanted == "DEEPSPEED" and model.dtype == "bfloat16" else "no",
            kwargs_handlers=handlers,
        )
    found = accelerator.distributed_type.value
    ranks = int(os.environ["WORLD_SIZE"])
    if not found.startswith(wanted) or accelerator.num_processes != ranks:
        raise ConfigError(
            f"accelerate launch: found {accelerator.num_processes} process(es) of type {found}; needed {ranks} of type "
            f"{wanted}, as configured. accelerate fell back without a word; look for use_cpu, ACCELERATE_USE_CPU and "
            "what is installed, or take another file of pipelines/accelerate."
        )
    plugin = accelerator.state.fsdp_plugin if wanted == "FSDP" else None
    if plugin and (plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading):
        raise ConfigError(
            f"fsdp_config: found fsdp_version {plugin.fsdp_version}, fsdp_cpu_ram_efficient_loading "
            f"{plugin.cpu_ram_efficient_loading}; needed 2 and false. Take pipelines/accelerate/fsdp2.yaml."
        )
    return accelerator


def splits_weights(accelerator: Any) -> bool:
    """Whether no rank has the whole model, so that all must run its layers equally often."""
    if accelerator is None:
        return False
    kind = accelerator.distributed_type.value
    return kind == "FSDP" or (kind == "DEEPSPEED" and accelerator.state.deepspeed_plugin.zero_stage == 3)


def holds_master_weights(accelerator: Any) -> bool:
    """Whether exact copies of the weights under training are the framework's affair."""
    return accelerator is not None and accelerator.distributed_type.value == "DEEPSPEED"


@contextmanager
def whole_models(accelerator: Any) -> Iterator[None]:
    """Within, models are loaded whole on every rank, also under ZeRO-3, which splits all that transformers loads."""
    if not splits_weights(accelerator) or not holds_master_weights(accelerator):
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(accelerator.state.deepspeed_plugin.dschf)


def worker(accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, config: TrainConfig) -> Worker:
    """The policy, wrapped as the launch has it."""
    if accelerator is None:
        return Worker(forward, optimizers, config)
    kinds: dict[str, type[_Ranked]] = {"DEEPSPEED": Zero, "FSDP": Sharded}
    return kinds.get(accelerator.distributed_type.value, Replicated)(accelerator, forward, optimizers, config)


def _configured() -> str | None:
    """What the launcher was asked for, as it tells its processes."""
    if "RANK" not in os.environ:
        return None
    for kind in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            return kind
    return "MULTI_" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else None


def _check_combination(wanted: str, model: ModelConfig, device: torch.device) -> None:
    if wanted == "DEEPSPEED":
        from importlib.util import find_spec

        if find_spec("deepspeed") is None:
            raise ConfigError(
                "DeepSpeed: found none installed; needed deepspeed. Run pip install 'dapo-stages[deepspeed]'."
            )
        if model.dtype == "float64":
            raise ConfigError("model.dtype: found float64 under DeepSpeed; needed bfloat16 or float32. Set it.")


def _configure(plugin: Any, config: TrainConfig, *, low: bool) -> None:
    """What is ours to say in DeepSpeed's configuration; accumulation and its scaling are the caller's."""
    settings = plugin.deepspeed_config
    settings |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
    }
    if low:
        settings["bf16"] |= {"check_grad_overflow": True}
        if plugin.zero_stage > 1:  # stage 1 would become another optimiser, which cannot skip a step
            settings.setdefault("data_types", {"grad_accum_dtype": "fp32"})


def _shard(forward: GroupLogprobs, plugin: Any, device: torch.device) -> None:
    """Split every layer by itself, and what remains as one; the layers are those that transformers never cuts."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    low = torch.bfloat16 if forward.rounds else None
    how: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None),
    }
    if plugin is not None and plugin.cpu_offload:
        how["offload_policy"] = plugin.cpu_offload
    layers = {name for module in forward.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in forward.modules():
        if type(module).__name__ in layers:
            fully_shard(module, **how, reshard_after_forward=plugin.reshard_after_forward if plugin else True)
    fully_shard(forward, **how)


def _whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor that is split over the ranks, put together; any other as it is."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def _check_shapes(name: str, state: State, shape: Sequence[int]) -> None:
    for key, value in state.items():
        if key != "step" and tuple(value.shape) != tuple(shape):
            raise ValueError(f"{key} of {name} has shape {list(value.shape)}, needed {list(shape)}")
