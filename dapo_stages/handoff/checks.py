"""What is wrong with a table: columns that are not its schema's, values that no stage can go on with.

All is looked at column by column, without making a Python object of any value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dapo_stages.errors import DataError
from dapo_stages.handoff.schemas import FILLED, NOT_FINITE, PER_TOKEN, of_file


class Fault(NamedTuple):
    """The first value that is wrong, by the row of the table it is in."""

    row: int
    found: str
    needed: str


def check_schema(path: Path, found: pa.Schema, needed: pa.Schema, redo: str) -> None:
    """Refuse a file whose columns differ in name, order, type or nullability; names the first that does.

    Columns that came later may be missing.
    """
    needed = of_file(needed, found.names)
    missing = [name for name in needed.names if name not in found.names]
    if missing:
        raise DataError(
            path, f"{len(found.names)} columns without {', '.join(missing)}", "these columns", f"Run {redo} again."
        )
    extra = [name for name in found.names if name not in needed.names]
    if extra:
        raise DataError(path, f"unknown columns {', '.join(extra)}", "the columns of its schema", f"Run {redo} again.")
    if len(found.names) != len(needed.names):
        twice = next(name for name in found.names if found.names.count(name) > 1)
        raise DataError(path, f"column {twice} twice", "each column once", f"Run {redo} again.")
    for name in needed.names:
        if not found.field(name).equals(needed.field(name)):
            raise DataError(
                path, f"column {name} as {found.field(name)}", f"{needed.field(name)}", f"Run {redo} again."
            )
    if found.names != needed.names:
        raise DataError(path, f"columns in the order {found.names}", f"{needed.names}", f"Run {redo} again.")


def lacks_values(column: pa.Array, field: pa.Field) -> bool:
    """Whether there is a null where the schema allows none, at any depth of a list."""
    if column.null_count and not field.nullable:
        return True
    return pa.types.is_list(field.type) and lacks_values(column.flatten(), field.type.value_field)


def fault_in(table: pa.Table) -> Fault | None:
    """The first number that is not finite where it has to be, list without tokens, or list of another length than
    the row's others that have an element for each token. Columns that were not read are not looked at."""
    for name in table.column_names:
        if name not in NOT_FINITE and (fault := _not_finite(name, table[name])) is not None:
            return fault
    lengths = {name: pc.list_value_length(table[name]) for name in PER_TOKEN if name in table.column_names}
    for name in FILLED & set(table.column_names):
        sizes = pc.list_value_length(table[name])
        if pc.min(sizes).as_py() == 0:
            return Fault(pc.index(sizes, 0).as_py(), f"no token in column {name}", "at least one")
    for name, found in lengths.items():
        first = next(iter(lengths))
        row = _first_false(pc.equal(found, lengths[first]))
        if row is not None:
            said = f"{found[row]} values in column {name}"
            return Fault(row, said, f"{lengths[first][row]}, as in column {first}: one per token")
    return None


def undecodable(table: pa.Table) -> Fault | None:
    """The first text that is not UTF-8."""
    for name in table.column_names:
        for row, value in enumerate(table[name]):
            try:
                value.as_py()
            except UnicodeDecodeError:
                return Fault(row, f"text that is not UTF-8 in column {name}", "UTF-8")
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
    return Fault(place if rows is None else rows[place].as_py(), f"{values[place]} in column {name}", "finite numbers")


def _first_false(flags: Any) -> int | None:
    """Place of the first flag that is false; null is neither."""
    if pc.all(flags).as_py() is not False:
        return None
    place: int = pc.index(flags, False).as_py()  # what makes a scalar of Arrow imports pandas, half a second
    return place
