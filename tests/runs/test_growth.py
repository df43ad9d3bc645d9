"""What a stage reads does not grow with the iterations that lie beside its own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.pipeline import Run

from dapo_stages.handoff.manifests import read_manifest

OUTPUTS = ("rollout", "attention", "weights", "train", "eval")
FEW, MANY = 2, 40

_watched: list[tuple[str, str]] | None = None


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and event in ("open", "os.listdir", "os.scandir"):
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike):
            _watched.append((event, os.fsdecode(path)))


sys.addaudithook(_notice)  # it cannot be removed


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Files that are opened and folders that are listed."""
    global _watched
    found: list[tuple[str, str]] = []
    _watched = found
    try:
        yield found
    finally:
        _watched = None


def beside(run: Run, place: Path, siblings: int) -> Run:
    """The run again, and its second iteration under so many other numbers."""
    copy = replace(run, folder=place)
    shutil.copytree(run.folder, place, copy_function=os.link)
    for number in range(siblings):
        shutil.copytree(run.at(2), copy.at(100 + number), copy_function=os.link)
    return copy


@pytest.mark.long
def test_stages_look_at_no_iteration_but_their_own_and_the_one_before(small_run: Run, tmp_path: Path) -> None:
    hashes, listed = [], []
    for siblings in (FEW, MANY):
        run = beside(small_run, tmp_path / str(siblings), siblings)
        with watched() as found:
            run.iteration(3)
        others = [path for _, path in found if any(f"/iter-01{number:02d}/" in path for number in range(siblings))]
        assert others == []
        listed.append(sum(Path(path) == run.folder for event, path in found if event != "open"))
        assert any(path.startswith(str(run.at(3))) for _, path in found)  # it does see what is opened
        hashes.append([read_manifest(run.at(3) / part).content_hash for part in OUTPUTS])
    assert hashes[0] == hashes[1]
    assert listed[0] == listed[1]
