"""Token ids of prompts with videos, and what the model is shown of them.

A temporal step is a pair of frames (`temporal_patch_size` of Qwen's processors), the last frame repeated where one is
missing. Frames are processed as images are: so videos need no torchvision, as the video half of Qwen's processors does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from dapo_stages.data.visuals import Visual
from dapo_stages.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

TIMED = "Qwen3VLProcessor"  # writes the second of each temporal step before it, as text
PROCESSORS = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", TIMED)

Size = tuple[int, int]  # width, height
Encoded = tuple[list[int], list[list[int]]]  # ids, and the patch grid (time, height, width) of each visual


class VideoEncoder:
    """Encodes texts with images and videos for one processor. Raises ModelError for one that takes no videos."""

    def __init__(self, processor: Any) -> None:
        kind = type(processor).__name__
        if kind not in PROCESSORS:
            raise ModelError(
                f"{kind}: cannot make a prompt with a video, only {', '.join(PROCESSORS)} can. Set model.name to a "
                "Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Qwen3.5 checkpoint, or leave the videos out."
            )
        self._processor, self._timed = processor, kind == TIMED
        self._grids: dict[Size, tuple[int, int]] = {}
        names = sorted({processor.image_token, processor.video_token})
        self._placeholder = re.compile("|".join(map(re.escape, names)))

    def order(self, text: str) -> list[bool]:
        """For each placeholder of a text, whether it is of a video."""
        return [match[0] == self._processor.video_token for match in self._placeholder.finditer(text)]

    def encode(self, text: str, visuals: Sequence[tuple[Visual, Size]], tokenizer: Any) -> Encoded:
        """Ids with expanded placeholders, and grids; visuals are in the order of the text, with their sizes."""
        images = self._processor.image_processor
        grids, merged = [], images.merge_size**2
        for visual, size in visuals:
            steps = 1 if visual.seconds is None else -(-len(visual.images) // images.temporal_patch_size)
            grids.append([steps, *self._grid(size)])
        rest = iter(zip(visuals, grids, strict=True))

        def expanded(match: re.Match[str]) -> str:
            (visual, _), grid = next(rest)
            if visual.seconds is None or not self._timed:
                return match[0] * int(prod(grid) // merged)
            return "".join(self._steps(visual.seconds, prod(grid[1:]) // merged))

        if self._timed:
            around = re.escape(self._processor.vision_start_token), re.escape(self._processor.vision_end_token)
            video = re.escape(self._processor.video_token)
            text = re.sub(f"{around[0]}({video}){around[1]}", r"\1", text)
        ids: list[int] = tokenizer(self._placeholder.sub(expanded, text))["input_ids"]
        return ids, grids

    def _steps(self, seconds: Sequence[float], tokens: int) -> Iterator[str]:
        """The text of a video's temporal steps, with the mean second of its frames."""
        processor, size = self._processor, self._processor.image_processor.temporal_patch_size
        for start in range(0, len(seconds), size):
            step = [*seconds[start : start + size], *[seconds[-1]] * size][:size]
            yield f"<{(step[0] + step[-1]) / 2:.1f} seconds>"
            yield processor.vision_start_token + processor.video_token * tokens + processor.vision_end_token

    def _grid(self, size: Size) -> tuple[int, int]:
        """Rows and columns of the patches of an image."""
        if size not in self._grids:
            from PIL import Image

            made = self._processor.image_processor(images=[Image.new("RGB", size)], return_tensors="np")
            _, rows, columns = made["image_grid_thw"][0]
            self._grids[size] = int(rows), int(columns)
        return self._grids[size]


def shown(processor: Any, images: Sequence[Image.Image], visuals: Sequence[Visual]) -> dict[str, np.ndarray]:
    """The model's inputs for the visuals of a prompt, by its names: `pixel_values` and `image_grid_thw` of images;
    `pixel_values_videos`, `video_grid_thw` and `second_per_grid_ts` of videos."""
    import numpy as np

    half = processor.image_processor
    made = half(images=list(images), return_tensors="np")
    sizes = [prod(grid) for grid in made["image_grid_thw"].tolist()]
    patches = np.split(np.asarray(made["pixel_values"]), np.cumsum(sizes)[:-1])
    pixels: dict[bool, list[np.ndarray]] = {False: [], True: []}
    grids: dict[bool, list[list[int]]] = {False: [], True: []}
    intervals = []
    for visual in visuals:
        own, is_video = [patches[place] for place in visual.images], visual.seconds is not None
        grid = made["image_grid_thw"][visual.images[0]].tolist()
        if is_video:
            own = _paired(own, half.temporal_patch_size)
            grid[0] = len(own)
            intervals.append(visual.interval * half.temporal_patch_size)
        pixels[is_video] += own
        grids[is_video].append(grid)
    found: dict[str, np.ndarray] = {}
    for is_video, names in (
        (False, ("pixel_values", "image_grid_thw")),
        (True, ("pixel_values_videos", "video_grid_thw")),
    ):
        if grids[is_video]:
            found |= dict(zip(names, (np.concatenate(pixels[is_video]), np.array(grids[is_video])), strict=True))
    if intervals:
        found["second_per_grid_ts"] = np.array(intervals, dtype=np.float32)
    return found


def _paired(frames: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Patches [R, 3 · size · S] of frames, repeated in time as those of images are -> those of temporal steps."""
    import numpy as np

    views = [frame.reshape(len(frame), 3, size, -1)[:, :, 0] for frame in frames]
    views += [views[-1]] * (-len(views) % size)
    steps = (views[start : start + size] for start in range(0, len(views), size))
    return [np.stack(step, 2).reshape(len(step[0]), -1) for step in steps]
