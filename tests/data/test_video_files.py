"""Videos of datasets: which frames of a file are taken, what a cell may be, and what is refused."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dapo_stages.config import Config
from dapo_stages.data.images import BadImage
from dapo_stages.data.prompts import Dropped, PromptMaker
from dapo_stages.data.raw_rows import RawRow, RawSource
from dapo_stages.data.video_cells import videos_of
from dapo_stages.data.videos import VideoLimits, chosen, from_file, from_frames
from dapo_stages.errors import DataError

LIMITS = VideoLimits(fps=2.0, max_frames=16, max_size=64, max_pixels=100_000)
Make = Callable[..., Any]


def moving(frames: int, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    """A white square on black, two pixels further to the right in each frame."""
    found = []
    for number in range(frames):
        frame = Image.new("RGB", size)
        frame.paste("white", (2 * number, 20, 2 * number + 16, 36))
        found.append(frame)
    return found


def encoded(frames: Sequence[Image.Image], rate: int = 10, kind: str = "mp4") -> bytes:
    """A video file of these frames, `rate` of them a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *frames[0].size, "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def place(png: bytes) -> float:
    """Where the square is, in pixels of the original: the mean column of what is bright."""
    bright = np.asarray(Image.open(io.BytesIO(png)).convert("L")) > 128
    return float(np.nonzero(bright)[1].mean() * 96 / bright.shape[1])


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
def test_two_frames_of_each_second_are_taken(kind: str, tmp_path: Path) -> None:
    """Of 21 frames, 10 a second, numbers 0, 5, 10, 15 and 20, whose square is at 2 · number + 8."""
    file = tmp_path / "video.any"
    file.write_bytes(encoded(moving(21), kind=kind))
    found = from_file(file, "here", LIMITS)
    assert found.seconds == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [frame.size for frame in found.frames] == [(64, 43)] * 5
    assert [place(frame.png) for frame in found.frames] == pytest.approx([8, 18, 28, 38, 48], abs=1.5)
    assert from_file(file.read_bytes(), "here", LIMITS) == found


def test_a_longer_file_gives_frames_at_equal_distances() -> None:
    seconds, numbers = chosen([number / 10 for number in range(101)], LIMITS._replace(max_frames=6))
    assert seconds == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0] and numbers == [0, 20, 40, 60, 80, 100]


def test_a_file_with_fewer_frames_gives_all_of_them() -> None:
    assert chosen([3.0, 4.0, 5.0], LIMITS) == ([0.0, 1.0, 2.0], [0, 1, 2])
    assert chosen([3.0], LIMITS) == ([0.0], [0])


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (b"", "the video is damaged, or not a video"),
        (b"GIF89a but no more", "the video is damaged, or not a video"),
        (encoded(moving(9))[:500], "the video is damaged, or not a video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "the video is damaged, or not a video"),
        (encoded(moving(3, (640, 480))), "640x480 pixels, more than data.max_image_pixels=100000"),
    ],
)
def test_files_that_cannot_be_used(file: bytes, problem: str) -> None:
    with pytest.raises(BadImage) as refusal:
        from_file(file, "row 3", LIMITS)
    assert refusal.value.where == "row 3" and problem in refusal.value.problem


def test_without_a_decoder_lists_of_frames_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert from_frames(moving(3), "here", LIMITS).seconds == [0.0, 0.5, 1.0]
    with pytest.raises(DataError) as refusal:
        from_file(b"", "row 3", LIMITS)
    assert str(refusal.value) == ("row 3: PyAV decodes video files, but is not installed. Install dapo-stages[video].")


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        ([], "the video has no frames"),
        (moving(17), "the video has 17 frames, more than data.max_video_frames=16"),
        ([*moving(2), *moving(1, (64, 64))], "the frames of the video have different sizes (64x43, 64x64)"),
    ],
)
def test_lists_of_frames_that_cannot_be_used(frames: list[Image.Image], problem: str) -> None:
    with pytest.raises(BadImage) as refusal:
        from_frames(frames, "row 3", LIMITS)
    assert refusal.value.problem == problem


