"""Local tables, row by row: Parquet, JSON lines, JSON, CSV, TSV, and the metadata file of an image folder."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dapo_stages.data.cells import named_labels
from dapo_stages.errors import DataError
from dapo_stages.small_files import REPORT, lines, read_text, shown

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
_ROWS_AT_ONCE = 16  # of Parquet: rows may contain large images
_BYTES_AT_ONCE = 256 << 20  # of Parquet, decompressed
_LARGEST_SWELL = 200  # compression ratio beyond which a column is a decompression bomb
_LONGEST_LINE = 64 << 20  # characters of a row of text
_SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "testing", "eval", "evaluation")}
_SPLIT_NAMES["validation"] = ("validation", "valid", "val", "dev")
_SPLIT_WORD = re.compile(r"([a-z]+?)(?:set|split)?\d*")  # test, testset, val2014
_METADATA = (".parquet", ".jsonl", ".csv")


def find_tables(folder: Path, split: str) -> list[Path]:
    """The files of a folder with the rows of a split, in order.

    Metadata files are used first (an image folder), else the first of Parquet, JSON lines, JSON, CSV and TSV that
    exists. Files with a split in their name or folder are used for that split only: if any is named exactly so, those;
    else those with another name of it (`val` and `dev` for `validation`).
    """
    files = all_tables(folder)
    kinds = [[path for path in files if path.stem == "metadata" and path.suffix.lower() in _METADATA]]
    kinds += [[path for path in files if path.suffix.lower() == suffix] for suffix in SUFFIXES]
    tables = next((kind for kind in kinds if kind), [])
    if not tables:
        raise DataError(
            folder,
            f"no table in the folder (expected a {', '.join(SUFFIXES)} file, metadata of an image folder, or a "
            "save_to_disk folder)",
            "Set data.source to the folder or file that has the rows.",
        )
    words = {path: _words(path.relative_to(folder)) for path in tables}
    if exact := [path for path in tables if split.lower() in words[path]]:
        return exact
    named = {path: _split_of(words[path]) for path in tables}
    if not any(named.values()):
        return tables
    wanted = next((name for name, others in _SPLIT_NAMES.items() if split in others), split)
    if chosen := [path for path, name in named.items() if name == wanted]:
        return chosen
    splits = sorted({name for name in named.values() if name})
    problem = f"no files of the split {split} (there are files of {', '.join(splits)})"
    raise DataError(folder, problem, "Set data.split=… to one of these; data.held_out_split is for held-out rows.")


def all_tables(folder: Path) -> list[Path]:
    """Every table file in a folder, of whatever kind, in order."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _is_hidden(path.relative_to(folder))
    ]


