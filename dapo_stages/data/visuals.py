"""What the images of a prompt row are: single ones, or frames of a video.

`frame_seconds` of a row has a number for each image: the second of its video that the frame shows, 0 for the first,
which starts a new video; SINGLE for an image that is no frame. None: no image is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SINGLE = -1.0
VIDEOS = "videos"  # number of prompts with videos, in the manifest of prepare-data


class Visual(NamedTuple):
    """One placeholder of a prompt: an image or a video."""

    images: range  # which images of the row it is made of
    seconds: tuple[float, ...] | None  # of its frames; None for a single image

    @property
    def interval(self) -> float:
        """Seconds between two frames of a video; 1 if it has a single one."""
        assert self.seconds is not None
        last = len(self.seconds) - 1
        return round((self.seconds[-1] - self.seconds[0]) / last, 6) if last else 1.0


def visuals_of(images: int, frame_seconds: Sequence[float] | None) -> list[Visual]:
    """The visuals of a row with this many images, in the order of its prompt. Raises ValueError for other lengths."""
    if frame_seconds is None:
        return [Visual(range(place, place + 1), None) for place in range(images)]
    if len(frame_seconds) != images:
        raise ValueError(f"{len(frame_seconds)} frame_seconds for {images} images")
    starts = [place for place, second in enumerate(frame_seconds) if second <= 0]
    found = []
    for start, end in zip(starts, [*starts[1:], images], strict=True):
        seconds = None if frame_seconds[start] < 0 else tuple(frame_seconds[start:end])
        found.append(Visual(range(start, end), seconds))
    return found


def units_of(visuals: Sequence[Visual], grid_thw: Sequence[Sequence[int]]) -> list[int]:
    """The image that stands for each unit of attention: an image itself, or the first frame of each temporal step of a
    video. `grid_thw` has the steps, rows and columns of each visual."""
    found = []
    for visual, (steps, _, _) in zip(visuals, grid_thw, strict=True):
        found += list(visual.images[:: -(-len(visual.images) // steps)])
    return found
