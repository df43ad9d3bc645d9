"""From rows of a prompt table to the model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dapo_stages.data.control import MARK, plain_twin
from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import Row
from dapo_stages.models.families import FAMILIES
from dapo_stages.models.shared_prefix.packing import Prompt

_WITH_GRIDS = frozenset(family.processor for family in FAMILIES.values() if family.grids)


def prompt_of(row: Row, processor: Any) -> Prompt:
    """The model's input for one prompt row.

    Raises DataError if the images do not come out at the size that their placeholders were made for: then the policy's
    image processor is not the one that prepared the data.
    """
    from dapo_stages.data.images import decode

    ids = torch.tensor(row["prompt_ids"], dtype=torch.long)
    images = [decode(image) for image in row["images"] or ()]
    if row.get("frame_seconds"):
        return _with_videos(row, ids, images, processor)
    if type(processor).__name__ not in _WITH_GRIDS:
        return _whole(row, images, processor)
    others = {"mm_token_type_ids": (ids == processor.image_token_id).int()[None]}
    if not images:
        return Prompt(ids, None, None, others)
    inputs = processor.image_processor(images=images, return_tensors="pt")
    grid = inputs["image_grid_thw"]
    if grid.tolist() != row["image_grid_thw"]:
        raise DataError(
            f"prompt {row['prompt_id']}",
            f"the images have the grid {grid.tolist()}, but the prompt was made for {row['image_grid_thw']}",
            "Run prepare-data again with this policy.",
        )
    return Prompt(ids, inputs["pixel_values"], grid, others)


def _with_videos(row: Row, ids: torch.Tensor, images: list[Any], processor: Any) -> Prompt:
    from dapo_stages.data.video_encoding import VideoEncoder, shown
    from dapo_stages.data.visuals import visuals_of

    VideoEncoder(processor)
    visuals = visuals_of(len(images), row["frame_seconds"])
    prompt = video_prompt(ids, shown(processor, images, visuals), processor)
    grids = {True: prompt.video_grid_thw, False: prompt.image_grid_thw}
    rest = {is_video: iter([] if grid is None else grid.tolist()) for is_video, grid in grids.items()}
    found = [next(rest[visual.seconds is not None]) for visual in visuals]
    if found != row["image_grid_thw"]:
        raise DataError(
            f"prompt {row['prompt_id']}",
            f"the images and frames have the grid {found}, but the prompt was made for {row['image_grid_thw']}",
            "Run prepare-data again with this policy.",
        )
    return prompt


def video_prompt(ids: torch.Tensor, shown: Mapping[str, Any], processor: Any) -> Prompt:
    """A prompt of ids [P] and what video_encoding.shown made of its images and videos."""
    tensors = {name: torch.as_tensor(value) for name, value in shown.items()}
    kinds = (ids == processor.image_token_id).int() + 2 * (ids == processor.video_token_id).int()
    pixels, grid = (tensors.pop(name, None) for name in ("pixel_values", "image_grid_thw"))
    return Prompt(ids, pixels, grid, {"mm_token_type_ids": kinds[None]}, **tensors)


def prompt_from(inputs: Mapping[str, torch.Tensor]) -> Prompt:
    """What a processor made of one text and its images, as a prompt."""
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    pixels, grid = others.pop("pixel_values", None), others.pop("image_grid_thw", None)
    return Prompt(inputs["input_ids"][0], pixels, grid, others)


def _whole(row: Row, images: list[Any], processor: Any) -> Prompt:
    """A prompt for a family without grids: its processor makes all inputs again, so that none is missing."""
    text = row["prompt_text"]
    processor = plain_twin(processor) if MARK in text else processor
    prompt = prompt_from(processor(text=[text], images=images or None, return_tensors="pt"))
    if prompt.ids.tolist() != list(row["prompt_ids"]):
        raise DataError(
            f"prompt {row['prompt_id']}",
            f"the processor's {len(prompt.ids)} tokens differ from the {len(row['prompt_ids'])} in the data",
            "Run prepare-data again with this policy.",
        )
    return prompt
