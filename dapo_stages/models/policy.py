"""A policy in memory: model, processor, and what the stages need to know about its tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from dapo_stages import ranks
from dapo_stages.config import ModelConfig
from dapo_stages.errors import ModelError
from dapo_stages.models import attention, decoding
from dapo_stages.models.families import FAMILIES, Family
from dapo_stages.models.packing import Group, Packed, Prompt, pack
from dapo_stages.models.quantization import compute_exactly, quantized
from dapo_stages.models.reading import reading
from dapo_stages.models.separate import SeparateRows
from dapo_stages.models.soundness import check_checkpoint
from dapo_stages.models.tokens import Tokens, check_tokens, end_ids_of
from dapo_stages.models.trial import try_out


@dataclass
class Policy:
    """A vision-language model that can generate, be scored and be trained."""

    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype  # of what is computed and saved; weights under training may be held more exactly
    flex: bool = False  # FlexAttention instead of SDPA over packed groups
    compiled: bool = False  # torch.compile for decoding and log-probs

    def attend(self, how: Literal["separate", "grouped", "decoding"]) -> None:
        """Rows of their own with padding masks, packed groups (prefill, scoring, training), or single tokens after
        shared prompts (generation). A model that cannot share prompts knows only the first, its own."""
        if not self.shares_prefixes:
            return
        text = {"separate": "sdpa", "grouped": attention.NAME, "decoding": decoding.NAME}[how]
        self.base.set_attn_implementation({"text_config": text, "vision_config": "sdpa"})

    @property
    def base(self) -> Any:
        """The transformers model itself, also under adapters."""
        return self.model.get_base_model() if self.is_adapter else self.model

    @property
    def is_adapter(self) -> bool:
        """Whether the model is an adapter over frozen weights."""
        return hasattr(self.model, "get_base_model")

    @property
    def is_quantized(self) -> bool:
        """Whether weights are held in few bits; only an adapter over them can be trained."""
        return getattr(self.base, "hf_quantizer", None) is not None

    @property
    def architecture(self) -> str:
        """The model's type, as its configuration has it."""
        return str(self.base.config.model_type)

    @property
    def shares_prefixes(self) -> bool:
        """Whether completions of a prompt can be computed with one copy of it, and their attention be read."""
        return self.architecture in FAMILIES

    @property
    def family(self) -> Family:
        """What is particular to the architecture of a model that shares prefixes."""
        return FAMILIES[self.architecture]

    @property
    def vision(self) -> torch.nn.Module:
        """The part that sees pictures."""
        found: torch.nn.Module = self.base.get_encoder(modality="image")
        if found is self.base:
            raise ModelError(
                f"{self.architecture}: found no vision tower to freeze; needed a model that has one apart. "
                "Set train.freeze_vision to false."
            )
        return found

    @cached_property
    def tokens(self) -> Tokens:
        """Its vocabulary."""
        image = getattr(self.base.config, "image_token_id", None)
        return Tokens(self.processor.tokenizer, self.vocabulary, self.end_ids, image, self.architecture)

    @cached_property
    def end_ids(self) -> list[int]:
        """Tokens that end a completion."""
        return end_ids_of(self.base.generation_config, self.processor.tokenizer)

    @property
    def pad_id(self) -> int:
        """What fills rows up; it is always masked."""
        pad = self.processor.tokenizer.pad_token_id
        return self.end_ids[0] if pad is None else int(pad)

    @property
    def special_ids(self) -> frozenset[int]:
        """Every special token, that of pictures, and ids of the vocabulary that stand for no token at all."""
        return self.tokens.special_ids

    @cached_property
    def suppressed(self) -> torch.Tensor:
        """[V] True for tokens that are never sampled."""
        with torch.inference_mode(False):  # it is kept, and what generation makes could not be used in training
            mask = torch.zeros(self.vocabulary, dtype=torch.bool, device=self.device)
            mask[sorted(self.tokens.suppressed_ids)] = True
        return mask

    @property
    def vocabulary(self) -> int:
        return int(self.base.config.get_text_config().vocab_size)

    @property
    def num_layers(self) -> int:
        return int(self.base.config.get_text_config().num_hidden_layers)

    @property
    def image_token_id(self) -> int:
        return int(self.base.config.image_token_id)

    def text(self, ids: Sequence[int]) -> str:
        """The text of a completion, without its end token."""
        return self.tokens.text(ids)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        return self.tokens.token_texts(ids)

    def pack(self, groups: Sequence[Group]) -> Packed:
        """Groups in one row on the model's device."""
        packed = pack(groups, [self.positions(group.prompt) for group in groups], self.device)
        if not self.flex:
            return packed
        from dapo_stages.models.flex import sees

        return replace(packed, block_mask=sees(packed.spans, self.device))

    def batch(self, groups: Sequence[Group]) -> Packed | SeparateRows:
        """Groups in the layout this model is trained in."""
        return self.pack(groups) if self.shares_prefixes else SeparateRows(groups)

    def positions(self, prompt: Prompt) -> torch.Tensor:
        """Positions of a prompt's tokens, [3, P]."""
        return self.family.positions(self.base.model, prompt.ids, prompt.image_grid_thw)

    def system_end(self, ids: Sequence[int]) -> int:
        """Length of the leading system message in a prompt; 0 if it has none."""
        tokenizer = self.processor.tokenizer
        start, end = (tokenizer.convert_tokens_to_ids(token) for token in self.family.turn)
        head = tokenizer.decode(list(ids[1:4]))
        if not ids or ids[0] != start or not head.startswith("system") or end not in ids:
            return 0
        return list(ids).index(end) + 1


