"""Images of a report, as small data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

from dapo_stages.data.images import open_header

THUMBNAIL = 480  # pixels a side at most
_EXACT = 160  # pixels a side of an image that is kept exactly
_MAX_PIXELS = 50_000_000


def size_of(data: bytes | None) -> tuple[int, int] | None:
    """Width and height from the header of an image; None if it cannot be read."""
    try:
        with open_header(data or b"") as image:
            return image.size
    except Exception:  # Pillow's decoders raise whatever a damaged file leads them to
        return None


def thumbnail(data: bytes | None) -> str | None:
    """An image of at most THUMBNAIL pixels a side as a data URI; None if it cannot be read."""
    small = decoded(data)
    if small is None:
        return None
    side = max(small.size)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return _data_uri(small, "PNG" if side <= _EXACT else "JPEG")


def decoded(data: bytes | None) -> Any:
    """An image as RGB; None if it cannot be read or is too large."""
    size = size_of(data)
    if size is None or size[0] * size[1] > _MAX_PIXELS:
        return None
    try:
        with open_header(data or b"") as image:
            return image.convert("RGB")
    except Exception:  # as above
        return None


def _data_uri(image: Any, kind: str) -> str:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 80} if kind == "JPEG" else {"optimize": True}
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
