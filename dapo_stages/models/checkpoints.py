"""Checkpoints as files: tensors read one at a time, optionally with an adapter merged in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from dapo_stages.errors import DataError, ModelError
from dapo_stages.handoff.referred import INDEX
from dapo_stages.models.reading import reading
from dapo_stages.small_files import REPORT, read_json

SINGLE = "model.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."  # what peft puts before the name of a module

# Settings of an adapter that change what it adds to the weights, with the value for which that is scale · B A; and
# those that name modules to import or files to read.
_PLAIN = {
    "peft_type": "LORA", "bias": "none", "use_dora": False, "fan_in_fan_out": False, "use_rslora": False,
    "lora_bias": False, "modules_to_save": None, "layer_replication": None, "target_parameters": None,
    "trainable_token_indices": None, "rank_pattern": {}, "alpha_pattern": {},
    "init_lora_weights": True, "megatron_config": None,
}  # fmt: skip


class Tensors(Protocol):
    """Named tensors that are read on demand."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> torch.Tensor: ...


class Checkpoint:
    """The safetensors of a checkpoint folder: one file, or several with an index."""

    def __init__(self, folder: Path, single: str = SINGLE) -> None:
        self.folder, self._single = folder, single
        self._files: dict[str, Any] = {}

    @cached_property
    def layout(self) -> dict[str, list[str]]:
        """File -> names of its tensors, as the checkpoint is sharded."""
        if not (self.folder / INDEX).is_file():
            names = list(self._open(self._single).keys())
            return {self._single: [name for name in names if not self._is_copy(name, names)]}
        layout: dict[str, list[str]] = {}
        for name, file in self._index().items():
            if not _is_plain(file):  # merge writes files of the same names
                raise self._unusable(f"weight_map names {file!r}, which is not a safetensors file in this folder")
            layout.setdefault(file, []).append(name)
        return layout

    def _is_copy(self, name: str, names: Sequence[str]) -> bool:
        """Whether a tensor is the head of a model that ties it to its embeddings, saved a second time."""
        tied = next((other for other in names if other.endswith("embed_tokens.weight")), None)
        if tied is None or not name.endswith("lm_head.weight"):
            return False
        settings = read_json(self.folder / "config.json")
        whole = self._open(self._single)
        ties = any(part.get("tie_word_embeddings") for part in (settings, settings.get("text_config", {})))
        return ties and torch.equal(whole.get_tensor(name), whole.get_tensor(tied))

    def _index(self) -> dict[str, str]:
        try:
            return dict(read_json(self.folder / INDEX, REPORT)["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unusable(f"cannot read its weight_map ({' '.join(str(error).split())[:160]})") from None

    def _unusable(self, problem: str) -> DataError:
        return DataError(self.folder / INDEX, problem, "Download the checkpoint again.")

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, from the headers alone."""
        return {
            name: tuple(self._open(file).get_slice(name).get_shape())
            for file, names in self.layout.items()
            for name in names
        }

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in its stored dtype."""
        tensor: torch.Tensor = self._open(self._file_of[name]).get_tensor(name)
        return tensor

    def type_of(self, name: str) -> str:
        """Its stored dtype, as safetensors calls it."""
        return str(self._open(self._file_of[name]).get_slice(name).get_dtype())

    def check_layout(self) -> None:
        """Refuse an index that does not match the files: loaders go by one or the other. Raises DataError."""
        if not (self.folder / INDEX).is_file():
            return
        for file, names in self.layout.items():
            stored = set(self._open(file).keys())
            for name in sorted(stored ^ set(names))[:1]:
                if name in names:
                    problem = f"tensor {name} is missing, but the index lists it for this file"
                else:
                    problem = f"tensor {name} is not listed for this file in the index"
                raise DataError(self.folder / file, problem, "Save the checkpoint again with save_pretrained.")

    @cached_property
    def _file_of(self) -> dict[str, str]:
        return {name: file for file, names in self.layout.items() for name in names}

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._files:
            try:
                self._files[file] = safe_open(self.folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise DataError(
                    self.folder / file,
                    f"cannot read the checkpoint's weights ({error})",
                    "Pass a folder with safetensors.",
                ) from None
        return self._files[file]


class Adapted:
    """A checkpoint with a LoRA adapter merged in: W + alpha / rank · B A, computed in float32 and rounded once."""

    def __init__(self, base: Checkpoint, adapter: Path) -> None:
        self._base, self._adapter = base, Checkpoint(adapter, ADAPTER)
        self._scale = scale_of(adapter)
        with reading(adapter):  # raises if a factor is missing
            self._modules = self._located()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._base.shapes

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the base's dtype."""
        weight = self._base.read(name)
        if name not in self._modules:
            return weight
        module = self._modules[name]
        down, up = (self._adapter.read(factor).float() for factor in self._factors(module))
        change = (up @ down).T if self._embeds(module) else up @ down
        exact = weight if weight.dtype == torch.float64 else weight.float()
        return (exact + self._scale * change.to(exact.dtype)).to(weight.dtype)

    def _embeds(self, module: str) -> bool:
        """Whether the adapter is on embeddings, whose rows are inputs; peft names its factors differently."""
        return f"{module}.lora_embedding_A" in self._adapter.shapes

    def _factors(self, module: str) -> list[str]:
        name = f"{module}.lora_embedding_{{}}" if self._embeds(module) else f"{module}.lora_{{}}.weight"
        return [name.format(part) for part in "AB"]

    def _shape(self, module: str) -> tuple[int, int]:
        """Shape of the weight that the adapter fits."""
        (_, inputs), (outputs, _) = (self._adapter.shapes[factor] for factor in self._factors(module))
        return (inputs, outputs) if self._embeds(module) else (outputs, inputs)

    def _located(self) -> dict[str, str]:
        """Name of a tensor in the base -> module of the adapter that changes it."""
        wanted = {key.partition(".lora_")[0] for key in self._adapter.shapes}
        names = names_in_memory(self._base)
        located = {
            stored: module
            for stored, name in names.items()
            if name.endswith(".weight") and (module := _PREFIX + name.removesuffix(".weight")) in wanted
        }
        missing = sorted(wanted - set(located.values()))
        missing += [module for stored, module in located.items() if self._shape(module) != self._base.shapes[stored]]
        if missing:
            layer = missing[0].removeprefix(_PREFIX)
            raise DataError(
                self._adapter.folder,
                f"the adapter's layer {layer} is not in {self._base.folder}, or has another shape there",
                "Pass the policy that this adapter was trained on.",
            )
        return located


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def empty_model(path: str | Path) -> Any:
    """The model of a checkpoint (folder or hub id) without weights, on the meta device."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"), _not_split():
        return (kind[0] if isinstance(kind, tuple) else kind)(config)


@contextmanager
def _not_split() -> Iterator[None]:
    """Hide ZeRO-3 from transformers, which would split every model that it builds over the ranks."""
    from transformers.integrations import deepspeed

    held = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = held


def names_in_memory(checkpoint: Checkpoint) -> dict[str, str]:
    """Name of each tensor in the files -> its name in the model: transformers renames some on loading."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    model = empty_model(checkpoint.folder)
    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    others = [one for one in mapping if not isinstance(one, WeightRenaming)]
    weights = model.state_dict()
    return {
        name: rename_source_key(name, renamings, others, model.base_model_prefix, weights)[0]
        for name in checkpoint.shapes
    }


def scale_of(adapter: Path) -> float:
    """alpha / rank. Raises DataError if it cannot be read, ModelError if the adapter adds anything but scale · B A."""
    try:
        settings = read_json(adapter / ADAPTER_CONFIG)
        scale = float(settings["lora_alpha"]) / int(settings["r"])
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise DataError(
            adapter / ADAPTER_CONFIG,
            f"cannot read the settings of a LoRA adapter ({error})",
            "Pass a policy written by train-step.",
        ) from None
    for key, plain in _PLAIN.items():
        if settings.get(key, plain) != plain:
            raise ModelError(
                f"{adapter}: {key} is {settings[key]!r}, but an adapter must be plain LoRA ({key} {plain!r}). Merge it "
                "with peft's merge_and_unload."
            )
    return scale
