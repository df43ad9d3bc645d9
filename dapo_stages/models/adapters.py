"""LoRA adapters (peft): trained instead of the model's weights, and saved without them.

On a quantized base (QLoRA, Dettmers et al. 2023, arXiv 2305.14314) the adapter is never merged: merging would round it
to the base's few levels, and the policy that samples would no longer be the policy that is trained.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from dapo_stages.config import LoraSettings
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.models.checkpoints import ADAPTER, scale_of
from dapo_stages.models.policy import Policy
from dapo_stages.models.reading import reading
from dapo_stages.models.trial import check_values


def add_adapter(policy: Policy, settings: LoraSettings) -> None:
    """Wrap the policy's model in a new adapter; all other weights are frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        bias="none",
    )
    policy.model = get_peft_model(policy.model, config)


def check_targets(model: Any, settings: LoraSettings) -> None:
    """Refuse targets that match no layer, and adapters on a weight that two layers share: in training each layer would
    have its own adapter, but once merged for sampling, it would change both layers. Raises ConfigError."""
    tied = {name.removesuffix(".weight") for pair in model.all_tied_weights_keys.items() for name in pair}
    for target in settings.target_modules:
        named = {name for name, _ in model.named_modules() if f".{name}".endswith(f".{target}")}  # as peft finds them
        if not named:
            raise ConfigError(
                f"train.lora.target_modules: {target} matches no layer of this model. Use the names of layers or their "
                "ends, such as q_proj."
            )
        if named & tied:
            raise ConfigError(
                f"train.lora.target_modules: {target} shares its weights with another layer "
                f"({', '.join(sorted(tied))}). Remove it, because an adapter needs a layer with weights of its own."
            )


def check_adapter(policy: Policy, settings: LoraSettings | None) -> None:
    """Refuse settings that an adapter under training does not have. Raises ConfigError."""
    if settings is None:
        raise ConfigError(
            "train.lora: must not be null, because the policy is an adapter. Set it, or merge the adapter first."
        )
    adapter = policy.model.peft_config["default"]
    modules = adapter.target_modules
    compared = {
        "rank": (settings.rank, adapter.r),
        "alpha": (settings.alpha, adapter.lora_alpha),
        "dropout": (settings.dropout, adapter.lora_dropout),
        "target_modules": (
            sorted(set(settings.target_modules)),
            modules if isinstance(modules, str) else sorted(set(modules)),
        ),
    }
    for name, (wanted, saved) in compared.items():
        if wanted != saved:
            raise ConfigError(
                f"train.lora: {name} is {wanted}, but the policy is an adapter with {name} {saved}. Set it to that "
                "value, or merge the adapter first."
            )


def save_adapter(policy: Policy, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapter as peft does, but without its model card template, and with identical settings every time.

    peft would record where the base is on this machine (the manifest has a relative path) and write the target modules
    in random order; either would change the content hash of identical work. For an adapter on embeddings or head it
    would also save the base's weights.
    """
    policy.model.save_pretrained(folder, safe_serialization=True, state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": None, "target_modules": sorted(settings["target_modules"])}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(policy: Policy, folder: Path, *, trainable: bool) -> None:
    """Put a saved adapter on its base: unmerged for training, or (unless the base is quantized) merged for use.

    Raises ModelError or DataError for anything but plain LoRA in safetensors.
    """
    from peft import PeftModel

    scale_of(folder)
    if not (folder / ADAPTER).is_file():  # peft would unpickle another file
        raise DataError(folder, f"{ADAPTER} of the adapter is missing", "Pass a policy written by train-step.")
    apart = trainable or policy.is_quantized
    with reading(folder), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")  # peft would initialize them at random
        adapted = PeftModel.from_pretrained(policy.model, folder, is_trainable=trainable)
    check_values(folder, ((name, one) for name, one in adapted.named_parameters() if "lora_" in name))
    policy.model = adapted if apart else adapted.merge_and_unload()
    policy.model.eval()
