"""What a cell of the column of videos contains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dapo_stages.config import ColumnsConfig
from dapo_stages.data.cells import cell, structured
from dapo_stages.data.encoded_images import SUFFIXES, is_image


def videos_of(values: Mapping[str, Any], names: ColumnsConfig) -> list[Any]:
    """The videos of a row: each a file, in whatever form, or a list of frames. One alone needs no list around it."""
    value = structured(cell(values, names.videos))
    if value is None or value == "":
        return []
    if not isinstance(value, list | tuple):
        return [value]
    return [list(value)] if value and all(map(_is_frame, value)) else list(value)


def _is_frame(value: Any) -> bool:
    """Whether an element of a list is an image, by its class, its first bytes or the end of its name."""
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("url") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes | bytearray | memoryview):
        return is_image(bytes(value[:16]))
    if isinstance(value, str):
        return value[:11].lower() == "data:image/" or value.lower().endswith(SUFFIXES)
    return hasattr(value, "getpixel")
