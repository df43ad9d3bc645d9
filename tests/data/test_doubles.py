"""Two columns, keys or fields with the same name: neither may silently win."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dapo_stages.data.columns import wanted_columns
from dapo_stages.data.table_files import Table
from dapo_stages.errors import DataError


def refused(path: Path, problem: str) -> None:
    """It is refused by name, whichever method is called first."""
    for ask in (Table.columns, lambda table: list(table.rows())):
        with pytest.raises(DataError) as caught:
            ask(Table(path, wanted_columns_of_any()))
        assert str(caught.value) == f"{path}: {problem}. Remove one of the two."


def wanted_columns_of_any() -> frozenset[str]:
    from dapo_stages.config import ColumnsConfig

    return wanted_columns(ColumnsConfig(messages="messages"))


def test_a_column_of_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("problem,solution,solution\nWhat?,A,B\n")
    refused(tmp_path / "a.csv", "duplicate column `solution`")


def test_columns_without_a_name_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("problem,solution,,\nWhat?,A,,\n")  # as spreadsheets write them
    assert [row["solution"] for row in Table(tmp_path / "a.csv", wanted_columns_of_any()).rows()] == ["A"]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ('{"problem": "What?", "solution": "A", "solution": "B"}', "solution"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}], "solution": "A"}', "content"),
        ('{"solution": "A", "image": {"path": "a", "path": "b"}}', "path"),
    ],
)
def test_a_key_of_json_at_any_depth(row: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"problem": "What?", "solution": "A"}}\n{row}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl line 2: duplicate key `{key}`\. Remove"):
        list(Table(tmp_path / "a.jsonl", wanted_columns_of_any()).rows())
    (tmp_path / "a.json").write_text(f"[{row}]")
    refused(tmp_path / "a.json", f"duplicate key `{key}`")


def test_a_column_of_parquet_and_a_field_inside_one(tmp_path: Path) -> None:
    one = pa.array(["A"])
    pq.write_table(pa.Table.from_arrays([one] * 3, ["problem", "solution", "solution"]), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "duplicate column `solution`")
    message = pa.StructArray.from_arrays([one] * 3, ["role", "content", "content"])
    turns = pa.ListArray.from_arrays([0, 1], message)
    pq.write_table(pa.Table.from_arrays([turns, one], ["messages", "solution"]), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "duplicate field `messages.element.content`")


def test_two_names_that_mean_the_same_column(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,image,problem,solution\na.png,b.png,What?,A\n")
    refused(tmp_path / "metadata.csv", "duplicate column `image`")