def load_policy(path: str | Path, config: ModelConfig) -> Policy:
    """Load a checkpoint by folder or hub id. Only safetensors, never code from the checkpoint.

    Raises ModelError if it cannot be loaded or does not read pictures and write text.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    from dapo_stages.models.processor import load_processor

    disable_progress_bar()  # ours says what takes long
    if Path(path).is_dir():
        check_checkpoint(Path(path))
    shared = check_family(path) in FAMILIES
    device = device_of(config)
    if config.attention == "flex" and device.type != "cuda":
        raise ModelError("model.attention: found flex without CUDA; needed sdpa, which trains on the CPU too. Set it.")
    how: dict[str, Any] = {"attn_implementation": "sdpa"} if shared else {}
    if config.quantization is not None:
        how |= quantized(config.quantization, getattr(torch, config.dtype), device)
    with reading(path):
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=getattr(torch, config.dtype), use_safetensors=True, trust_remote_code=False, **how
        )
        _keep_used_renamings(model)
        if config.quantization is None:
            model = model.to(device)
        elif device.type == "cpu":
            compute_exactly(model)
        dtype, flex = getattr(torch, config.dtype), config.attention == "flex"
        policy = Policy(model.eval(), load_processor(path), device, dtype, flex, config.compile)
        check_tokens(path, policy.tokens)
    if shared and policy.base.config.get_text_config().to_dict().get("use_sliding_window"):
        raise ModelError(
            f"{path}: found sliding-window attention; needed full attention. Set use_sliding_window false."
        )
    try_out(policy, path)
    return policy


def _keep_used_renamings(model: Any) -> None:
    """Under ZeRO-3 transformers remembers all renamings that the architecture knows, also those that this checkpoint
    did not need, and would undo them all when it saves."""
    remembered = getattr(model, "_weight_conversions", None)
    if remembered:
        model._weight_conversions = [renaming for renaming in remembered if renaming.was_used()]


def check_family(path: str | Path, *, attention: bool = False) -> str:
    """The architecture of a checkpoint, read from its configuration alone.

    Raises ModelError if it is no decoder that reads pictures and writes text, or, with `attention`, if its attention
    cannot be read.
    """
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    with reading(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    family = str(config.model_type)
    if kernel := _foreign_kernel(config):
        raise ModelError(
            f"{path}: found attention by {kernel}, code of the hub; needed that of torch. Remove attn_implementation "
            "from its config.json."
        )
    if family in FAMILIES:
        return family
    known = ", ".join(FAMILIES)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or config.is_encoder_decoder:
        raise ModelError(
            f"{path}: found a checkpoint of architecture `{family}`; needed a decoder that reads pictures and writes "
            f"text, best one whose attention can be read: {known}. Set model.name to one of these."
        )
    if attention:
        raise ModelError(
            f"{path}: found a checkpoint of architecture `{family}`; needed one whose attention can be read: {known}. "
            "Set model.name to one of these, or attention.enabled to false."
        )
    return family


def _foreign_kernel(config: Any) -> str | None:
    """The repository that a configuration wants to have its attention computed by."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    names = (str(getattr(part, "_attn_implementation", "")) for part in parts)
    return next((name for name in names if "/" in name), None)


def device_of(config: ModelConfig) -> torch.device:
    """The device a model is put on; each of several processes on a machine has a GPU of its own."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device: found no CUDA device; needed one. Set model.device to auto or cpu.")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks.count() == 1:
        return torch.device("cuda")
    found, index = torch.cuda.device_count(), ranks.local_rank()
    if index >= found:
        raise ModelError(
            f"process {index + 1} on this machine: found {found} CUDA devices; needed one for each process. Start "
            f"{found} processes, or set model.device to cpu."
        )
    torch.cuda.set_device(index)  # what Triton and NCCL go by
    return torch.device("cuda", index)


def save_policy(policy: Policy, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write a standard transformers checkpoint that AutoModel, AutoProcessor and vLLM open, or a peft adapter.

    `weights` stand in for those in memory, where they are split over several processes.
    """
    from dapo_stages.models.processor import save_processor

    folder.mkdir(parents=True, exist_ok=True)
    if policy.device.type == "cpu":  # save_pretrained imports deepspeed where it is installed, which would warn
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    policy.attend("separate")
    if policy.is_adapter:
        from dapo_stages.models.adapters import save_adapter

        save_adapter(policy, folder, weights)
    else:
        weights = policy.model.state_dict(keep_vars=True) if weights is None else weights
        # Tied weights are one tensor of several names, and must stay one, or it would be saved under each of them.
        rounded = {id(value): value.detach().to(policy.dtype) for value in weights.values()}
        named = {name: rounded[id(value)] for name, value in weights.items()}
        policy.model.save_pretrained(folder, state_dict=named, safe_serialization=True)
        policy.model.config.dtype = policy.dtype  # save_pretrained noted that of the weights under training
        policy.model.config.save_pretrained(folder)
    save_processor(policy.processor, folder)
