"""Pictures of a report, as small data URIs: thumbnails, and where a completion looked."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

THUMBNAIL = 320  # pixels a side at most
_MAX_PIXELS = 50_000_000
_HEAT = (230, 97, 1)  # orange, the alpha channel says how much


def size_of(data: bytes | None) -> tuple[int, int] | None:
    """Width and height from the header of a picture; None if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data or b"")) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def thumbnail(data: bytes | None) -> str | None:
    """A picture re-encoded at most THUMBNAIL pixels a side, as a data URI; None if it cannot be read."""
    small = decoded(data)
    if small is None:
        return None
    side = max(small.size)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return _data_uri(small, "PNG" if side <= THUMBNAIL // 2 else "JPEG")


def decoded(data: bytes | None) -> Any:
    """A picture as RGB; None if it cannot be read, or is too large to be worth it."""
    from PIL import Image

    size = size_of(data)
    if size is None or size[0] * size[1] > _MAX_PIXELS:
        return None
    try:
        with Image.open(io.BytesIO(data or b"")) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None


def heat_maps(patches_V: Sequence[float] | None, grid_thw: Sequence[Sequence[int]]) -> list[str] | None:
    """One transparent overlay per picture from the attention to each image token [V], the brightest cell at 1.

    `grid_thw` counts patches; an image token covers 2 × 2 of them. None if the numbers do not fit together.
    """
    from PIL import Image

    shapes = [(int(t) * int(h) // 2, int(w) // 2) for t, h, w in grid_thw]
    if not patches_V or len(patches_V) != sum(rows * columns for rows, columns in shapes):
        return None
    low, high = min(patches_V), max(patches_V)
    maps, start = [], 0
    for rows, columns in shapes:
        image = Image.new("RGBA", (columns, rows))
        part = patches_V[start : start + rows * columns]
        image.putdata([(*_HEAT, round(200 * (value - low) / ((high - low) or 1.0))) for value in part])
        maps.append(_data_uri(image, "PNG"))
        start += rows * columns
    return maps


def _data_uri(image: Any, kind: str) -> str:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 80} if kind == "JPEG" else {"optimize": True}
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
