"""Parquet shards: published only when complete, read only after verification.

pyarrow is imported where it is needed: every command's --help loads this module.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_stages.errors import DataError
from dapo_stages.processes.phases import phase
from dapo_stages.small_files import shown

if TYPE_CHECKING:
    import pyarrow as pa

    from dapo_stages.handoff.checks import Fault

Row = dict[str, Any]

MAX_ROWS = 128
# Rows with images are read one row group at a time in random order, so their row groups stay small.
MAX_ROWS_WITH_IMAGES = 32
MAX_BYTES_WITH_IMAGES = 8 << 20
MAX_BYTES = 64 << 20
MOST_BYTES = 512 << 20  # of a row group that is read, decompressed
_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_OF_THE_SYSTEM = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True)
class Shard:
    """A published file: its name in the folder, rows (None if it is not Parquet), bytes and SHA-256."""

    name: str
    rows: int | None
    bytes: int
    sha256: str


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex, with one block in memory at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    fsync_file(folder)


def fsync_file(path: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle_file(path: Path) -> None:
    """Make a file that a library wrote durable, and give it the mode that the umask allows.

    Libraries that write to a temporary file and rename it (safetensors) leave it readable by its owner only.
    """
    wanted = 0o666 & ~_umask()
    if stat.S_IMODE(path.stat().st_mode) != wanted:
        with suppress(PermissionError):  # a file system without modes
            path.chmod(wanted)
    fsync_file(path)


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def publish_file(temporary: Path, final: Path) -> None:
    """fsync a finished temporary file and move it to its final name in the same folder."""
    fsync_file(temporary)
    os.replace(temporary, final)
    fsync_folder(final.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add the path to errors of the file system, which by themselves have it only for files that cannot be opened.

    Libraries in Rust (safetensors, tokenizers) give the error number only in their text; it becomes an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_WRITING:
            error.filename = error.filename or str(path)
        raise
    except Exception as error:
        if (match := _OF_THE_SYSTEM.search(str(error))) is None:
            raise
        number = int(match[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def write_text(path: Path, text: str, times: tuple[int, int] | None = None) -> None:
    """Write a small text file atomically and durably; with these times of access and modification (ns), if given."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            temporary.write_text(text, encoding="utf-8")
            if times:
                os.utime(temporary, ns=times)
            publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shard(path: Path, schema: pa.Schema, rows: Iterable[Row]) -> Shard:
    """Write rows as one Parquet file by the commit protocol; the final name appears only when it is complete.

    Raises DataError naming the column if a row does not fit the schema, or has a value that no stage can use.
    """
    import pyarrow.parquet as pq

    from dapo_stages.handoff.checks import fault_in

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with_images = "images" in schema.names
    limit, most = (MAX_ROWS_WITH_IMAGES, MAX_BYTES_WITH_IMAGES) if with_images else (MAX_ROWS, MAX_BYTES)
    written = 0
    try:
        with writing(path):
            with pq.ParquetWriter(temporary, schema, **_parquet_options(schema)) as writer:
                for table in _tables(path, schema, rows, limit, most):
                    if (fault := fault_in(table)) is not None:
                        problem = f"row {written + fault.row}: {fault.problem}"
                        raise DataError(path, problem, "Check what the stage read for such values.")
                    writer.write_table(table, row_group_size=limit)
                    written += table.num_rows
            with pq.ParquetFile(temporary) as reopened:
                if reopened.metadata.num_rows != written or not reopened.schema_arrow.equals(schema):
                    problem = f"rows or columns have changed after writing (expected {written} rows)"
                    raise DataError(path, problem, "Check the disk.")
            with phase("hash"):
                shard = Shard(path.name, written, temporary.stat().st_size, sha256_of(temporary))
            publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return shard


@phase("hash")
def describe_file(root: Path, path: Path) -> Shard:
    """The entry in a manifest for a file that is not a table (weights, tokenizer)."""
    return Shard(path.relative_to(root).as_posix(), None, path.stat().st_size, sha256_of(path))


