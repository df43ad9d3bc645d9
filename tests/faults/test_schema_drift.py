"""Files whose columns are not those of their schema are refused, and the column named, whatever else agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from reporting import tiny_run
from support.rows import rows

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import LATER
from faults.folders import KINDS, name_of, publish, read, republish, rewrite, schema
from faults.table import record

Drift = tuple[pa.Schema, str]  # the columns as they are, and what is said of them


def _missing(good: pa.Schema) -> Drift:
    name = [name for name in good.names if name not in LATER][-1]
    fewer = good.remove(good.get_field_index(name))
    return fewer, f"missing columns: {name} (found {len(fewer)} columns)."


def _extra(good: pa.Schema) -> Drift:
    return good.append(pa.field("color", pa.string())), "unexpected columns: color (not in the schema)."


def _renamed(good: pa.Schema) -> Drift:
    return good.set(0, good.field(0).with_name(good.names[0].upper())), f"missing columns: {good.names[0]} (found "


def _retyped(good: pa.Schema) -> Drift:
    """The first number in twice the bytes."""
    wider = {pa.int32(): pa.int64(), pa.float32(): pa.float64(), pa.float64(): pa.float32()}
    place = next(i for i, field in enumerate(good) if field.type in wider or _inner(field.type) in wider)
    field = good.field(place)
    inner = field.type in wider
    kind = wider[field.type] if inner else pa.list_(pa.field("element", wider[_inner(field.type)], nullable=False))
    return good.set(place, field.with_type(kind)), f"column {field.name} has type {kind}"


def _as_text(good: pa.Schema) -> Drift:
    """Text in the other of Arrow's two types for it, as pandas and polars write it."""
    place = next(i for i, field in enumerate(good) if field.type == pa.string())
    words = f"column {good.names[place]} has type large_string"
    return good.set(place, good.field(place).with_type(pa.large_string())), words


def _nullable(good: pa.Schema) -> Drift:
    place = next(i for i, field in enumerate(good) if not field.nullable)
    field = good.field(place)
    words = f"column {field.name} has type {field.type}, expected {field.type} not null."
    return good.set(place, field.with_nullable(True)), words


def _nullable_inside(good: pa.Schema) -> Drift:
    """Elements of a list that may be null; where there is no list, the last column that had to be there."""
    lists = [i for i, field in enumerate(good) if _inner(field.type) in (pa.int32(), pa.float32(), pa.string())]
    if not lists:
        return _nullable(good)
    field = good.field(lists[-1])
    changed = field.with_type(pa.list_(pa.field("element", _inner(field.type))))
    return good.set(lists[-1], changed), f"column {field.name} has type {changed.type}"


def _reordered(good: pa.Schema) -> Drift:
    names = [good.names[1], good.names[0], *good.names[2:]]
    return pa.schema([good.field(name) for name in names]), f"columns are in the order {names}, expected {good.names}."


def _inner(kind: pa.DataType) -> pa.DataType | None:
    return kind.value_type if pa.types.is_list(kind) else None


DRIFTS = (_missing, _extra, _renamed, _retyped, _as_text, _nullable, _nullable_inside, _reordered)


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: drift.__name__[1:])
def test_other_columns_are_named(drift: Callable[[pa.Schema], Drift], tmp_path: Path) -> None:
    """In each kind of table, by a manifest that agrees with the file."""
    for kind in KINDS:
        folder = tmp_path / kind
        publish(folder, kind)
        columns, words = drift(schema(kind))
        path = folder / f"{name_of(kind)}-00000.parquet"
        rewrite(path, [{name: row.get(name) for name in columns.names} for row in _rows(columns)], columns)
        stage = republish(folder).manifest.stage
        with pytest.raises(DataError) as caught:
            read(folder, kind)
        assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value), str(caught.value)
        assert str(caught.value).endswith(f" Run {stage} again.")
    record(7, len(KINDS), f"{drift.__name__[1:]} columns")


def _rows(columns: pa.Schema) -> list[dict[str, object]]:
    plain = pa.schema([field.with_type(pa.string()) if field.type == pa.large_string() else field for field in columns])
    return list(rows(plain, 20))


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    """By its names alone such a table has the columns of its schema."""
    for kind in KINDS:
        folder = tmp_path / kind
        publish(folder, kind)
        good = schema(kind)
        rewrite(folder / f"{name_of(kind)}-00000.parquet", list(rows(good, 20)), good.append(good.field(1)))
        republish(folder)
        with pytest.raises(DataError, match=rf"column {good.names[1]} appears twice\. "):
            read(folder, kind)
    record(7, len(KINDS), "a column twice")


@pytest.mark.parametrize("kind", ["completions", "weights", "replayed-completions", "buffer-completions"])
def test_rewards_that_the_manifest_does_not_name(kind: str, tmp_path: Path) -> None:
    """A table with a plug-in's reward under a manifest without it, and the other way round."""
    good = schema(kind)
    for number, (said, written) in enumerate(((("mine",), ()), ((), ("mine",)), (("mine",), ("other",)))):
        folder = tmp_path / str(number)
        columns = good
        for name in written:
            columns = columns.append(pa.field(f"reward_{name}", pa.float32()))

        def fill(output: object, columns: pa.Schema = columns, folder: Path = folder) -> None:
            rewrite(folder / f"{kind}-00000.parquet", list(rows(columns, 3)), columns)
            output.add_files(f"{kind}-00000.parquet")  # type: ignore[attr-defined]

        tiny_run.publish(Plan("rollout", folder, {}, 1, rewards=said), fill)
        words = "missing columns: reward_mine" if said else "unexpected columns: reward_mine"
        with pytest.raises(DataError, match=words):
            list(Source(folder).rows(kind))
    record(7, 3, "rewards")


@pytest.mark.parametrize("version", [0, 2, 99, "2", None])
def test_another_version_is_refused_before_anything_else(version: object, tmp_path: Path) -> None:
    for kind in KINDS:
        publish(tmp_path / kind, kind)
        path = tmp_path / kind / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
        with pytest.raises(DataError) as caught:
            Source(tmp_path / kind)
        assert str(caught.value).startswith(f"{path}: schema version {version} is not supported (expected 1). ")
    record(7, len(KINDS), "another version")
