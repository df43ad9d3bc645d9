"""The model families whose completions can share a prompt, and what differs between them.

Requirements for a family: its decoder uses AttentionInterface in every layer (or the layer is linear, as
shared_prefix/linear_layers.py takes them), attention there is causal (to all tokens or those in a sliding window;
tokens of an image may see each other), keyword arguments of `model` reach those layers, and the positions of a prompt
do not depend on what follows it.
tests/models and tests/engines compare each family with separate rows, an eager forward pass and transformers' own
generate. Every other image-text-to-text model is trained with separate rows (`separate_rows.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from dapo_stages.models.shared_prefix.packing import Prompt


@dataclass(frozen=True)
class Family:
    """One architecture."""

    processor: str  # class name of its processor, used without its video half if torchvision is missing
    turn: tuple[str, str] = ("<|im_start|>", "<|im_end|>")  # tokens around a message
    image_marker: str = "<|vision_start|><|image_pad|><|vision_end|>"  # what a chat template writes for an image
    gated: bool = False  # whether each token scales what its heads have read before it is projected
    grids = True  # whether its processor says how many rows and columns of patches an image has, as Qwen's do

    def takes(self, text: Mapping[str, Any]) -> bool:
        """Whether completions can share prompts in a decoder with this configuration."""
        return True

    def positions(self, model: Any, prompt: Prompt) -> torch.Tensor:
        """Positions of a prompt's tokens [P] -> [3, P]: text one by one, images by row and column, videos also by time.

        Later tokens continue after the largest of them, on all three axes, as those that transformers generates do.
        """
        row = prompt.ids[None]
        kinds = row.eq(model.config.image_token_id).int()
        if prompt.video_grid_thw is not None:
            kinds += 2 * row.eq(model.config.video_token_id).int()
        found, _ = model.get_rope_index(
            row,
            mm_token_type_ids=kinds,
            image_grid_thw=prompt.image_grid_thw,
            video_grid_thw=prompt.video_grid_thw,
            second_per_grid_ts=prompt.second_per_grid_ts,
            attention_mask=row.new_ones(row.shape),
        )
        positions: torch.Tensor = found[:, 0]
        return positions

    def ends(self, prompt: Prompt) -> torch.Tensor | None:
        """Where what each token of a prompt sees ends, [P]; None if all see up to themselves."""
        return None


class Plain(Family):
    """One whose positions count the tokens, and whose decoder is one of several."""

    grids = False

    def takes(self, text: Mapping[str, Any]) -> bool:
        """Whether a decoder, by its configuration, is one that was tried."""
        return text.get("model_type", "llama") in _DECODERS

    def positions(self, model: Any, prompt: Prompt) -> torch.Tensor:
        """0, 1, 2 …: [P] -> [1, P]."""
        import torch

        return torch.arange(len(prompt.ids))[None]


class Gemma(Plain):
    """One whose tokens of an image see each other, in a decoder of its own."""

    def takes(self, text: Mapping[str, Any]) -> bool:
        """Whether a decoder, by its configuration, is causal beside that."""
        return not text.get("use_bidirectional_attention")

    def ends(self, prompt: Prompt) -> torch.Tensor | None:
        """By its token types, as transformers finds them: images without a token between them are one."""
        from dapo_stages.models.shared_prefix.visible import image_ends

        kinds = prompt.others.get("token_type_ids")
        return None if kinds is None or not (kinds == 1).any() else image_ends(kinds[0] == 1)


# Families that make a square of tokens of every image (or of every part that they cut it into), row by row.
SQUARES = frozenset({"gemma3", "idefics3", "internvl", "llava", "smolvlm"})

_DECODERS = frozenset({"llama", "mistral", "qwen2", "qwen3"})

FAMILIES = {
    "qwen2_5_vl": Family("Qwen2_5_VLProcessor"),
    "qwen2_vl": Family("Qwen2VLProcessor"),
    "qwen3_vl": Family("Qwen3VLProcessor"),
    "qwen3_5": Family("Qwen3VLProcessor", gated=True),
    "gemma3": Gemma("Gemma3Processor"),
    "idefics3": Plain("Idefics3Processor"),
    "internvl": Plain("InternVLProcessor"),
    "llava": Plain("LlavaProcessor"),
    "llava_onevision": Plain("LlavaOnevisionProcessor"),
    "smolvlm": Plain("SmolVLMProcessor"),
}


def architecture_of(config: Any) -> str:
    """The model_type of a model's configuration; with its decoder's, if only that keeps it from sharing prompts."""
    return named(str(config.model_type), config.get_text_config().to_dict())


def named(model_type: str, text: Mapping[str, Any]) -> str:
    """The same by the settings of its decoder."""
    family = FAMILIES.get(model_type)
    return model_type if family is None or family.takes(text) else f"{model_type} with {text.get('model_type')}"


def has_grids(name: str) -> bool:
    """Whether an architecture is one whose processor gives the grids of images."""
    return name in FAMILIES and FAMILIES[name].grids
