"""Rows of any kind of shard, made from its schema alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from PIL import Image

Row = dict[str, Any]
IMAGE = (9, 6)  # width and height of every image made here


def rows(schema: pa.Schema, count: int) -> Iterator[Row]:
    """`count` rows that differ from each other; lists have 3 elements."""
    for index in range(count):
        yield {field.name: _value(field.type, field.name, index) for field in schema}


def image(index: int = 0) -> bytes:
    """PNG of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", IMAGE, (index * 37 % 256, 120, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def _value(kind: pa.DataType, name: str, index: int) -> Any:
    if pa.types.is_list(kind):
        return [_value(kind.value_type, name, index + i) for i in range(3)]
    if pa.types.is_struct(kind):
        return {"bytes": image(index), "path": None}
    if pa.types.is_string(kind):
        return f"{name} {index} é漢"
    if pa.types.is_boolean(kind):
        return index % 2 == 0
    if pa.types.is_integer(kind):
        return index
    return index / 4  # exact in 16 bits
