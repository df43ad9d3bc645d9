"""Rows of many shards by number or by key, with few files open and few row groups in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import Row, ShardReader

if TYPE_CHECKING:
    import pyarrow as pa


class RowIndex:
    """Rows by number across several shards. A shard is opened, and verified, when one of its rows is first read.

    `shards` gives the number of rows of each shard and how to open it. Only a few stay open at a time, so a table of
    any size needs few file descriptors.
    """

    def __init__(self, shards: Sequence[tuple[int, Callable[[], ShardReader]]], opened: int = 8) -> None:
        self._open, self._most = [opener for _, opener in shards], opened
        self._starts = list(accumulate((rows for rows, _ in shards), initial=0))
        self._readers: OrderedDict[int, tuple[ShardReader, list[int]]] = OrderedDict()
        self._last: tuple[tuple[int, int], pa.Table | None] = (-1, -1), None  # (shard, row group) that was read last

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = bisect_right(self._starts, index) - 1
        reader, starts = self._reader(shard)
        offset = index - self._starts[shard]
        group = bisect_right(starts, offset) - 1
        place, table = self._last
        if table is None or place != (shard, group):
            table = reader.table(group)
            self._last = (shard, group), table
        before = offset - starts[group]
        return reader.rows_of(table.slice(before, 1), group, before)[0]

    def close(self) -> None:
        """Close the open shards."""
        for reader, _ in self._readers.values():
            reader.close()
        self._readers.clear()

    def _reader(self, shard: int) -> tuple[ShardReader, list[int]]:
        if shard not in self._readers:
            reader = self._open[shard]()
            self._readers[shard] = reader, list(accumulate(reader.row_group_sizes, initial=0))
            if len(self._readers) > self._most:
                _, (oldest, _) = self._readers.popitem(last=False)
                oldest.close()
        self._readers.move_to_end(shard)
        return self._readers[shard]


class RowLookup:
    """Rows by key in any order: groups are trained on in shuffled order. Messages name the table by `where`."""

    def __init__(
        self,
        readers: Sequence[ShardReader],
        key: str,
        columns: Sequence[str] | None = None,
        cached: int = 4,
        where: object = "the table",
    ) -> None:
        self._groups = _RowGroups(readers, columns, cached)
        self._key, self._where = key, where
        self._places: dict[str, list[tuple[int, int, int]]] = {}
        for shard, reader in enumerate(readers):
            for group in range(len(reader.row_group_sizes)):
                for offset, row in enumerate(reader.row_group(group, [key])):
                    self._places.setdefault(row[key], []).append((shard, group, offset))

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def all(self, key: str) -> list[Row]:
        """Every row with this key, in the order of the files; raises DataError if there is none."""
        return [self._groups.read(shard, group)[offset] for shard, group, offset in self._of(key)]

    def one(self, key: str) -> Row:
        """The first row with this key; raises DataError if there is none."""
        shard, group, offset = self._of(key)[0]
        return self._groups.read(shard, group)[offset]

    def _of(self, key: str) -> list[tuple[int, int, int]]:
        if key not in self._places:
            raise DataError(
                self._where, f"no row with {self._key} {key}", "Rerun the stages whose outputs do not belong together."
            )
        return self._places[key]


class _RowGroups:
    """A cache of the row groups that were read last."""

    def __init__(self, readers: Sequence[ShardReader], columns: Sequence[str] | None, cached: int) -> None:
        self._readers, self._columns, self._cached = list(readers), columns, cached
        self._cache: OrderedDict[tuple[int, int], list[Row]] = OrderedDict()

    def read(self, shard: int, group: int) -> list[Row]:
        place = (shard, group)
        if place not in self._cache:
            self._cache[place] = self._readers[shard].row_group(group, self._columns)
            if len(self._cache) > self._cached:
                self._cache.popitem(last=False)
        self._cache.move_to_end(place)
        return self._cache[place]
