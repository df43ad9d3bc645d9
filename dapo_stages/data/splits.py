"""Which rows of a dataset are for training, and which are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from dapo_stages.config import DataConfig
from dapo_stages.data.columns import images_of
from dapo_stages.data.raw_rows import PARTS, Part, RawRow
from dapo_stages.data.video_cells import videos_of

_WHOLE: dict[float, Part] = {0.0: "train", 1.0: "held_out"}  # held-out fractions for which all rows are of one part
Rows = Callable[[], Iterator[tuple[dict[str, Any], Path | None]]]  # every row, and the folder of its file


def by_part(data: DataConfig, everything: Rows) -> Callable[[Part], Iterator[RawRow]]:
    """The rows of each part, in order."""

    def rows(part: Part) -> Iterator[RawRow]:
        if data.held_out_fraction in _WHOLE and part != _WHOLE[data.held_out_fraction]:
            return
        images: dict[str, int] = {}  # image -> number, in the order in which they first appear
        for index, (values, folder) in enumerate(islice(everything(), data.max_rows)):
            if data.split_by == "row":
                belongs = part_of(index, data)
            else:
                image = _image_key(values, data)
                number = images.setdefault(image, len(images)) if len(images) < 2 else images.get(image, 2)
                belongs = part_of(number, data, image)
            if belongs == part:
                yield RawRow(index, values, f"{data.source} row {index}", folder)

    return rows


def part_of(index: int, data: DataConfig, key: str | None = None) -> Part:
    """Which part a row belongs to, by a seeded hash of its number (or key), independent of the other rows.

    Row 0 is always for training and row 1 always held out, so that two rows are enough for both parts.
    """
    if data.held_out_fraction in _WHOLE:
        return _WHOLE[data.held_out_fraction]
    if index < 2:
        return PARTS[index]
    digest = hashlib.sha256(f"{data.split_seed}:{index if key is None else key}".encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < data.held_out_fraction * 2**64 else "train"


def totals(data: DataConfig, number: int | None) -> dict[Part, int]:
    """Rows of each part, of `number` in all; empty if that cannot be known in advance."""
    if number is None or data.split_by == "image":
        return {}
    number = min(number, data.max_rows or number)
    held_out = sum(part_of(index, data) == "held_out" for index in range(number))
    return {"train": number - held_out, "held_out": held_out}


def _image_key(values: dict[str, Any], data: DataConfig) -> str:
    """What identifies the first image of a row, or else its first video: its bytes, or its path. Rows without any count
    as one image."""
    first = next(iter(images_of(values, data.columns) or videos_of(values, data.columns)), None)
    if isinstance(first, dict):
        first = first.get("path") if first.get("bytes") is None else first["bytes"]
    content = first if isinstance(first, bytes) else str(first).encode(errors="surrogateescape")
    return hashlib.sha256(content).hexdigest()
