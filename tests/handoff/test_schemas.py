"""Files of every schema, read by the tools that others use."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import datasets
import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from reporting import tiny_run
from support.rows import IMAGE, image, rows

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import LATER, SCHEMA_VERSION, SCHEMAS, of_file, schema_of
from dapo_stages.handoff.shards import ShardReader, write_shard

KINDS = sorted(SCHEMAS)
WITH_IMAGES = [kind for kind in KINDS if "images" in SCHEMAS[kind].names]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of three rows for each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    paths = {kind: folder / f"{kind}-00000.parquet" for kind in KINDS}
    for kind, path in paths.items():
        write_shard(path, schema_of(kind), rows(schema_of(kind), 3))
    return paths


def features(schema: pa.Schema) -> datasets.Features:
    """The columns in the words of datasets: the type of each leaf, images as Image."""

    def of(kind: pa.DataType) -> object:
        if pa.types.is_list(kind):
            return datasets.List(of(kind.value_type))
        return datasets.Image() if pa.types.is_struct(kind) else datasets.Value(_DTYPES.get(str(kind), str(kind)))

    return datasets.Features({field.name: of(field.type) for field in schema})


_DTYPES = {"float": "float32", "double": "float64", "halffloat": "float16"}


def test_the_kinds_with_images_are_those_that_hold_prompts() -> None:
    assert WITH_IMAGES == ["buffer", "held_out", "prompts", "replayed-prompts", "train"]


@pytest.mark.parametrize("kind", WITH_IMAGES)
def test_metadata_is_what_datasets_itself_would_write(kind: str) -> None:
    written = features(SCHEMAS[kind]).arrow_schema.metadata[b"huggingface"]
    assert json.loads(SCHEMAS[kind].metadata[b"huggingface"]) == json.loads(written)


@pytest.mark.parametrize("kind", WITH_IMAGES)
def test_images_lie_in_the_order_and_nullability_of_datasets(kind: str) -> None:
    assert SCHEMAS[kind].field("images").type.value_type == datasets.Image().pa_type


@pytest.mark.parametrize("kind", KINDS)
def test_the_version_is_in_every_file(kind: str, files: dict[str, Path]) -> None:
    assert pq.read_schema(files[kind]).metadata[b"dapo_stages.schema_version"] == b"1"
    assert SCHEMA_VERSION == 1


@pytest.mark.parametrize("kind", KINDS)
def test_pandas_reads_every_kind(kind: str, files: dict[str, Path]) -> None:
    frame = pd.read_parquet(files[kind])
    assert list(frame.columns) == SCHEMAS[kind].names
    for column, wanted in _columns(kind).items():
        assert [_plain(value) for value in frame[column]] == wanted, column


@pytest.mark.parametrize("kind", KINDS)
def test_duckdb_reads_every_kind(kind: str, files: dict[str, Path]) -> None:
    found = duckdb.execute("select * from read_parquet(?)", [str(files[kind])])
    names = [column[0] for column in found.description]
    assert names == SCHEMAS[kind].names
    values = dict(zip(names, zip(*found.fetchall(), strict=True), strict=True))
    for column, wanted in _columns(kind).items():
        assert [_plain(value) for value in values[column]] == wanted, column


@pytest.mark.parametrize("kind", KINDS)
def test_datasets_reads_every_kind(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    table = datasets.load_dataset("parquet", data_files=str(files[kind]), cache_dir=str(tmp_path), split="train")
    assert table.column_names == SCHEMAS[kind].names
    for column, wanted in _columns(kind).items():
        if column != "images":
            assert [_plain(value) for value in table[column]] == wanted, column
    if kind in WITH_IMAGES:
        images = [image for row in table["images"] for image in row]
        assert len(images) == 9
        assert all(isinstance(image, Image.Image) and image.size == IMAGE for image in images)


def test_patch_attention_of_sixteen_bits_is_readable_in_duckdb(files: dict[str, Path]) -> None:
    query = "select patch_attention_all from read_parquet(?)"
    (first,) = duckdb.execute(query, [str(files["attention"])]).fetchone() or ((),)
    assert first == [[0.0, 0.25, 0.5], [0.25, 0.5, 0.75], [0.5, 0.75, 1.0]]


def test_a_stored_image_is_the_file_that_was_put_in(files: dict[str, Path]) -> None:
    row = pd.read_parquet(files["train"])["images"][1]
    assert row[0]["bytes"] == image(1)
    assert Image.open(io.BytesIO(row[0]["bytes"])).size == IMAGE


@pytest.mark.parametrize("kind", KINDS)
def test_plug_in_rewards_get_a_column_where_rewards_are(kind: str) -> None:
    extra = [name for name in schema_of(kind, ("style",)).names if name not in SCHEMAS[kind].names]
    rewarded = {"completions", "weights", "replayed-completions", "buffer-completions"}
    assert extra == (["reward_style"] if kind in rewarded else [])


# Required by the contract of the files: name and type of each column, in any position.
CONTRACT = {
    "prompts": "group_id string, prompt_id string, iteration int32, problem string, solution string, "
    "prompt_text string, prompt_ids list<element: int32 not null>, "
    "image_grid_thw list<element: list<element: int32 not null> not null>, source string, round int32, "
    "num_correct int32, kept bool",
    "completions": "completion_id string, group_id string, sample int32, text string, "
    "completion_ids list<element: int32 not null>, token_texts list<element: string not null>, "
    "sampling_logprobs list<element: float not null>, finish_reason string, engine string, policy_version int32, "
    "reward_accuracy float, reward_format float, reward_overlong float",
    "attention": "completion_id string, status string, vgr list<element: float not null>, num_text_tokens int32, "
    "num_vision_tokens int32",
    "weights": "completion_id string, group_id string, source string, source_iteration int32, reward float, "
    "reward_vgr float, reward_phase string, advantage float, token_weights list<element: float not null>, "
    "in_loss bool, why string",
}


@pytest.mark.parametrize("kind", CONTRACT)
def test_columns_have_the_names_and_types_that_were_promised(kind: str) -> None:
    found = {f"{field.name} {field.type}" for field in SCHEMAS[kind]}
    assert set(CONTRACT[kind].split(", ")) <= found


@pytest.mark.parametrize("segment", ["early", "middle", "late", "all"])
def test_attention_has_every_figure_of_every_segment(segment: str) -> None:
    schema = SCHEMAS["attention"]
    for name in ("vgr", "aei_text", "aei_vision", "attn_text", "attn_vision"):
        assert schema.field(f"{name}_{segment}").type == pa.float32()
    assert str(schema.field(f"patch_attention_{segment}").type.value_type.value_type) == "halffloat"


# Columns that came later

WITH_LATER = sorted(kind for kind in SCHEMAS if LATER & set(SCHEMAS[kind].names) and kind != "evaluation")


def of_before(kind: str) -> list[str]:
    """The columns that files of a kind had at first."""
    return [name for name in SCHEMAS[kind].names if name not in LATER]


def test_columns_that_came_later_may_be_null() -> None:
    completions = ["buffer-completions", "completions", "replayed-completions"]
    prompts = ["held_out", "prompts", "replayed-prompts", "train"]
    assert sorted([*completions, *prompts, "attention", "buffer"]) == WITH_LATER
    later = {"draws", "answer", "read_from", "row", "informative", "loss_mask", "frame_seconds", "attn_vision_by_image"}
    later |= {"token_vgr_early", "token_vgr_middle", "token_vgr_late", "token_vgr_layers", "vgr_layers"}
    assert later | {"blank_entropy", "jsd", "k3", "vision_cosine", "rollout_mass", "vision_gradient"} == LATER
    for kind in WITH_LATER:
        assert all(SCHEMAS[kind].field(name).nullable for name in LATER & set(SCHEMAS[kind].names))
        assert SCHEMAS[kind].names[: len(of_before(kind))] == of_before(kind)


@pytest.mark.parametrize("kind", WITH_LATER)
def test_a_file_without_later_columns_is_read_as_if_they_were_null(kind: str, tmp_path: Path) -> None:
    old = [{name: row[name] for name in of_before(kind)} for row in rows(SCHEMAS[kind], 20)]
    want = [row | dict.fromkeys(LATER & set(SCHEMAS[kind].names)) for row in old]
    reopened: list[object] = []

    def fill(output: Output) -> None:
        output.write(kind, 0, old)
        reopened.extend(output.reopen(kind, 0))

    tiny_run.publish(Plan("weight-tokens", tmp_path / "out", {}, 1), fill)
    path = tmp_path / "out" / f"{kind}-00000.parquet"
    assert pq.read_schema(path).names == of_before(kind)
    source = Source(tmp_path / "out")
    assert list(source.rows(kind)) == reopened == want
    later = sorted(LATER & set(SCHEMAS[kind].names))
    assert list(source.rows(kind, later)) == [dict.fromkeys(later)] * 20
    key = next(name for name in ("group_id", "prompt_id", "completion_id") if name in SCHEMAS[kind].names)
    assert list(source.rows(kind, [key])) == [{key: row[key]} for row in old]
    with source.lookup(kind, key) as table, source.index(kind) as index:
        assert table.one(str(old[17][key])) == want[17] == index[17]


def test_a_file_without_later_columns_is_the_one_of_before(tmp_path: Path) -> None:
    """Byte for byte, what is said to datasets included: a schema made here from the names of before."""
    kind = "buffer"
    fields = [SCHEMAS[kind].field(name) for name in of_before(kind)]
    information = features(pa.schema(fields)).arrow_schema.metadata[b"huggingface"]
    for made in ([], [{name: row[name] for name in of_before(kind)} for row in rows(SCHEMAS[kind], 2)]):
        fill = partial(Output.write, kind=kind, index=0, rows=made)
        tiny_run.publish(Plan("weight-tokens", tmp_path / "out", {}, 1), fill)
        found = pq.read_schema(tmp_path / "out/buffer-00000.parquet")
        assert found.equals(pa.schema(fields)) and json.loads(found.metadata[b"huggingface"]) == json.loads(information)


def test_rows_with_a_later_column_give_files_with_it(tmp_path: Path) -> None:
    made = list(rows(SCHEMAS["buffer"], 2))
    tiny_run.publish(Plan("weight-tokens", tmp_path / "out", {}, 1), lambda output: output.write("buffer", 0, made))
    assert pq.read_schema(tmp_path / "out/buffer-00000.parquet").equals(SCHEMAS["buffer"])
    assert list(Source(tmp_path / "out").rows("buffer")) == made


def test_a_file_without_a_column_of_before_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "buffer-00000.parquet"
    fewer = of_file(SCHEMAS["buffer"], ()).remove(3)
    write_shard(path, fewer, [{name: row[name] for name in fewer.names} for row in rows(SCHEMAS["buffer"], 2)])
    with pytest.raises(DataError, match=rf"missing columns: images \(found {len(fewer)} columns\)"):
        ShardReader(path, SCHEMAS["buffer"], "weight-tokens")


def _columns(kind: str) -> dict[str, list[object]]:
    made = list(rows(SCHEMAS[kind], 3))
    return {name: [row[name] for row in made] for name in SCHEMAS[kind].names}


def _plain(value: object) -> object:
    """Arrays as lists, at any depth."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list) else value
