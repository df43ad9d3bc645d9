"""A dataset of one image per row, on which supervised steps are tested."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image


def png(number: int) -> bytes:
    """An image of its own for every number."""
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), (number, 255 - number, 7 * number % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(path: Path, numbers: list[int], **cells: Any) -> Path:
    """A Parquet file with a row per number, whose solution is the number."""
    rows = [
        {"image": {"bytes": png(n), "path": None}, "problem": f"Number of {n}?", "solution": f"n{n}", **cells}
        for n in numbers
    ]
    pd.DataFrame(rows).to_parquet(path)
    return path
