"""Cells of a row, by the name of their column: missing values, nested fields, lists and objects in text, labels."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache
from numbers import Number
from typing import Any

_EXACT = 2**53  # up to here, floats represent every integer exactly
_DROPPED = object()
_LONGEST_LITERAL = 100_000  # characters of a Python literal; parsing takes some 100 bytes of memory for each


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, or NaN in columns of numbers, or NaT in columns of times."""
    if isinstance(value, str):  # most are; the check below is slow
        return False
    return value is None or (isinstance(value, Number | date | timedelta) and value != value)


def as_text(value: Any) -> str:
    """A cell as text; empty if the cell is.

    Integers are written without a decimal point: an integer column with gaps contains 2.0 instead of 2.
    """
    if is_missing(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else str(value)


def has_column(columns: Sequence[str], name: str) -> bool:
    """Whether a column exists: as it is written, or, for `a.b`, the column a that may have a field b."""
    return any(head in columns for head, _ in _splits(name))


def cell(values: Mapping[str, Any], name: str) -> Any:
    """The cell of a column; for `a.b`, the field b of the column a, which may be an object or JSON. None if missing."""
    for head, rest in _splits(name):
        if head in values:
            value = values[head]
            if not rest:
                return None if is_missing(value) else value
            inner = structured(value)
            return cell(inner, rest) if isinstance(inner, Mapping) else None
    return None


def structured(value: Any) -> Any:
    """A list or an object that a cell contains as JSON or as Python writes it; any other value as it is."""
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return value
    for parse in (json.loads, _literal):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return value


def named_labels(row: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """A row with the names of its ClassLabels, alone or in lists; -1 is the label of a row without one."""
    for column, labels in names.items():
        value = row.get(column)
        if isinstance(value, int):
            row[column] = labels[value] if 0 <= value < len(labels) else None
        elif isinstance(value, list):
            row[column] = [labels[one] for one in value if isinstance(one, int) and 0 <= one < len(labels)]
    return row


def as_json(values: Mapping[str, Any], leave_out: Collection[str]) -> str | None:
    """Cells as a JSON object, without the columns to leave out, bytes and images in text; None if nothing is left.

    What JSON does not have becomes text (dates, decimals) or null (NaN, infinity).
    """
    kept = {name: _plain(value) for name, value in values.items() if name not in leave_out}
    kept = {name: value for name, value in kept.items() if value is not _DROPPED}
    if not kept:
        return None
    text = json.dumps(kept, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character
        return json.dumps(kept, allow_nan=False)
    return text


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; _DROPPED for bytes and images, and for what consists of nothing else."""
    if isinstance(value, str):
        return _DROPPED if value[:11].lower() == "data:image/" else value
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        fields = {str(name): _plain(one) for name, one in value.items()}
        kept = {name: one for name, one in fields.items() if one is not _DROPPED}
        return kept if kept or not fields else _DROPPED
    if isinstance(value, list | tuple):
        items = [_plain(one) for one in value]
        kept_items = [one for one in items if one is not _DROPPED]
        return kept_items if kept_items or not items else _DROPPED
    if is_missing(value):
        return None
    is_image = isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "getpixel")
    return _DROPPED if is_image else str(value)


def _literal(text: str) -> Any:
    if len(text) > _LONGEST_LITERAL:
        raise ValueError("too long")
    return ast.literal_eval(text)


@lru_cache(64)
def _splits(name: str) -> list[tuple[str, str]]:
    """`a.b.c` as column and field: ("a.b.c", ""), ("a.b", "c"), ("a", "b.c")."""
    parts = name.split(".")
    return [(".".join(parts[:end]), ".".join(parts[end:])) for end in range(len(parts), 0, -1)]
