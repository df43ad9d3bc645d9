"""Videos of any dataset as frames: files, which PyAV decodes, and lists of images.

A file is never opened by name: FFmpeg would read addresses and lists of other files. Only containers of a single file
are decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dapo_stages.data.images import BadImage, Limits, Prepared, prepared
from dapo_stages.data.raw_rows import RawRow, RawSource
from dapo_stages.errors import DataError

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,gif"  # FFmpeg's names
_MOST = 200_000  # frames that are decoded of a file


class VideoLimits(NamedTuple):
    """data.video_fps, data.max_video_frames, data.max_frame_size, data.max_image_pixels."""

    fps: float
    max_frames: int
    max_size: int
    max_pixels: int

    @property
    def of_frames(self) -> Limits:
        """Those of each frame."""
        return Limits(self.max_size, self.max_pixels)


class Video(NamedTuple):
    """A video as prompts contain it: frames of one size, and the second of each; the first is 0."""

    frames: list[Prepared]
    seconds: list[float]


def video_of(source: RawSource, row: RawRow, cell: Any, limits: VideoLimits) -> Video:
    """The video of a cell: a list of frames, or a file. Raises BadImage, and DataError if PyAV is missing for it."""
    if isinstance(cell, list | tuple):
        check_frames(cell, row.where, limits)  # before any is read
        return from_frames([source.image(row, frame) for frame in cell], row.where, limits)
    try:
        file = source.image(row, cell)
    except BadImage as bad:
        raise BadImage(bad.where, bad.problem.replace("an image", "a video").replace("image", "video", 1)) from None
    if not isinstance(file, bytes | Path):
        raise BadImage(row.where, "expected a video, got an image")
    return from_file(file, f"{row.where}: {file.name}" if isinstance(file, Path) else row.where, limits)


def check_frames(images: Sequence[Any], where: object, limits: VideoLimits) -> None:
    """Raise BadImage for a list of no frames, or too many."""
    if not images:
        raise BadImage(where, "the video has no frames")
    if len(images) > limits.max_frames:
        raise BadImage(
            where, f"the video has {len(images)} frames, more than data.max_video_frames={limits.max_frames}"
        )


def from_frames(images: Sequence[Any], where: object, limits: VideoLimits) -> Video:
    """A video of a list of frames (bytes, paths or Pillow's), `fps` of which are a second.

    Raises BadImage for a frame that cannot be used, and for frames of different sizes, none or too many.
    """
    check_frames(images, where, limits)
    frames = [prepared(image, f"{where}: frame {number}", limits.of_frames) for number, image in enumerate(images)]
    if len(sizes := {frame.size for frame in frames}) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise BadImage(where, f"the frames of the video have different sizes ({shown})")
    return Video(frames, [number / limits.fps for number in range(len(frames))])


def from_file(file: bytes | Path, where: object, limits: VideoLimits) -> Video:
    """`fps` frames of each second of a video file; of one that has too many, `max_frames` at equal distances.

    Raises BadImage for a file that cannot be decoded, and DataError if PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        problem, advice = "PyAV decodes video files, but is not installed", "Install dapo-stages[video]."
        raise DataError(where, problem, advice) from None
    try:
        shown = [second for second, _ in _decoded(av, file, where, limits)]
        if not shown:
            raise BadImage(where, "the video has no frames")
        seconds, wanted = chosen(shown, limits)
        made: dict[int, Prepared] = {}
        for number, (_, frame) in enumerate(_decoded(av, file, where, limits)):
            if number in wanted:
                made[number] = prepared(frame.to_image(), where, limits.of_frames)
    except (OSError, ValueError) as error:  # of which PyAV's are
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise BadImage(where, f"the video is damaged, or not a video ({reason})") from None
    return Video([made[number] for number in wanted], seconds)


def chosen(shown: Sequence[float], limits: VideoLimits) -> tuple[list[float], list[int]]:
    """Seconds from the first frame on at which a file is looked at, and the nearest frame to each, by number; `shown`
    are the seconds at which its frames are shown."""
    import numpy as np

    span = shown[-1] - shown[0]
    wanted = int(span * limits.fps + 1e-6) + 1
    count = min(wanted, limits.max_frames, len(shown))
    seconds = [k / limits.fps if count == wanted else k * span / max(1, count - 1) for k in range(count)]
    distances = np.abs(np.asarray(shown)[None] - shown[0] - np.asarray(seconds)[:, None])
    return seconds, [int(place) for place in distances.argmin(1)]


def _decoded(av: Any, file: bytes | Path, where: object, limits: VideoLimits) -> Iterator[tuple[float, Any]]:
    """Each frame of a file, and the second at which it is shown."""
    with (
        io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened,
        av.open(opened, options={"format_whitelist": CONTAINERS}) as container,
    ):
        for number, frame in enumerate(container.decode(video=0) if container.streams.video else ()):
            if number == _MOST:
                raise BadImage(where, f"the video has more than {_MOST:,} frames")
            if frame.width * frame.height > limits.max_pixels:
                problem = f"{frame.width}x{frame.height} pixels, more than data.max_image_pixels={limits.max_pixels}"
                raise BadImage(where, f"the frames of the video have {problem}")
            yield float(frame.time) if frame.time is not None else number / limits.fps, frame