@dataclass(frozen=True)
class Table:
    """A file of rows."""

    path: Path
    wanted: frozenset[str]  # columns to read although they contain bytes, such as images; others are always read

    def columns(self) -> list[str]:
        """Names of the columns (of the first row if the file has no header); empty for a file without rows."""
        if self._suffix == ".parquet":
            with self._parquet() as file:
                return self._columns_of(file.schema_arrow) if file.metadata.num_rows else []
        return list(next(self.rows(), {}))

    def count(self) -> int | None:
        """Number of rows, if the file's metadata says so; else None."""
        if self._suffix != ".parquet":
            return None
        with self._parquet() as file:
            return int(file.metadata.num_rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, with a few in memory at a time. Raises DataError naming a damaged line."""
        readers = {".parquet": self._of_parquet, ".jsonl": self._of_lines, ".json": self._of_json, ".csv": self._of_csv}
        readers[".tsv"] = self._of_csv
        if self._suffix not in readers:
            problem = f"expected a file with the suffix {', '.join(SUFFIXES)}, got {self._suffix or 'no suffix'}"
            raise DataError(self.path, problem, "Convert it, or set data.source to another file.")
        for row in readers[self._suffix]():
            yield dict(zip(self._named(list(row)), row.values(), strict=True))

    @property
    def _suffix(self) -> str:
        return self.path.suffix.lower()

    def _parquet(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # A small buffer instead of whole column chunks: row groups of other writers may contain hundreds of images.
            return pq.ParquetFile(self.path, page_checksum_verification=True, buffer_size=1 << 20, pre_buffer=False)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # column names may be any bytes
            raise self._damaged(error) from None

    def _of_parquet(self) -> Iterator[dict[str, Any]]:
        import pyarrow as pa

        from dapo_stages.handoff.checks import undecodable

        with self._parquet() as file:
            schema = file.schema_arrow
            named = zip(schema, self._columns_of(schema), strict=True)
            columns = [field.name for field, new in named if new in self.wanted or not _has_bytes(field.type)]
            names = _label_names(schema)
            batch, before = None, 0
            try:
                for group in range(file.metadata.num_row_groups):
                    rows = self._rows_at_once(file.metadata.row_group(group), columns)
                    for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                        yield from (named_labels(row, names) for row in batch.to_pylist())
                        before += batch.num_rows
            except UnicodeDecodeError as error:
                if batch is None or (fault := undecodable(batch)) is None:
                    raise self._damaged(error) from None
                raise self._unreadable(f"row {before + fault.row}", fault.problem) from None
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(error) from None

    def _rows_at_once(self, group: Any, columns: list[str]) -> int:
        """How many rows of a row group to load at a time. Refuses decompression bombs."""
        chunks = [group.column(number) for number in range(group.num_columns)]
        chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
        for chunk in chunks:
            size = chunk.total_uncompressed_size
            if size > _BYTES_AT_ONCE and size > _LARGEST_SWELL * chunk.total_compressed_size:
                problem = (
                    f"{chunk.total_compressed_size:,} bytes expand to {shown(size)}, more than {shown(_BYTES_AT_ONCE)} "
                    f"and more than {_LARGEST_SWELL} times as many"
                )
                raise DataError(f"{self.path} column {chunk.path_in_schema}", problem, "Remove such rows.")
        each = int(sum(chunk.total_uncompressed_size for chunk in chunks)) // max(int(group.num_rows), 1)
        return max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(each, 1)))

    def _of_lines(self) -> Iterator[dict[str, Any]]:
        try:
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
                for number, line in enumerate(self._utf8(lines(file, _LONGEST_LINE)), start=1):
                    if line.strip():
                        yield self._object(self._json(line, number), f"line {number}")
        except (ValueError, OSError) as error:
            raise self._damaged(error) from None

    def _json(self, line: str, number: int) -> Any:
        try:
            return json.loads(line, object_pairs_hook=partial(self._keys_once, f" line {number}"))
        except (ValueError, RecursionError) as error:
            raise self._unreadable(f"line {number}", f"not valid JSON ({_short(error)})") from None

    def _utf8(self, lines: Iterable[str]) -> Iterator[str]:
        """Lines of a file opened with surrogateescape. Raises DataError naming the first that is not UTF-8."""
        for number, line in enumerate(lines, start=1):
            try:
                line.encode()
            except UnicodeEncodeError:
                raise self._unreadable(f"line {number}", "the text is not UTF-8") from None
            yield line

    def _of_json(self) -> Iterator[dict[str, Any]]:
        """A list of objects, an object that contains one such list, objects by their IDs, or JSON lines with the wrong
        suffix."""
        text = ""
        try:
            read = read_text(self.path, REPORT, errors="surrogateescape").removeprefix("\ufeff")
            text = "\n".join(self._utf8(read.split("\n")))
            content = json.loads(text, object_pairs_hook=partial(self._keys_once, ""))
        except (ValueError, OSError, RecursionError) as error:
            if not isinstance(error, json.JSONDecodeError) or text.lstrip().startswith("["):
                raise self._damaged(error) from None
            yield from self._of_lines()
            return
        if isinstance(content, dict):
            lists = [value for value in content.values() if isinstance(value, list)]
            by_id = len(content) > 1 and all(isinstance(value, dict) for value in content.values())
            content = lists[0] if len(lists) == 1 else list(content.values()) if by_id else [content]
        if not isinstance(content, list):
            raise DataError(self.path, f"expected a list of objects, got a {type(content).__name__}", "Fix the file.")
        for number, row in enumerate(content):
            yield self._object(row, f"entry {number}")

    def _of_csv(self) -> Iterator[dict[str, Any]]:
        csv.field_size_limit(_LONGEST_LINE)  # the default of 128 KiB would stop at a long cell
        number = 0
        try:
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                header = file.readline(_LONGEST_LINE)
                mark = "\t" if self._suffix == ".tsv" else ";" if ";" in header and "," not in header else ","
                file.seek(0)
                content = csv.DictReader(self._utf8(lines(file, _LONGEST_LINE)), delimiter=mark, strict=True)
                self._once([name for name in content.fieldnames or () if name.strip()], "column")
                for number, row in enumerate(content, start=1):
                    if None in row:
                        raise DataError(f"{self.path} row {number}", "more cells than the header", "Fix the row.")
                    yield row
        except csv.Error as error:
            raise self._unreadable(f"row {number + 1}", f"not valid CSV ({_short(error)})") from None
        except (ValueError, OSError) as error:
            raise self._damaged(error) from None

    def _object(self, row: Any, where: str) -> dict[str, Any]:
        if not isinstance(row, dict):
            problem = f"expected an object (a row), got a {type(row).__name__}"
            raise DataError(f"{self.path} {where}", problem, "Fix the file.")
        return row

    def _columns_of(self, schema: Any) -> list[str]:
        """The names of a Parquet file's columns. Raises DataError for duplicates, also inside structs."""
        self._once(schema.names, "column")
        for field in schema:
            self._check_fields(field.name, field.type)
        return self._named(schema.names)

    def _check_fields(self, path: str, kind: Any) -> None:
        names = [kind.field(number).name for number in range(kind.num_fields)]
        self._once([f"{path}.{name}" for name in names], "field")
        for number, name in enumerate(names):
            self._check_fields(f"{path}.{name}", kind.field(number).type)

    def _named(self, names: list[str]) -> list[str]:
        """The columns' names as we use them. Raises DataError for duplicates."""
        return self._once(_renamed(self.path, names), "column")

    def _keys_once(self, where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object. Raises DataError for duplicate keys."""
        content = dict(pairs)
        if len(content) < len(pairs):
            self._once([name for name, _ in pairs], "key", where)
        return content

    def _once(self, names: list[str], what: str, where: str = "") -> list[str]:
        if len(set(names)) < len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self.path}{where}", f"duplicate {what} `{double[:100]}`", "Remove one of the two.")
        return names

    def _damaged(self, error: Exception) -> DataError:
        return DataError(self.path, f"the {self._suffix} file is damaged ({_short(error)})", "Fix or replace it.")

    def _unreadable(self, where: str, problem: str) -> DataError:
        return DataError(f"{self.path} {where}", problem, "Fix the file.")


def _has_bytes(kind: Any) -> bool:
    """Whether an Arrow type is bytes, or contains any."""
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_has_bytes(kind.field(number).type) for number in range(kind.num_fields))


def _label_names(schema: Any) -> dict[str, list[str]]:
    """The names of ClassLabel columns, which the datasets library stores as numbers, with the names in the metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        inner = {name: one.get("feature", one) if one.get("_type") == "List" else one for name, one in features.items()}
        labels = {name: one["names"] for name, one in inner.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: [str(one) for one in names] for name, names in labels.items() if isinstance(names, list)}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _renamed(path: Path, names: list[str]) -> list[str]:
    """Column names as `imagefolder` gives them: file_name -> image, x_file_name -> x (also in the plural)."""
    if path.stem != "metadata":
        return names
    fixed = {"file_name": "image", "file_names": "images"}
    return [fixed.get(name) or re.sub(r"_file_names?$", "", name) for name in names]


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", str(path.with_suffix("")).lower()))


def _split_of(words: Collection[str]) -> str | None:
    """The split in the name of a file or its folders: data/test-00000-of-00001.parquet -> test."""
    parts = {match[1] for word in words if (match := _SPLIT_WORD.fullmatch(word))}
    return next((name for name, others in _SPLIT_NAMES.items() if parts & set(others)), None)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts) or path.name == "dataset_infos.json"
