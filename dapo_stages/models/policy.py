"""A policy in memory: model, processor, and what the stages need to know about its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isqrt
from typing import Any, Literal, NamedTuple

import torch

from dapo_stages.data.blanks import ImageMarks
from dapo_stages.errors import ModelError
from dapo_stages.handoff.shards import Row
from dapo_stages.models import own_rows, windows
from dapo_stages.models.families import FAMILIES, SQUARES, Family, architecture_of, has_grids
from dapo_stages.models.shared_prefix import decoding, grouped_attention, linear_layers
from dapo_stages.models.shared_prefix.packing import Group, Packed, Prompt, SeparateRows, pack
from dapo_stages.models.tokens import Tokens, end_ids_of


class Loaded(NamedTuple):
    """How load_policy gives a parameter."""

    dtype: torch.dtype
    requires_grad: bool


@dataclass
class Policy:
    """A vision-language model that can generate, be scored and be trained."""

    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype  # of computation and saved files; weights under training may be more precise
    flex: bool = False  # FlexAttention instead of SDPA over packed groups
    compiled: bool = False  # torch.compile for decoding and logprobs
    decoding: Callable[..., Any] | None = None  # the model compiled for decoding, once it was needed
    loaded: dict[str, Loaded] = field(default_factory=dict)  # by parameter, in a process that keeps policies
    _own_attention: str = "sdpa"  # of the decoder of a model that cannot share prompts, while attention is recorded

    def attend(self, how: Literal["separate", "grouped", "decoding", "recorded"]) -> None:
        """Choose the attention: separate rows with padding masks, packed groups (prefill, scoring, training), or single
        tokens after shared prompts (generation). A model that cannot share prompts always uses its own, the first, but
        for `recorded`: separate rows whose attention is scored."""
        if not self.shares_prefixes:
            now = str(self.base.config.get_text_config()._attn_implementation)
            if how == "recorded" and now != own_rows.NAME:
                self._own_attention = now
                own_rows.set_attention(self.base, own_rows.NAME)
            elif how != "recorded" and now == own_rows.NAME:
                own_rows.set_attention(self.base, self._own_attention)
            return
        linear_layers.extend(self.base)
        text = {"separate": "sdpa", "grouped": grouped_attention.NAME, "decoding": decoding.NAME}[how]
        self.base.set_attn_implementation({"text_config": text, "vision_config": "sdpa"})
        if self.family.grids and windows.runs_on(self.device, self.dtype):
            # By set_attn_implementation, transformers would look for flash_attn.
            self.base.config.vision_config._attn_implementation_internal = windows.NAME

    @property
    def base(self) -> Any:
        """The transformers model itself, even inside an adapter."""
        return self.model.get_base_model() if self.is_adapter else self.model

    @property
    def is_adapter(self) -> bool:
        """Whether the model is an adapter on frozen weights."""
        return hasattr(self.model, "get_base_model")

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are quantized; only an adapter on them can be trained."""
        return getattr(self.base, "hf_quantizer", None) is not None

    @cached_property
    def architecture(self) -> str:
        """The name of its family, or of its family and decoder (families.py)."""
        return architecture_of(self.base.config)

    @property
    def shares_prefixes(self) -> bool:
        """Whether completions of a prompt can be computed with one copy of it."""
        return self.architecture in FAMILIES

    @property
    def family(self) -> Family:
        """What is specific to the architecture of a model that shares prefixes."""
        return FAMILIES[self.architecture]

    @property
    def vision(self) -> torch.nn.Module:
        """The vision tower."""
        tower: torch.nn.Module = self.base.get_encoder(modality="image")
        if tower is self.base:
            raise ModelError(
                f"{self.architecture}: the model has no separate vision tower to freeze. Set train.freeze_vision to "
                "false."
            )
        return tower

    @cached_property
    def tokens(self) -> Tokens:
        """Its vocabulary."""
        image, video = (getattr(self.base.config, f"{name}_token_id", None) for name in ("image", "video"))
        return Tokens(self.processor.tokenizer, self.vocabulary, self.end_ids, image, self.architecture, video)

    @cached_property
    def end_ids(self) -> list[int]:
        """Tokens that end a completion."""
        return end_ids_of(self.base.generation_config, self.processor.tokenizer)

    @property
    def pad_id(self) -> int:
        """The padding token; it is always masked."""
        pad = self.processor.tokenizer.pad_token_id
        return self.end_ids[0] if pad is None else int(pad)

    @property
    def special_ids(self) -> frozenset[int]:
        """Every special token, the image token, and ids of the vocabulary that have no token."""
        return self.tokens.special_ids

    @cached_property
    def suppressed(self) -> torch.Tensor:
        """[V] True for tokens that are never sampled."""
        with torch.inference_mode(False):  # it is cached, and an inference tensor could not be used in training
            mask = torch.zeros(self.vocabulary, dtype=torch.bool, device=self.device)
            mask[sorted(self.tokens.suppressed_ids)] = True
        return mask

    @property
    def vocabulary(self) -> int:
        return int(self.base.config.get_text_config().vocab_size)

    @cached_property
    def windows(self) -> list[int | None]:
        """How many tokens of its sequence a token sees in each layer, itself included; None is all before it."""
        from transformers import DynamicCache

        layers = DynamicCache(config=self.base.config.get_text_config()).layers
        return [getattr(layer, "sliding_window", None) for layer in layers]

    @cached_property
    def scored_layers(self) -> list[int]:
        """The layers whose attention can be read, counted from 0."""
        return own_rows.attention_layers(self.base)

    @cached_property
    def linear_layers(self) -> list[int]:
        """The layers that have a state instead of keys, counted from 0."""
        return [int(module.layer_idx) for module in linear_layers.linear_layers(self.base)]

    @property
    def image_token_id(self) -> int:
        found = own_rows.image_token_id(self.base.config, self.processor)
        assert found is not None
        return found

    @cached_property
    def image_marks(self) -> ImageMarks:
        """The tokens that stand for an image in a prompt."""
        ids = self.processor.tokenizer(self.family.image_marker, add_special_tokens=False)["input_ids"]
        start, image, end = ids
        return ImageMarks(start, image, end, self.tokens.video_token_id)

    def text(self, ids: Sequence[int]) -> str:
        """The text of a completion, without its end token."""
        return self.tokens.text(ids)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        return self.tokens.token_texts(ids)

    def pack(self, groups: Sequence[Group]) -> Packed:
        """Groups packed in one row on the model's device."""
        prompts = [group.prompt for group in groups]
        positions, ends = map(self.positions, prompts), map(self.family.ends, prompts)
        packed = pack(groups, list(positions), self.device, list(ends))
        if self.linear_layers:
            packed = replace(packed, sequences=linear_layers.sequences_of(packed.spans, self.device))
        if not self.flex:
            return packed
        from dapo_stages.models.shared_prefix.flex import sees

        return replace(packed, block_masks={own: sees(packed.spans, self.device, own) for own in set(self.windows)})

    def batch(self, groups: Sequence[Group]) -> Packed | SeparateRows:
        """Groups in the layout that this model is trained in."""
        return self.pack(groups) if self.shares_prefixes else SeparateRows(groups)

    def positions(self, prompt: Prompt) -> torch.Tensor:
        """Positions of a prompt's tokens, [3, P], or [1, P] where they have one axis."""
        return self.family.positions(self.base.model, prompt)

    def prompt_kinds(self, ids: Sequence[int]) -> torch.Tensor:
        """The kind of every prompt token, by which attention is measured: [P] (shared_prefix/masses.py)."""
        from dapo_stages.models.shared_prefix.masses import prompt_kinds

        vision = [token in self.tokens.vision_ids for token in ids]
        return prompt_kinds(ids, vision, self.special_ids, self.system_end(ids))

    def is_mapped(self, row: Row) -> bool:
        """Whether the place of each image token of a prompt row is known: from its grid, or a whole image is a square.

        Families that cut an image into parts, or put tokens between its rows, have no such map.
        """
        if row["image_grid_thw"]:
            return True
        sizes = (getattr(self.processor, name, None) for name in ("image_seq_length", "image_seq_len"))
        size = next((size for size in sizes if size), getattr(self.base.config, "image_seq_length", None))
        if self.base.config.model_type not in SQUARES or not row["images"] or not size or isqrt(size) ** 2 != size:
            return False
        tokens: int = list(row["prompt_ids"]).count(self.image_token_id)
        return tokens == len(row["images"]) * int(size)

    def system_end(self, ids: Sequence[int]) -> int:
        """Length of the leading system message in a prompt; 0 if it has none."""
        if not has_grids(self.architecture):
            return self.tokens.system_end(ids)
        tokenizer = self.processor.tokenizer
        start, end = (tokenizer.convert_tokens_to_ids(token) for token in self.family.turn)
        head = tokenizer.decode(list(ids[1:4]))
        if not ids or ids[0] != start or not head.startswith("system") or end not in ids:
            return 0
        return list(ids).index(end) + 1
