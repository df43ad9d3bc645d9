"""From rows of a prompt table to what the model takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dapo_stages.data.control import MARK, plain_twin
from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import Row
from dapo_stages.models.families import FAMILIES
from dapo_stages.models.shared_prefix.packing import Prompt

_OF_FAMILIES = frozenset(family.processor for family in FAMILIES.values())


def prompt_of(row: Row, processor: Any) -> Prompt:
    """The model's input for one prompt row.

    Raises DataError if the pictures do not come out at the size that the placeholders were made for: then the
    policy's image processor is not the one the data was prepared with.
    """
    from dapo_stages.data.images import decode

    ids = torch.tensor(row["prompt_ids"], dtype=torch.long)
    pictures = [decode(image) for image in row["images"] or ()]
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


def _whole(row: Row, pictures: list[Any], processor: Any) -> Prompt:
    """A prompt of a family that is not known here: its processor makes all of it again, so that nothing is missing."""
    text = row["prompt_text"]
    processor = plain_twin(processor) if MARK in text else processor
    prompt = prompt_from(processor(text=[text], images=pictures or None, return_tensors="pt"))
    if prompt.ids.tolist() != list(row["prompt_ids"]):
        raise DataError(
            f"prompt {row['prompt_id']}",
            f"{len(prompt.ids)} tokens that are not those of its data",
            f"its {len(row['prompt_ids'])} tokens",
            "Run prepare-data again with this policy.",
        )
    return prompt


def blanked(row: Row) -> Row:
    """A prompt row with its pictures replaced by grey ones of the same size."""
    from PIL import Image

    from dapo_stages.data.images import decode, encode

    sizes = [decode(image).size for image in row["images"] or ()]
    return row | {
        "images": [{"bytes": encode(Image.new("RGB", size, (127, 127, 127))), "path": None} for size in sizes]
    }
