"""DeepSpeed ZeRO: optimizer state (stage 1), gradients (2) and weights (3) split over the ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch

from dapo_stages.config import TrainConfig
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.training.launching.rank_workers import Ranked, Step
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.stored_state import STEP, PartInMemory, State, Stored

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero(Ranked):
    """DeepSpeed's engine, driven pass by pass; its safe_… functions assemble state and gradients."""

    def __init__(self, accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, settings: TrainConfig) -> None:
        super().__init__(accelerator, forward, optimizers, settings)
        adamw = optimizers.only()
        _configure(accelerator.state.deepspeed_plugin, settings, low=forward.rounds)
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
        if self._zero.overflow:  # DeepSpeed has changed nothing; the loss of an update to be skipped is made NaN
            return Step(float("inf"), False)
        return Step(float(self._engine.get_global_grad_norm()), True)

    def _held(self, parameter: Any) -> torch.Tensor:
        if not hasattr(parameter, "ds_tensor"):
            return super()._held(parameter)
        part: Any = parameter.ds_tensor
        size = part.ds_numel  # the last parts are padded with uninitialized memory, possibly NaN
        held: torch.Tensor = part.detach()[: max(parameter.ds_numel - size * self.rank, 0)]
        return held

    def weights(self) -> dict[str, torch.Tensor] | None:
        if self._stage < 3:
            return None
        from deepspeed import zero

        def whole(value: torch.Tensor) -> torch.Tensor:
            with zero.GatheredParameters([value] if hasattr(value, "ds_id") else []):
                return value.detach().to("cpu", copy=True) if self.rank == 0 else value  # freed after the context

        return self._collect(whole)

    def gradient(self, name: str) -> torch.Tensor | None:
        from deepspeed.utils import safe_get_full_grad

        found: torch.Tensor | None = safe_get_full_grad(self._trained[name])
        return found

    def state_of(self, name: str) -> State:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._trained[name]
        state: State = {}
        if self._steps:
            state = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
            state[STEP] = torch.tensor(self._steps)
        if self._exact:
            state["master"] = safe_get_full_fp32_param(parameter)
        return state

    def held(self, name: str) -> Stored:
        parameter = self._trained[name]
        start, stop = self._range(parameter)
        state: State = {}
        for key in (*(_MOMENTS if self._steps else ()), *(("master",) if self._exact else ())):
            state[key] = self._get(parameter, key, stop - start)
        if self._steps:
            state[STEP] = torch.tensor(self._steps)
        return PartInMemory(state, start, stop, getattr(parameter, "ds_shape", parameter.shape))

    @property
    def _steps(self) -> float:
        """How many steps the optimizer has made; 0: it has no state yet."""
        return float(self._zero.optimizer.state.get(self._flat[0], {}).get("step", 0))

    def set_state(self, name: str, stored: Stored) -> None:
        """From this rank's part alone."""
        parameter = self._trained[name]
        stored.check(name, getattr(parameter, "ds_shape", parameter.shape))
        state = stored.part(*self._range(parameter))
        if STEP in state:
            self._begin(float(state[STEP]))
        for key, value in state.items():
            if key != STEP:
                self._set(parameter, value.to(parameter.device), key)

    def _range(self, parameter: Any) -> tuple[int, int]:
        """The elements of a flattened weight whose state this rank holds."""
        if self._stage == 3:
            size, number = parameter.ds_tensor.ds_numel, parameter.ds_numel
            return min(size * self.rank, number), min(size * (self.rank + 1), number)
        if parameter._hp_mapping is None:
            return 0, 0
        address = parameter._hp_mapping.lp_fragment_address
        return address.start, address.start + address.numel

    def _get(self, parameter: Any, key: str, size: int) -> torch.Tensor:
        """This rank's part from where DeepSpeed keeps it, [size]."""
        if self._stage < 3:
            if parameter._hp_mapping is None:
                return torch.empty(0)
            held = parameter._hp_mapping.get_hp_fragment(None if key == "master" else key)
        else:
            from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

            one = (key,) if key != "master" else ()
            held = (safe_get_local_optimizer_state if one else safe_get_local_fp32_param)(parameter, *one)
        found: torch.Tensor = held.detach().flatten()[:size]  # the last part is padded
        return found

    def _set(self, parameter: Any, value: torch.Tensor, key: str) -> None:
        """Write this rank's part to where DeepSpeed keeps it. Its setters below stage 3 take whole tensors only."""
        if self._stage < 3:
            if parameter._hp_mapping is not None:
                parameter._hp_mapping.get_hp_fragment(None if key == "master" else key).data.copy_(value)
            return
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        padded = torch.nn.functional.pad(value, (0, parameter.ds_tensor.ds_numel - value.numel()))  # the last part is
        if key == "master":
            safe_set_local_fp32_param(parameter, padded)
        else:
            safe_set_local_optimizer_state(parameter, padded, key)

    @property
    def _flat(self) -> list[torch.Tensor]:
        """This rank's parts of the weights, flattened, as the optimizer has them."""
        name = "fp32_partitioned_groups_flat" if self._stage == 3 else "single_partition_of_fp32_groups"
        found: list[torch.Tensor] = getattr(self._zero, name)
        return found

    def _begin(self, step: float) -> None:
        """Give the optimizer, which makes its state in its first step, a state of zeros to fill."""
        base = self._zero.optimizer
        for flat in self._flat:
            state = base.state[flat]
            if not state:
                state |= {key: torch.zeros_like(flat) for key in _MOMENTS}
            # One count for all weights: those that never had a gradient have none.
            count = max(float(state.get("step", 0)), step)
            state["step"] = torch.tensor(count) if isinstance(base, torch.optim.AdamW) else int(count)
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()


def _configure(plugin: Any, settings: TrainConfig, *, low: bool) -> None:
    """Set what we control in DeepSpeed's configuration; accumulation and its scaling are up to the caller."""
    engine = plugin.deepspeed_config
    engine |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
    }
    if low or settings.reduce_dtype == "bfloat16":  # DeepSpeed's own choice is the type of the weights
        engine.setdefault("communication_data_type", {"float32": "fp32", "bfloat16": "bf16"}[settings.reduce_dtype])
    if low:
        engine["bf16"] |= {"check_grad_overflow": True}
        if plugin.zero_stage > 1:  # stage 1 would get another optimizer, which cannot skip a step
            engine.setdefault("data_types", {"grad_accum_dtype": "fp32"})
