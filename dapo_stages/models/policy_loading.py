"""Loads a policy from a checkpoint folder, and saves it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from dapo_stages import ranks
from dapo_stages.config import ModelConfig
from dapo_stages.errors import ModelError
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.models import kept_policies
from dapo_stages.models.families import FAMILIES, architecture_of
from dapo_stages.models.gpu_memory import let_segments_grow
from dapo_stages.models.policy import Policy
from dapo_stages.models.quantization import compute_exactly, quantized
from dapo_stages.models.reading import reading
from dapo_stages.models.soundness import check_checkpoint
from dapo_stages.models.tokens import check_tokens
from dapo_stages.models.trial import try_out
from dapo_stages.processes.phases import phase


def load_policy(path: str | Path, settings: ModelConfig) -> Policy:
    """Load a checkpoint by folder or hub id. Only safetensors, never code from the checkpoint.

    Raises ModelError if it cannot be loaded or does not read images and write text.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    from dapo_stages.models.processor import load_processor

    disable_progress_bar()  # we show our own
    if Path(path).is_dir():
        check_checkpoint(Path(path))
    shared = check_family(path) in FAMILIES
    device = device_of(settings)
    flex = settings.attention != "sdpa" and device.type == "cuda"
    if settings.attention == "flex" and not flex:
        raise ModelError("model.attention: flex needs CUDA. Set it to auto, which uses SDPA on the CPU.")
    how: dict[str, Any] = {"attn_implementation": "sdpa"} if shared else {}
    if settings.quantization is not None:
        how |= quantized(settings.quantization, getattr(torch, settings.dtype), device)
    with reading(path):
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=getattr(torch, settings.dtype), use_safetensors=True, trust_remote_code=False, **how
        )
        _keep_used_renamings(model)
        if settings.quantization is None:
            model = model.to(device)
        elif device.type == "cpu":
            compute_exactly(model)
        dtype = getattr(torch, settings.dtype)
        if settings.attention == "auto":  # there is no kernel for float64, and none without Triton
            flex = flex and dtype != torch.float64 and find_spec("triton") is not None
        policy = Policy(model.eval(), load_processor(path), device, dtype, flex, settings.compile)
        check_tokens(path, policy.tokens)
    try_out(policy, path)
    return policy


def _keep_used_renamings(model: Any) -> None:
    """Under ZeRO-3 transformers records all renamings of the architecture, even those that this checkpoint did not
    need, and would undo all of them on saving."""
    remembered = getattr(model, "_weight_conversions", None)
    if remembered:
        model._weight_conversions = [renaming for renaming in remembered if renaming.was_used()]


def check_family(path: str | Path, *, attention: bool = False) -> str:
    """The architecture of a checkpoint, read from its configuration alone.

    Raises ModelError if it is not a decoder that reads images and writes text, or, with `attention`, if its attention
    cannot be read.
    """
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    with reading(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    family = architecture_of(config)
    if kernel := _foreign_kernel(config):
        raise ModelError(
            f"{path}: its attention is code from the hub ({kernel}), but must be torch's. Remove attn_implementation "
            "from its config.json."
        )
    if family in FAMILIES:
        return family
    known = ", ".join(FAMILIES)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or config.is_encoder_decoder:
        raise ModelError(
            f"{path}: architecture `{family}` is not a decoder that reads images and writes text. Set model.name to "
            f"one, preferably one whose completions share their prompt ({known})."
        )
    if attention:
        _require_readable(path, family)
    return family


def _require_readable(path: str | Path, family: str) -> None:
    from dapo_stages.models.checkpoints import empty_model
    from dapo_stages.models.own_rows import require_readable
    from dapo_stages.models.processor import load_processor

    with reading(path):
        require_readable(path, family, empty_model(path), load_processor(path))


def _foreign_kernel(config: Any) -> str | None:
    """The hub repository whose code a config.json requests for attention."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    names = (str(getattr(part, "_attn_implementation", "")) for part in parts)
    return next((name for name in names if "/" in name), None)


def device_of(settings: ModelConfig) -> torch.device:
    """The device for a model; each of several processes on a machine gets its own GPU."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device: it is cuda, but there is no CUDA device. Set it to auto or cpu.")
    if settings.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    let_segments_grow()
    if ranks.count() == 1:
        return torch.device("cuda")
    devices, index = torch.cuda.device_count(), ranks.local_rank()
    if index >= devices:
        raise ModelError(
            f"process {index + 1} on this machine: each process needs a CUDA device, but there are only {devices}. "
            f"Start {devices} processes, or set model.device to cpu."
        )
    torch.cuda.set_device(index)  # Triton and NCCL use the current device
    return torch.device("cuda", index)


@phase("save")
def save_policy(policy: Policy, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write a standard transformers checkpoint that AutoModel, AutoProcessor and vLLM can open, or a peft adapter.

    `weights` replace those in memory if these are split over several processes.
    """
    from dapo_stages.models.processor import save_processor

    folder.mkdir(parents=True, exist_ok=True)
    if policy.device.type == "cpu":  # save_pretrained imports deepspeed if it is installed, which would warn
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    policy.attend("separate")
    if policy.is_adapter:
        from dapo_stages.models.adapters import save_adapter

        save_adapter(policy, folder, weights)
    else:
        weights = policy.model.state_dict(keep_vars=True) if weights is None else weights
        # Tied weights are one tensor with several names, and must stay one, or it would be saved under each name.
        rounded = {id(value): value.detach().to(policy.dtype) for value in weights.values()}
        named = {name: rounded[id(value)] for name, value in weights.items()}
        policy.model.save_pretrained(folder, state_dict=named, safe_serialization=True)
        policy.model.config.dtype = policy.dtype  # save_pretrained recorded the dtype under training
        policy.model.config.save_pretrained(folder)
    save_processor(policy.processor, folder)


@phase("load")
def open_policy(
    folder: PolicyFolder,
    settings: ModelConfig,
    *,
    trainable: bool = False,
    attention: bool = False,
    kind: Literal["policy", "reference"] = "policy",
) -> Policy:
    """Verify a policy folder and load it, or what it refers to, unless this process has kept it from another command.

    An adapter is merged into its base, unless it is to be trained. With `attention`, a model whose attention cannot be
    read is refused before it is loaded. `kind`: of the kept policies, which one it may be, and replaces.
    """
    from dapo_stages.models.adapters import load_adapter

    folder.verify()
    if attention:
        check_family(folder.checkpoint(), attention=True)
    if (found := kept_policies.find(folder, settings, kind, to_change=trainable)) is not None:
        return found
    policy = load_policy(folder.checkpoint(), settings)
    if folder.is_adapter:
        load_adapter(policy, folder.folder, trainable=trainable)
    kept_policies.keep(folder, settings, kind, policy, to_change=trainable)
    return policy
