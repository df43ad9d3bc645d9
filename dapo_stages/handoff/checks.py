"""What is wrong with a table: columns that differ from its schema, values that no stage can use.

Tables are checked column by column, without creating Python objects for their values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dapo_stages.errors import DataError
from dapo_stages.handoff.schemas import FILLED, NOT_FINITE, PER_TOKEN, of_file


class Fault(NamedTuple):
    """What is wrong with the first bad value, and the row of the table that it is in."""

    row: int
    problem: str


def check_schema(path: Path, actual: pa.Schema, expected: pa.Schema, redo: str) -> None:
    """Raise DataError for the first column that differs in name, order, type or nullability.

    Columns that were added in later versions may be missing.
    """
    expected = of_file(expected, actual.names)
    missing = [name for name in expected.names if name not in actual.names]
    if missing:
        problem = f"missing columns: {', '.join(missing)} (found {len(actual.names)} columns)"
        raise DataError(path, problem, f"Run {redo} again.")
    extra = [name for name in actual.names if name not in expected.names]
    if extra:
        raise DataError(path, f"unexpected columns: {', '.join(extra)} (not in the schema)", f"Run {redo} again.")
    if len(actual.names) != len(expected.names):
        twice = next(name for name in actual.names if actual.names.count(name) > 1)
        raise DataError(path, f"column {twice} appears twice", f"Run {redo} again.")
    for name in expected.names:
        ours, theirs = expected.field(name), actual.field(name)
        if not theirs.equals(ours):
            problem = f"column {name} has type {_type(theirs)}, expected {_type(ours)}"
            raise DataError(path, problem, f"Run {redo} again.")
    if actual.names != expected.names:
        problem = f"columns are in the order {actual.names}, expected {expected.names}"
        raise DataError(path, problem, f"Run {redo} again.")


def _type(field: pa.Field) -> str:
    return f"{field.type}" if field.nullable else f"{field.type} not null"


def lacks_values(column: pa.Array, field: pa.Field) -> bool:
    """Whether there is a null where the schema allows none, at any depth of nested lists."""
    if column.null_count and not field.nullable:
        return True
    return pa.types.is_list(field.type) and lacks_values(column.flatten(), field.type.value_field)


def fault_in(table: pa.Table) -> Fault | None:
    """The first bad value: a number that is not finite but must be, a list of tokens that is empty, or a list with one
    element per token whose length differs from that of the row's others. Columns that were not read are not checked."""
    for name in table.column_names:
        if name not in NOT_FINITE and (fault := _not_finite(name, table[name])) is not None:
            return fault
    lengths = {name: pc.list_value_length(table[name]) for name in PER_TOKEN if name in table.column_names}
    for name in FILLED & set(table.column_names):
        sizes = pc.list_value_length(table[name])
        if pc.min(sizes).as_py() == 0:
            return Fault(pc.index(sizes, 0).as_py(), f"column {name} has no tokens, but must have at least one")
    for name, sizes in lengths.items():
        first = next(iter(lengths))
        row = _first_false(pc.equal(sizes, lengths[first]))
        if row is not None:
            expected = f"{lengths[first][row]}, as in column {first}: one per token"
            return Fault(row, f"column {name} has {sizes[row]} values, expected {expected}")
    return None


def undecodable(table: pa.Table) -> Fault | None:
    """The first text that is not UTF-8."""
    for name in table.column_names:
        for row, value in enumerate(table[name]):
            try:
                value.as_py()
            except UnicodeDecodeError:
                return Fault(row, f"column {name} is not valid UTF-8")
    return None


def _not_finite(name: str, column: pa.ChunkedArray) -> Fault | None:
    values, rows = column, None
    if pa.types.is_list(column.type) and pa.types.is_floating(column.type.value_type):
        values = pc.list_flatten(column)
    elif not pa.types.is_floating(column.type):
        return None
    place = _first_false(pc.is_finite(values))
    if place is None:
        return None
    if values is not column:
        rows = pc.list_parent_indices(column)
    row = place if rows is None else rows[place].as_py()
    return Fault(row, f"column {name} must be finite, but has {values[place]}")


def _first_false(flags: Any) -> int | None:
    """Index of the first false flag, or None; nulls do not count."""
    if pc.all(flags).as_py() is not False:
        return None
    place: int = pc.index(flags, False).as_py()  # imports pandas (half a second), hence the check above
    return place
