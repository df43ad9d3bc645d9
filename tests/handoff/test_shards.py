"""Shards: whole or absent, in the promised layout, and nothing but what was written reads back."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.rows import Row, rows

from dapo_stages.errors import DataError
from dapo_stages.handoff.lookups import RowIndex, RowLookup
from dapo_stages.handoff.schemas import SCHEMAS, schema_of
from dapo_stages.handoff.shards import ShardReader, write_shard, write_text, writing

METRICS = schema_of("metrics")


def read(path: Path, kind: str) -> list[Row]:
    with ShardReader(path, schema_of(kind), "rollout") as reader:
        return list(reader.rows())


def columns_of(path: Path) -> dict[str, Any]:
    """Metadata of the first row group, by the leaf's path."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    return {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_what_is_written_reads_back(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}-00000.parquet"
    shard = write_shard(path, schema_of(kind), rows(schema_of(kind), 20))
    assert read(path, kind) == list(rows(schema_of(kind), 20))
    content = path.read_bytes()
    assert (shard.name, shard.rows, shard.bytes) == (path.name, 20, len(content))
    assert shard.sha256 == hashlib.sha256(content).hexdigest()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_equal_rows_give_equal_bytes(kind: str, tmp_path: Path) -> None:
    found = {write_shard(tmp_path / name, schema_of(kind), rows(schema_of(kind), 5)).sha256 for name in ("a", "b")}
    assert len(found) == 1


def test_no_rows_make_a_file_with_columns(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "a.parquet", METRICS, []).rows == 0
    assert read(tmp_path / "a.parquet", "metrics") == []


def test_an_error_of_a_library_in_rust_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, writing(tmp_path / "model.safetensors"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "model.safetensors"))
    with pytest.raises(RuntimeError, match="another"), writing(tmp_path):
        raise RuntimeError("another error")


# Layout


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_each_leaf_is_stored_as_its_type_wants(kind: str, tmp_path: Path) -> None:
    """Lists of float32 split by byte without a dictionary; images as they are; everything but images by zstd."""
    path = tmp_path / "a.parquet"
    write_shard(path, schema_of(kind), rows(schema_of(kind), 20))
    schema = schema_of(kind)
    for leaf, column in columns_of(path).items():
        image = leaf.startswith("images.")
        float_list = leaf.endswith(".list.element") and str(schema.field(leaf.split(".")[0]).type).startswith(
            "list<element: float"
        )
        assert column.compression == ("UNCOMPRESSED" if image else "ZSTD"), leaf
        assert ("BYTE_STREAM_SPLIT" in column.encodings) == float_list, leaf
        if image or float_list:
            assert not any("DICTIONARY" in encoding for encoding in column.encodings), leaf


def test_the_lists_that_are_split_by_byte_are_those_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard(path, schema_of("attention"), rows(schema_of("attention"), 3))
    split = {leaf for leaf, column in columns_of(path).items() if "BYTE_STREAM_SPLIT" in column.encodings}
    masses = ("mass_vision", "mass_text", "mass_other", "mass_first", "mass_generated", "vgr")
    distributions = ("logprobs", "entropy", "blank_logprobs", "visual_kl", "blank_entropy", "jsd", "k3")
    layers = ("token_vgr_early", "token_vgr_middle", "token_vgr_late", "token_vgr_layers")
    looks = ("vision_cosine", "rollout_mass", "vision_gradient", "attn_vision_by_image")
    assert split == {f"{name}.list.element" for name in (*masses, *distributions, *layers, *looks)}
    assert columns_of(path)["patch_attention_all.list.element.list.element"].encodings == ("RLE", "PLAIN")


