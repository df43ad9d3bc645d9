"""Images prepared by workers are those that the command itself would prepare, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from dapo_stages.data.image_workers import ImageWorkers, Job, image_workers
from dapo_stages.data.images import BadImage, Limits, Prepared, prepared

Png = Callable[..., bytes]
LIMITS = Limits(max_size=32, max_pixels=10_000)


@pytest.fixture()
def jobs(png: Png, tmp_path: Path) -> list[Job]:
    """Good, scaled, damaged, missing, too large, and one that the datasets library has decoded."""
    (tmp_path / "b.png").write_bytes(png("blue", size=(64, 40)))
    return [
        Job(png("red"), "row 0"),
        Job(tmp_path / "b.png", "row 1"),
        Job(png("red")[:70], "row 2"),
        Job(tmp_path / "none.png", "row 3"),
        Job(png("green", size=(200, 90)), "row 4"),
    ]


@pytest.fixture()
def workers() -> Iterator[ImageWorkers]:
    pool = ImageWorkers(2, few=0)
    yield pool
    pool.close()


def described(found: list[Prepared | BadImage]) -> list[object]:
    return [str(one) if isinstance(one, BadImage) else one for one in found]


def test_workers_prepare_what_the_command_would(jobs: list[Job], workers: ImageWorkers) -> None:
    here = described(ImageWorkers(0).prepare(jobs, LIMITS))
    assert [isinstance(one, Prepared) for one in here] == [True, True, False, False, False]
    assert here[1] == prepared(jobs[1].image, "", LIMITS) and here[1].size == (32, 20)
    assert here[2:] == [
        "row 2: the image is damaged (image file is truncated). Fix the row, or set "
        "data.on_bad_image=skip to leave such rows out.",
        "row 3: the image file does not exist. Fix the row, or set data.on_bad_image=skip to leave such rows out.",
        "row 4: the image has 200x90 pixels, more than data.max_image_pixels=10000. Fix the row, or set "
        "data.on_bad_image=skip to leave such rows out.",
    ]
    for _ in range(3):
        assert described(workers.prepare(jobs, LIMITS)) == here
    assert len(workers._workers) == 2


def test_decoded_images_stay_in_the_command(png: Png, workers: ImageWorkers, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("red"))
    job = Job(Image.open(tmp_path / "a.png"), "row 0")
    assert workers.prepare([job], LIMITS) == [prepared(png("red"), "", LIMITS)] and workers._workers == []


def test_a_killed_worker_is_done_without(jobs: list[Job], workers: ImageWorkers) -> None:
    want = described(workers.prepare(jobs, LIMITS))
    for worker in workers._workers:
        os.kill(worker._process.pid, signal.SIGKILL)
    for _ in range(4):
        assert described(workers.prepare(jobs, LIMITS)) == want


def test_few_images_need_no_workers_and_none_is_left(jobs: list[Job]) -> None:
    with image_workers() as pool:
        pool.prepare(jobs, LIMITS)
        assert pool._workers == []
    pool = ImageWorkers(1, few=7)
    pool.prepare(jobs, LIMITS)
    assert pool._workers == []
    pool.prepare(jobs, LIMITS)
    (worker,) = pool._workers
    assert worker._process.poll() is None
    pool.close()
    assert worker._process.poll() == 0
