"""From rows of a prompt table to what the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dapo_stages.errors import DataError
from dapo_stages.models.families import FAMILIES
from dapo_stages.models.packing import Prompt

_OF_FAMILIES = frozenset(family.processor for family in FAMILIES.values())


def prompt_of(row: dict[str, Any], processor: Any, *, blank: bool = False) -> Prompt:
    """The model's input for one prompt row; `blank` replaces its pictures by grey ones of the same size.

    Raises DataError if the pictures do not come out at the size that the placeholders were made for: then the
    policy's image processor is not the one the data was prepared with.
    """
    from dapo_stages.data.images import decode

    ids = torch.tensor(row["prompt_ids"], dtype=torch.long)
    pictures = [decode(image) for image in row["images"] or ()]
    if blank:
        pictures = [_blank(picture) for picture in pictures]
    if type(processor).__name__ not in _OF_FAMILIES:
        return _whole(row, pictures, processor)
    others = {"mm_token_type_ids": (ids == processor.image_token_id).int()[None]}
    if not pictures:
        return Prompt(ids, None, None, others)
    inputs = processor.image_processor(images=pictures, return_tensors="pt")
    grid = inputs["image_grid_thw"]
    if grid.tolist() != row["image_grid_thw"]:
        raise DataError(
            f"prompt {row['prompt_id']}",
            f"pictures of grid {grid.tolist()}",
            f"the grid {row['image_grid_thw']} its prompt was made for",
            "Run prepare-data again with this policy.",
        )
    return Prompt(ids, inputs["pixel_values"], grid, others)


def prompt_from(inputs: Mapping[str, torch.Tensor]) -> Prompt:
    """What a processor made of one text and its pictures, as a prompt."""
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    pixels, grid = others.pop("pixel_values", None), others.pop("image_grid_thw", None)
    return Prompt(inputs["input_ids"][0], pixels, grid, others)


def _whole(row: dict[str, Any], pictures: list[Any], processor: Any) -> Prompt:
    """A prompt of a family that is not known here: its processor makes all of it again, so that nothing is missing."""
    prompt = prompt_from(processor(text=[row["prompt_text"]], images=pictures or None, return_tensors="pt"))
    if prompt.ids.tolist() != list(row["prompt_ids"]):
        raise DataError(
            f"prompt {row['prompt_id']}",
            f"{len(prompt.ids)} tokens that are not those of its data",
            f"its {len(row['prompt_ids'])} tokens",
            "Run prepare-data again with this policy.",
        )
    return prompt


def pad_left(rows: Sequence[torch.Tensor], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of unequal length as one block [B, P] and its mask, padding first."""
    longest = max(len(row) for row in rows)
    block = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        block[index, longest - len(row) :] = row
        mask[index, longest - len(row) :] = 1
    return block, mask


def _blank(picture: Any) -> Any:
    from PIL import Image

    return Image.new("RGB", picture.size, (127, 127, 127))
