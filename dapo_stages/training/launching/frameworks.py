"""Which framework the ranks of a launch train with, and whether it is the configured one.

accelerate sets up processes and frameworks from the environment variables of its launcher.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any

import torch

from dapo_stages import ranks
from dapo_stages.config import ModelConfig, TrainConfig
from dapo_stages.errors import ConfigError, RankError
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.training.combinations import check_framework, check_split
from dapo_stages.training.launching.rank_workers import Ranked, Replicated, Worker
from dapo_stages.training.optimizers import Optimizers

# How long ranks wait for each other in NCCL and gloo. One that has ended is noticed within a minute (collectives.py),
# so this is for those that are slow, such as in reading a state from a busy file system; torch's 10 minutes of NCCL
# end such a step.
PATIENCE = timedelta(hours=1)


def join(model: ModelConfig, device: torch.device) -> Any:
    """The Accelerator of this launch; None in a single process. Call it before the model is loaded.

    Raises ConfigError if accelerate does not do what was configured, which it does not report itself.
    """
    wanted = _configured()
    if wanted is None:
        return None
    check_framework(wanted, model)
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before deepspeed is imported, which transformers may do
    # DeepSpeed calls functions that torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    handlers.append(InitProcessGroupKwargs(timeout=PATIENCE, **({"backend": "gloo"} if on_cpu else {})))
    with redirect_stdout(sys.stderr):  # DeepSpeed prints, and its logger keeps the stdout of its import
        accelerator = Accelerator(
            cpu=on_cpu and wanted != "DEEPSPEED",
            mixed_precision="bf16" if wanted == "DEEPSPEED" and model.dtype == "bfloat16" else "no",
            kwargs_handlers=handlers,
        )
    kind = accelerator.distributed_type.value
    if not kind.startswith(wanted) or accelerator.num_processes != ranks.count():
        raise ConfigError(
            f"accelerate launch: expected {ranks.count()} process(es) of type {wanted}, as configured, got "
            f"{accelerator.num_processes} of type {kind}. Check why accelerate fell back (use_cpu, ACCELERATE_USE_CPU, "
            "missing packages), or use another file of pipelines/accelerate."
        )
    plugin = accelerator.state.fsdp_plugin if wanted == "FSDP" else None
    if plugin and (plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading):
        raise ConfigError(
            f"fsdp_config: fsdp_version must be 2 and fsdp_cpu_ram_efficient_loading false, but they are "
            f"{plugin.fsdp_version} and {plugin.cpu_ram_efficient_loading}. Use pipelines/accelerate/fsdp2.yaml."
        )
    check_split(model, splits=splits_weights(accelerator))
    return accelerator


def leave(accelerator: Any) -> None:
    """Undo `join`, except for the connection of the ranks: the next command of this process may configure otherwise."""
    if accelerator is None:
        return
    from accelerate.state import AcceleratorState, GradientState

    if (wrapped := getattr(accelerator, "deepspeed_engine_wrapped", None)) is not None:
        wrapped.engine.destroy()  # its hooks would keep it, and the model, in memory
    if holds_master_weights(accelerator):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # or ZeRO-3 would split whatever is loaded next
    AcceleratorState._reset_state()
    GradientState._reset_state()


@contextmanager
def among_ranks() -> Iterator[None]:
    """Wrap work that the ranks do together: a broken connection raises RankError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if ranks.count() == 1 or not any(word in reason for word in ("gloo", "NCCL", "onnection")):
            raise
        raise RankError(
            f"rank {ranks.rank()} of {ranks.count()}: lost the connection to another process ({reason[:160]}). See why "
            "it ended, and run the same command again."
        ) from None


def splits_weights(accelerator: Any) -> bool:
    """Whether no rank has the whole model, so all must run its layers equally often."""
    kind = _kind(accelerator)
    return kind == "FSDP" or (kind == "DEEPSPEED" and accelerator.state.deepspeed_plugin.zero_stage == 3)


def holds_master_weights(accelerator: Any) -> bool:
    """Whether the framework keeps the exact copies of the weights under training."""
    return _kind(accelerator) == "DEEPSPEED"


def makes_master_weights(accelerator: Any) -> bool:
    """Whether the worker makes the exact copies itself: DeepSpeed, and FSDP2 for each layer as it splits it."""
    return holds_master_weights(accelerator) or _kind(accelerator) == "FSDP"


def layout(accelerator: Any) -> str:
    """How a launch is split over ranks, as `plan --parallel` names it."""
    kind = _kind(accelerator)
    if kind == "DEEPSPEED":
        plugin = accelerator.state.deepspeed_plugin
        offloads = str(plugin.offload_optimizer_device or "none") != "none"
        return f"zero{plugin.zero_stage}{'-offload' if offloads else ''}"
    return {"": "single", "FSDP": "fsdp2"}.get(kind, "ddp")


@contextmanager
def whole_models() -> Iterator[None]:
    """Within, models are whole on every rank, even under ZeRO-3, which otherwise splits every model of transformers."""
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


def worker(accelerator: Any, forward: GroupLogprobs, optimizers: Optimizers, settings: TrainConfig) -> Worker:
    """The policy, wrapped for this kind of launch."""
    if accelerator is None:
        return Worker(forward, optimizers, settings)
    kind: type[Ranked] = Replicated
    if holds_master_weights(accelerator):
        from dapo_stages.training.launching.zero import Zero as kind
    elif splits_weights(accelerator):
        from dapo_stages.training.launching.fsdp import Sharded as kind
    return kind(accelerator, forward, optimizers, settings)


def _kind(accelerator: Any) -> str:
    return "" if accelerator is None else str(accelerator.distributed_type.value)


def _configured() -> str | None:
    """The framework that the launcher was asked for, from its environment variables."""
    if "RANK" not in os.environ:
        return None
    for kind in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            return kind
    return "MULTI_" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else None
