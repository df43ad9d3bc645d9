"""LoRA adapters (peft): trained instead of the weights and saved by themselves, beside the base they belong to.

Over a quantised base (QLoRA, Dettmers et al. 2023, arXiv 2305.14314) the adapter stays apart in use, too: merging
would round it to the base's few levels, and what samples would no longer be what is trained.
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
    """Wrap the policy's model in a fresh adapter; all other weights are frozen."""
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
    """Refuse names of no layer, and adapters of a weight that two layers share: in training each layer would have an
    adapter of its own, but merged, to sample from, it changes the weight of both. Raises ConfigError."""
    tied = {name.removesuffix(".weight") for pair in model.all_tied_weights_keys.items() for name in pair}
    for target in settings.target_modules:
        named = {name for name, _ in model.named_modules() if f".{name}".endswith(f".{target}")}  # as peft finds them
        if not named:
            raise ConfigError(
                f"train.lora.target_modules: found {target}, which is the name of no layer of this model; needed names "
                "or their ends, such as q_proj. Mend it."
            )
        if named & tied:
            raise ConfigError(
                f"train.lora.target_modules: found {target}, whose weights this model ties to those of another layer "
                f"({', '.join(sorted(tied))}); needed layers with weights of their own. Leave it out."
            )


def check_adapter(policy: Policy, settings: LoraSettings | None) -> None:
    """Refuse settings that an adapter under training does not have. Raises ConfigError."""
    if settings is None:
        raise ConfigError(
            "train.lora: found null over an adapter; needed its settings. Set it, or merge the adapter first."
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
    for name, (wanted, found) in compared.items():
        if wanted != found:
            raise ConfigError(
                f"train.lora: found {name} {wanted} over an adapter of {name} {found}; needed the same. Set it, or "
                "merge the adapter first."
            )


def save_adapter(policy: Policy, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapter as peft does, without its template of a card, and with the same settings every time.

    peft would note where the base lies on this machine (the manifest names it, relative to here) and write the target
    modules in an order of chance; either would change the hash of the same work. It would add the weights of the base
    beside those of an adapter of embeddings or head.
    """
    policy.model.save_pretrained(folder, safe_serialization=True, state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": None, "target_modules": sorted(settings["target_modules"])}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(policy: Policy, folder: Path, *, trainable: bool) -> None:
    """Put a saved adapter onto its base: kept apart to train on, or (unless quantised) merged into it to use.

    Raises ModelError or DataError for anything but plain LoRA in safetensors.
    """
    from peft import PeftModel

    scale_of(folder)
    if not (folder / ADAPTER).is_file():  # peft would unpickle another file
        raise DataError(folder, f"an adapter without {ADAPTER}", "its weights", "Name a policy written by train-step.")
    apart = trainable or policy.is_quantized
    with reading(folder), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")  # it would draw them at random
        adapted = PeftModel.from_pretrained(policy.model, folder, is_trainable=trainable)
    check_values(folder, ((name, one) for name, one in adapted.named_parameters() if "lora_" in name))
    policy.model = adapted if apart else adapted.merge_and_unload()
    policy.model.eval()