@pytest.mark.parametrize(("kind", "sizes"), [("completions", [128, 128, 44]), ("train", [32] * 9 + [12])])
def test_row_groups_are_small(kind: str, sizes: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard(path, schema_of(kind), rows(schema_of(kind), 300))
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == sizes


def test_large_images_end_a_row_group(tmp_path: Path) -> None:
    """Three of 5 MB: the second passes 8 MB."""
    large = [{"bytes": bytes(5 << 20), "path": None}]
    made = [row | {"images": large} for row in rows(schema_of("train"), 3)]
    write_shard(tmp_path / "a.parquet", schema_of("train"), made)
    with ShardReader(tmp_path / "a.parquet", schema_of("train"), "prepare-data") as reader:
        assert reader.row_group_sizes == [2, 1]


# The commit protocol


def test_an_error_among_the_rows_leaves_nothing(tmp_path: Path) -> None:
    def cut() -> Iterator[Row]:
        yield from rows(METRICS, 200)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(tmp_path / "a.parquet", METRICS, cut())
    assert os.listdir(tmp_path) == []


def test_the_final_name_appears_with_the_rename_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace = tmp_path / "a.parquet", os.replace
    seen: list[tuple[list[str], int]] = []

    def watched(source: Path, target: Path) -> None:
        seen.append((os.listdir(tmp_path), pq.read_metadata(source).num_rows))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_shard(path, METRICS, rows(METRICS, 200))
    (names, complete) = seen[0]
    assert (len(seen), len(names), complete) == (1, 1, 200)
    assert names[0].startswith(".a.parquet.") and os.listdir(tmp_path) == ["a.parquet"]


def test_content_is_durable_before_its_name_and_the_name_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace = os.replace

    def synced(descriptor: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).suffix}")

    def renamed(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_shard(tmp_path / "a.parquet", METRICS, rows(METRICS, 3))
    assert done == ["fsync .tmp", "rename", "fsync "]


def test_a_rename_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write_shard(path, METRICS, rows(METRICS, 1))

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_shard(path, METRICS, rows(METRICS, 5))
    with pytest.raises(OSError, match="no space left"):
        write_text(tmp_path / "note.txt", "text")
    assert os.listdir(tmp_path) == ["a.parquet"]
    assert len(read(path, "metrics")) == 1


# Damage


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_shard(path, METRICS, rows(METRICS, 300))
    content = path.read_bytes()
    for length in (0, 3, 4, len(content) // 2, len(content) - 9, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="the Parquet file is damaged") as caught:
            read(path, "metrics")
        assert str(caught.value).startswith(f"{path}: the Parquet file is damaged (")
        assert str(caught.value).endswith("). Run rollout again.")


def test_a_flipped_bit_in_any_page_is_noticed(tmp_path: Path) -> None:
    """The reader alone, without the manifest's checksum: no flipped bit of the pages gives other rows."""
    path, kind = tmp_path / "a.parquet", "completions"
    write_shard(path, schema_of(kind), rows(schema_of(kind), 40))
    wanted, content = read(path, kind), path.read_bytes()
    chunks = columns_of(path).values()
    first = min(c.dictionary_page_offset or c.data_page_offset for c in chunks)
    last = max((c.dictionary_page_offset or c.data_page_offset) + c.total_compressed_size for c in chunks)
    generator, noticed = random.Random(0), 0
    for _ in range(300):
        place, bit = generator.randrange(first, last), 1 << generator.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            assert read(path, kind) == wanted  # a bit in a page's header that says nothing about its values
        except DataError as error:
            noticed += 1
            assert "the Parquet file is damaged" in str(error)
    assert noticed > 200


def _changed(how: str) -> pa.Schema:
    field = METRICS.field
    return {
        "missing": METRICS.remove(METRICS.get_field_index("update")),
        "extra": METRICS.append(pa.field("color", pa.string())),
        "retyped": METRICS.set(0, pa.field("iteration", pa.int64(), nullable=False)),
        "nullable": METRICS.set(2, pa.field("name", pa.string())),
        "reordered": pa.schema([field("update"), field("iteration"), field("name"), field("value")]),
    }[how]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "missing columns: update (found 3 columns)."),
        ("extra", "unexpected columns: color (not in the schema)."),
        ("retyped", "column iteration has type int64 not null, expected int32 not null."),
        ("nullable", "column name has type string, expected string not null."),
        (
            "reordered",
            "columns are in the order ['update', 'iteration', 'name', 'value'], "
            "expected ['iteration', 'update', 'name', 'value'].",
        ),
    ],
)
def test_a_file_of_other_columns_is_refused_by_name(how: str, words: str, tmp_path: Path) -> None:
    schema, path = _changed(how), tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows(schema, 2)), schema=schema), path)
    with pytest.raises(DataError) as caught:
        ShardReader(path, METRICS, "train-step")
    assert str(caught.value) == f"{path}: {words} Run train-step again."


