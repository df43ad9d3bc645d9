"""The model families whose completions can share a prompt, and what differs between them.

Requirements for a family: its decoder uses AttentionInterface in every layer, attention there is causal and over all
tokens, keyword arguments of `model` reach those layers, and the positions of a prompt do not depend on what follows it.
tests/models and tests/engines compare each family with separate rows, an eager forward pass and transformers' own
generate. Every other image-text-to-text model is trained with separate rows (`separate_rows.py`).
"""

from __future__ import annotations

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
    grids = True  # whether its processor says how many rows and columns of patches an image has, as Qwen's do

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


class Plain(Family):
    """One whose positions count the tokens, and whose images are nothing but pixel values."""

    grids = False

    def positions(self, model: Any, prompt: Prompt) -> torch.Tensor:
        """0, 1, 2 …: [P] -> [1, P]."""
        import torch

        return torch.arange(len(prompt.ids))[None]


# Families that make a square of tokens of every image (or of every part that they cut it into), row by row.
SQUARES = frozenset({"gemma3", "idefics3", "internvl", "llava", "smolvlm"})

FAMILIES = {
    "qwen2_5_vl": Family("Qwen2_5_VLProcessor"),
    "qwen2_vl": Family("Qwen2VLProcessor"),
    "qwen3_vl": Family("Qwen3VLProcessor"),
    "internvl": Plain("InternVLProcessor"),
}


def has_grids(name: str) -> bool:
    """Whether an architecture is one whose processor gives the grids of images."""
    return name in FAMILIES and FAMILIES[name].grids