def test_a_cell_is_a_video_or_a_list_of_videos(configure: Callable[..., Config], png: Callable[..., bytes]) -> None:
    names, frames, file = configure("x").data.columns, [png(), png("blue")], encoded(moving(3))
    cases: list[tuple[Any, list[Any]]] = [
        (None, []),
        ("", []),
        ([], []),
        ("a.mp4", ["a.mp4"]),
        (["a.mp4", "b.mp4"], ["a.mp4", "b.mp4"]),
        (["a/0.png", "a/1.jpg"], [["a/0.png", "a/1.jpg"]]),
        ([["a/0.png"], "b.mp4"], [["a/0.png"], "b.mp4"]),
        (frames, [frames]),
        ([frames, frames], [frames, frames]),
        ([file], [file]),
        ({"bytes": file, "path": None}, [{"bytes": file, "path": None}]),
        ('["a.png", "b.png"]', [["a.png", "b.png"]]),
    ]
    for value, want in cases:
        assert videos_of({"videos": value}, names) == want
    assert videos_of({"clips": "a.mp4"}, configure("x", columns={"videos": "clips"}).data.columns) == ["a.mp4"]


@pytest.fixture()
def make(processor: Any, configure: Callable[..., Config]) -> Make:
    """The prompt of a row with these cells."""

    def prompt(values: dict[str, Any], folder: Path | None = None, **data: Any) -> Any:
        source = RawSource("cats", list(values), lambda _: iter(()), folder=folder)
        maker = PromptMaker(source, processor, configure("cats", **data).data)
        return maker.make(RawRow(3, values, "cats row 3", folder), "train-000003")

    return prompt


def test_images_and_frames_of_a_prompt_are_in_its_order(make: Make, png: Callable[..., bytes]) -> None:
    """A video before an image, although columns of images are read first; the file's name stays in the row."""
    values = {
        "image": png("red"),
        "videos": [[png("blue"), png("green"), png("blue")]],
        "problem": "Is <video> like <image>?\nA. yes\nB. no",
        "solution": "A",
        "clip": "a.mp4",
    }
    row = make(values)
    colors = [Image.open(io.BytesIO(image["bytes"])).getpixel((0, 0)) for image in row["images"]]
    assert colors == [(0, 0, 255), (0, 128, 0), (0, 0, 255), (255, 0, 0)]
    assert row["frame_seconds"] == [0.0, 0.5, 1.0, -1.0] and row["image_grid_thw"] == [[2, 4, 4], [1, 4, 4]]
    assert row["prompt_text"].index("<|video_pad|>") < row["prompt_text"].index("<|image_pad|>")
    assert row["row"] == '{"problem": "Is <video> like <image>?\\nA. yes\\nB. no", "solution": "A", "clip": "a.mp4"}'
    assert "frame_seconds" not in make(values | {"videos": None, "problem": "<image> A or B?"})


def test_videos_without_a_placeholder_come_first(make: Make, png: Callable[..., bytes]) -> None:
    row = make({"videos": [png(), png()], "problem": "A or B?", "solution": "A"})
    assert "user\n<|vision_start|><|video_pad|><|vision_end|>A or B?" in row["prompt_text"]


def test_a_file_is_looked_for_in_the_folder(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(encoded(moving(21)))
    row = make({"videos": "a.mp4", "problem": "A or B?", "solution": "A"}, tmp_path, max_video_frames=4)
    assert row["frame_seconds"] == pytest.approx([0, 2 / 3, 4 / 3, 2]) and row["image_grid_thw"] == [[2, 4, 6]]
    with pytest.raises(BadImage) as refusal:
        make({"videos": "b.mp4", "problem": "A or B?", "solution": "A"}, tmp_path)
    assert str(refusal.value).startswith("cats row 3: b.mp4: the video file does not exist.")


def test_more_placeholders_than_videos(make: Make, png: Callable[..., bytes]) -> None:
    dropped = make({"videos": [png()], "problem": "<video> or <video>?", "solution": "A"}, solution_format="letter")
    assert isinstance(dropped, Dropped)
    assert dropped.why == "cats row 3: 2 <video> placeholders for 1 videos"