@pytest.mark.parametrize(
    ("kind", "change", "column"),
    [
        ("completions", {"text": None}, "text"),
        ("completions", {"completion_ids": None}, "completion_ids"),
        ("completions", {"completion_ids": [1, None]}, "completion_ids"),
        ("completions", {"token_texts": ["a", None]}, "token_texts"),
        ("train", {"image_grid_thw": [[1, 2, None]]}, "image_grid_thw"),
        ("train", {"image_grid_thw": [None]}, "image_grid_thw"),
    ],
)
def test_an_empty_value_where_one_is_required_is_refused_by_name(
    kind: str, change: Row, column: str, tmp_path: Path
) -> None:
    made = [*rows(schema_of(kind), 3), next(rows(schema_of(kind), 1)) | change]
    with pytest.raises(DataError, match=f"column {column} must have a value in every row"):
        write_shard(tmp_path / "a.parquet", schema_of(kind), made)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"text": 5}, "text"),
        ({"text": "\ud800"}, "text"),
        ({"sample": 2**40}, "sample"),
        ({"sampling_logprobs": ["a"]}, "sampling_logprobs"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(change: Row, column: str, tmp_path: Path) -> None:
    row = next(rows(schema_of("completions"), 1)) | change
    with pytest.raises(DataError, match=f"a value in column {column} does not fit "):
        write_shard(tmp_path / "a.parquet", schema_of("completions"), [row])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("change", ["extra", "missing"])
def test_a_row_of_other_columns_is_refused_by_name(change: str, tmp_path: Path) -> None:
    row = next(rows(_changed(change), 1))
    with pytest.raises(
        DataError, match=rf"a row does not match the schema in {'color' if change == 'extra' else 'update'}\."
    ):
        write_shard(tmp_path / "a.parquet", METRICS, [row])


def test_attention_may_be_absent(tmp_path: Path) -> None:
    """Null is how a completion without attention is written; it must not come back as an empty list."""
    row = next(rows(schema_of("attention"), 1)) | {"vgr": None, "vgr_all": None, "patch_attention_all": None}
    write_shard(tmp_path / "a.parquet", schema_of("attention"), [row])
    (found,) = read(tmp_path / "a.parquet", "attention")
    assert (found["vgr"], found["vgr_all"], found["patch_attention_all"]) == (None, None, None)


# Random access


@pytest.fixture()
def readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ShardReader]]:
    """20 and 5 prompts in row groups of 8, numbered through, two rows to a prompt_id."""
    monkeypatch.setattr("dapo_stages.handoff.shards.MAX_ROWS_WITH_IMAGES", 8)
    schema = schema_of("train")
    made = [row | {"prompt_id": f"p{i // 2}", "problem": str(i)} for i, row in enumerate(rows(schema, 25))]
    opened = []
    for number, part in enumerate((made[:20], made[20:])):
        write_shard(tmp_path / f"train-{number:05d}.parquet", schema, part)
        opened.append(ShardReader(tmp_path / f"train-{number:05d}.parquet", schema, "prepare-data"))
    yield opened
    for reader in opened:
        reader.__exit__()


def test_rows_are_found_by_number_in_any_order(readers: list[ShardReader]) -> None:
    opened = []

    def opener(reader: ShardReader) -> ShardReader:
        opened.append(reader.path)
        return ShardReader(reader.path, schema_of("train"), "prepare-data")

    table = RowIndex([(sum(reader.row_group_sizes), partial(opener, reader)) for reader in readers], opened=1)
    assert not opened  # a table of any size costs nothing before a row is asked for
    order = list(range(25))
    assert len(table) == 25
    random.Random(3).shuffle(order)
    assert [table[i]["problem"] for i in order] == [str(i) for i in order]
    for outside in (-1, 25):
        with pytest.raises(IndexError):
            table[outside]


def test_rows_in_order_decode_each_row_group_once(readers: list[ShardReader], monkeypatch: pytest.MonkeyPatch) -> None:
    read = ShardReader.table
    groups = []

    def noted(reader: ShardReader, index: int) -> pa.Table:
        groups.append(index)
        return read(reader, index)

    def same(reader: ShardReader) -> ShardReader:
        return reader

    monkeypatch.setattr(ShardReader, "table", noted)
    table = RowIndex([(sum(reader.row_group_sizes), partial(same, reader)) for reader in readers])
    assert [row["problem"] for row in (table[i] for i in range(25))] == [str(i) for i in range(25)]
    assert groups == [0, 1, 2, 0]  # 20 and 5 rows, of which a group holds 8


def test_rows_are_found_by_key_in_any_order(readers: list[ShardReader]) -> None:
    table, order = RowLookup(readers, "prompt_id", cached=2), list(range(13))
    random.Random(3).shuffle(order)
    assert [table.one(f"p{i}")["problem"] for i in order] == [str(2 * i) for i in order]
    assert [row["problem"] for row in table.all("p4")] == ["8", "9"]
    assert [row["problem"] for row in table.all("p12")] == ["24"]
    assert "p12" in table and "p13" not in table
    with pytest.raises(DataError, match=r"no row with prompt_id p13\. Rerun the stages "):
        table.one("p13")


def test_some_columns_can_be_read_without_the_images(readers: list[ShardReader]) -> None:
    assert next(readers[0].rows(["prompt_id", "source"])) == {"prompt_id": "p0", "source": "source 0 é漢"}