class ShardReader:
    """One verified Parquet file. Row groups are read on demand, so memory does not grow with its length.

    Columns added to the schema in later versions are read as null if the file lacks them.
    """

    def __init__(self, path: Path, schema: pa.Schema, redo: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from dapo_stages.handoff.checks import check_schema

        self.path, self._redo, self._schema = path, redo, schema
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise self._damaged(error) from None
        try:
            check_schema(path, self._file.schema_arrow, schema, redo)
        except DataError:
            self._file.close()
            raise
        except (pa.ArrowException, UnicodeDecodeError) as error:
            self._file.close()
            raise self._damaged(error) from None

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def row_group_sizes(self) -> list[int]:
        """Number of rows of each row group."""
        metadata = self._file.metadata
        return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]

    def table(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group as an Arrow table with checked values: large arrays as Python lists would fill the memory."""
        import pyarrow as pa

        from dapo_stages.handoff.checks import fault_in

        self._check_size(index, columns)
        try:
            table = self._file.read_row_group(index, columns=list(columns) if columns is not None else None)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise self._damaged(error) from None
        if (fault := fault_in(table)) is not None:
            raise self._faulty(index, fault)
        there = self._file.schema_arrow.names
        for field in self._schema:
            if field.name not in there and (columns is None or field.name in columns):
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        return table

    def row_group(self, index: int, columns: Sequence[str] | None = None) -> list[Row]:
        """The rows of one row group."""
        return self.rows_of(self.table(index, columns), index)

    def rows_of(self, table: pa.Table, index: int, before: int = 0) -> list[Row]:
        """The rows of a table of a row group, or of a part of it; `before` is how many rows of the group precede it."""
        from dapo_stages.handoff.checks import Fault, undecodable

        try:
            rows: list[Row] = table.to_pylist()
        except UnicodeDecodeError as error:
            if (fault := undecodable(table)) is None:
                raise self._damaged(error) from None
            raise self._faulty(index, Fault(before + fault.row, fault.problem)) from None
        return rows

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows in order."""
        for index in range(len(self.row_group_sizes)):
            yield from self.row_group(index, columns)

    def _check_size(self, index: int, columns: Sequence[str] | None) -> None:
        """Refuse a few bytes that decompress to gigabytes; row groups that we wrote are far below the limit."""
        group = self._file.metadata.row_group(index)
        chunks = (group.column(number) for number in range(group.num_columns))
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if columns is None or chunk.path_in_schema.split(".")[0] in columns
        )
        if size > MOST_BYTES:
            problem = f"a row group of {shown(size)} is too large (at most {shown(MOST_BYTES)})"
            raise DataError(self.path, problem, f"Run {self._redo} again.")

    def _faulty(self, group: int, fault: Fault) -> DataError:
        row = sum(self.row_group_sizes[:group]) + fault.row
        return DataError(self.path, f"row {row}: {fault.problem}", f"Run {self._redo} again.")

    def _damaged(self, error: Exception) -> DataError:
        reason = " ".join(str(error).split())[:200]
        return DataError(self.path, f"the Parquet file is damaged ({reason})", f"Run {self._redo} again.")


def _tables(path: Path, schema: pa.Schema, rows: Iterable[Row], limit: int, most: int) -> Iterator[pa.Table]:
    waiting: list[Row] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += _large_bytes(row)
        if len(waiting) >= limit or size >= most:
            yield _table(path, schema, waiting)
            waiting, size = [], 0
    if waiting:
        yield _table(path, schema, waiting)


def _table(path: Path, schema: pa.Schema, rows: list[Row]) -> pa.Table:
    import pyarrow as pa

    names = set(schema.names)
    for row in rows:
        if row.keys() != names:
            wrong = sorted(row.keys() ^ names)
            raise DataError(path, f"a row does not match the schema in {', '.join(wrong)}", "Report this as a bug.")
    return pa.Table.from_arrays([_column(path, field, rows) for field in schema], schema=schema)


def _column(path: Path, field: pa.Field, rows: list[Row]) -> pa.Array:
    import pyarrow as pa

    from dapo_stages.handoff.checks import lacks_values

    try:
        column = pa.array([row[field.name] for row in rows], field.type)
        column.validate(full=True)
    except (pa.ArrowException, UnicodeEncodeError, TypeError, OverflowError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        problem = f"a value in column {field.name} does not fit {field.type} ({reason})"
        raise DataError(path, problem, "Report this as a bug.") from None
    if lacks_values(column, field):
        raise DataError(path, f"column {field.name} must have a value in every row", "Report this as a bug.")
    return column


def _large_bytes(row: Row) -> int:
    """Bytes of a row's images and arrays, which decide how many rows fit into a row group."""
    images = sum(len((image or {}).get("bytes") or b"") for image in row.get("images") or [])
    lists = (value for value in row.values() if isinstance(value, list) and value)
    return images + sum(len(value) * getattr(value[0], "nbytes", 0) for value in lists)


def _parquet_options(schema: pa.Schema) -> dict[str, Any]:
    import pyarrow as pa

    split: list[str] = []
    dictionary: list[str] = []
    codecs: dict[str, str] = {}
    for field in schema:
        leaf, kind = field.name, field.type
        while pa.types.is_list(kind):
            leaf, kind = f"{leaf}.list.element", kind.value_type
        if pa.types.is_struct(kind):
            codecs |= {f"{leaf}.bytes": "NONE", f"{leaf}.path": "NONE"}
            continue
        codecs[leaf] = "ZSTD"
        if pa.types.is_float32(kind) and leaf != field.name:
            split.append(leaf)
        elif not pa.types.is_floating(kind) and not pa.types.is_boolean(kind):
            dictionary.append(leaf)
    return {
        "compression": codecs,
        "use_dictionary": dictionary,
        "use_byte_stream_split": split,
        "write_page_checksum": True,
        "store_schema": True,
    }
