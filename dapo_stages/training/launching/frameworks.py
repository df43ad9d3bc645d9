"""What a launch is: which framework the ranks train under, and whether it is what was configured.

accelerate sets up processes and frameworks from the environment that its launcher leaves.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch

from dapo_stages import ranks
from dapo_stages.config import ModelConfig, TrainConfig
from dapo_stages.errors import ConfigError, RankError
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.training.launching.rank_workers import Ranked, Replicated, Worker
from dapo_stages.training.optimizers import Optimizers


def join(model: ModelConfig, device: torch.device) -> Any:
    """The Accelerator of this launch; None in a process that is alone. Call it before the model is loaded.

    Raises ConfigError where accelerate does something else than was configured, which it does without a word.
    """
    wanted = _configured()
    if wanted is None:
        return None
    _check_combination(wanted, model)
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
    if not found.startswith(wanted) or accelerator.num_processes != ranks.count():
        raise ConfigError(
            f"accelerate launch: found {accelerator.num_processes} process(es) of type {found}; needed {ranks.count()} "
            f"of type {wanted}, as configured. Look for what accelerate fell back for without a word (use_cpu, "
            "ACCELERATE_USE_CPU, what is installed), or take another file of pipelines/accelerate."
        )
    plugin = accelerator.state.fsdp_plugin if wanted == "FSDP" else None
    if plugin and (plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading):
        raise ConfigError(
            f"fsdp_config: found fsdp_version {plugin.fsdp_version}, fsdp_cpu_ram_efficient_loading "
            f"{plugin.cpu_ram_efficient_loading}; needed 2 and false. Take pipelines/accelerate/fsdp2.yaml."
        )
    if model.quantization is not None and splits_weights(accelerator):
        raise ConfigError(
            f"model.quantization: found {model.quantization} in a launch that splits weights; needed one with whole "
            "weights. Launch with ddp or zero2, or set it to null."
        )
    return accelerator


@contextmanager
def among_ranks() -> Iterator[None]:
    """Around work that the ranks do together: a broken connection is called by its name. Raises RankError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if ranks.count() == 1 or not any(word in reason for word in ("gloo", "NCCL", "onnection")):
            raise
        raise RankError(
            f"rank {ranks.rank()} of {ranks.count()}: found no connection to another process ({reason[:160]}); needed "
            "all of them. See why it ended, and run the same command again."
        ) from None


def splits_weights(accelerator: Any) -> bool:
    """Whether no rank has the whole model, so that all must run its layers equally often."""
    kind = _kind(accelerator)
    return kind == "FSDP" or (kind == "DEEPSPEED" and accelerator.state.deepspeed_plugin.zero_stage == 3)


def holds_master_weights(accelerator: Any) -> bool:
    """Whether exact copies of the weights under training are the framework's affair."""
    return _kind(accelerator) == "DEEPSPEED"


@contextmanager
def whole_models() -> Iterator[None]:
    """Within, models are made whole on every rank, also under ZeRO-3, which splits all that transformers makes."""
    from accelerate.state import AcceleratorState, is_initialized

    plugin = AcceleratorState().deepspeed_plugin if is_initialized() else None
    if plugin is None or plugin.zero_stage != 3:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(plugin.dschf)


def worker(accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, config: TrainConfig) -> Worker:
    """The policy, wrapped as the launch has it."""
    if accelerator is None:
        return Worker(forward, optimizers, config)
    kind: type[Ranked] = Replicated
    if holds_master_weights(accelerator):
        from dapo_stages.training.launching.zero import Zero as kind
    elif splits_weights(accelerator):
        from dapo_stages.training.launching.fsdp import Sharded as kind
    return kind(accelerator, forward, optimizers, config)


def _kind(accelerator: Any) -> str:
    return "" if accelerator is None else str(accelerator.distributed_type.value)


def _configured() -> str | None:
    """What the launcher was asked for, as it tells its processes."""
    if "RANK" not in os.environ:
        return None
    for kind in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            return kind
    return "MULTI_" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else None


def _check_combination(wanted: str, model: ModelConfig) -> None:
    if wanted == "DEEPSPEED":
        from importlib.util import find_spec

        if find_spec("deepspeed") is None:
            raise ConfigError("DeepSpeed: found none installed; needed deepspeed. Run pip install deepspeed.")
        if model.dtype == "float64":
            raise ConfigError("model.dtype: found float64 under DeepSpeed; needed bfloat16 or float32. Set it.")
