"""From rows of a prompt table to what the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dapo_stages.errors import DataError
from dapo_stages.models.packing import Prompt


def prompt_of(row: dict[str, Any], processor: Any, *, blank: bool = False) -> Prompt:
    """The model's input for one prompt row; `blank` replaces its pictures by grey ones of the same size.

    Raises DataError if the pictures do not come out at the size that the placeholders were made for: then the
    policy's image processor is not the one the data was prepared with.
    """
    from dapo_stages.data.images import decode

    ids = torch.tensor(row["prompt_ids"], dtype=torch.long)
    if not row["images"]:
        return Prompt(ids, None, None)
    pictures = [decode(image) for image in row["images"]]
    if blank:
        pictures = [_blank(picture) for picture in pictures]
    inputs = processor.image_processor(images=pictures, return_tensors="pt")
    grid = inputs["image_grid_thw"]
    if grid.tolist() != row["image_grid_thw"]:
        raise DataError(
            f"prompt {row['prompt_id']}",
            f"pictures of grid {grid.tolist()}",
            f"the grid {row['image_grid_thw']} its prompt was made for",
            "Run prepare-data again with this policy.",
        )
    return Prompt(ids, inputs["pixel_values"], grid)


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
