"""Every kind of dataset that can be read, written here by other tools."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from PIL import Image

from dapo_stages.config import Config
from dapo_stages.data.raw_rows import PARTS, RawRow, RawSource
from dapo_stages.data.sources import open_source, source_files
from dapo_stages.data.splits import part_of
from dapo_stages.errors import DataError

Configure = Callable[..., Config]
Png = Callable[..., bytes]

COLORS = ["red", "lime", "blue", "black", "white"]  # lime is (0, 255, 0)


def everything(source: RawSource) -> list[RawRow]:
    return sorted((row for part in PARTS for row in source.rows(part)), key=lambda row: row.index)


def first_pixel(source: RawSource, row: RawRow, cell: Any) -> Any:
    image = source.image(row, cell)
    if isinstance(image, bytes):
        import io

        image = io.BytesIO(image)
    with Image.open(image) as image:
        return image.convert("RGB").getpixel((0, 0))


def check(source: RawSource) -> None:
    """Five rows in order, each with its own image."""
    rows = everything(source)
    assert [row.index for row in rows] == [0, 1, 2, 3, 4]
    assert [row.values["problem"] for row in rows] == [f"Which colour, {i}?" for i in range(5)]
    assert [row.values["solution"] for row in rows] == list("ABCDE")
    seen = [first_pixel(source, row, row.values["image"]) for row in rows]
    assert seen == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)]


def questions() -> list[dict[str, Any]]:
    return [{"problem": f"Which colour, {i}?", "solution": letter} for i, letter in enumerate("ABCDE")]


@pytest.fixture()
def loaded(png: Png) -> datasets.Dataset:
    """The five questions as a Dataset of the datasets library."""
    rows = questions()
    content = {key: [row[key] for row in rows] for key in rows[0]}
    content["image"] = [{"bytes": png(color), "path": None} for color in COLORS]
    features = {"problem": datasets.Value("string"), "solution": datasets.Value("string"), "image": datasets.Image()}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


@pytest.fixture()
def images(tmp_path: Path, png: Png) -> list[str]:
    """The images as files, and their names relative to tmp_path."""
    (tmp_path / "pics").mkdir()
    for color in COLORS:
        (tmp_path / "pics" / f"{color}.png").write_bytes(png(color))
    return [f"pics/{color}.png" for color in COLORS]


def test_a_parquet_file_written_by_datasets(loaded: datasets.Dataset, tmp_path: Path, configure: Configure) -> None:
    loaded.to_parquet(tmp_path / "a.parquet")
    check(open_source(configure(tmp_path / "a.parquet")))


def test_a_parquet_file_written_by_pandas(tmp_path: Path, png: Png, configure: Configure) -> None:
    rows = [{**row, "image": png(color)} for row, color in zip(questions(), COLORS, strict=True)]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    check(open_source(configure(tmp_path / "a.parquet")))


def test_a_folder_of_parquet_files(loaded: datasets.Dataset, tmp_path: Path, configure: Configure) -> None:
    loaded.select([0, 1, 2]).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    loaded.select([3, 4]).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    loaded.select([0]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("# cats")
    source = open_source(configure(tmp_path))
    check(source)
    assert sum(source.totals.values()) == 5
    assert len(everything(open_source(configure(tmp_path, split="test")))) == 1
    with pytest.raises(
        DataError, match=r"no files of the split validation \(there are files of test, train\)\. Set data\.split"
    ):
        open_source(configure(tmp_path, split="validation"))


def test_several_files_named_by_a_pattern(loaded: datasets.Dataset, tmp_path: Path, configure: Configure) -> None:
    loaded.select([0, 1, 2]).to_parquet(tmp_path / "a" / "1.parquet")
    loaded.select([3, 4]).to_parquet(tmp_path / "b" / "2.parquet")
    config = configure(tmp_path / "*" / "*.parquet")
    check(open_source(config))
    assert set(source_files(config.data)) == {"a/1.parquet", "b/2.parquet"}


@pytest.mark.parametrize("kind", ["jsonl", "json", "json of lines", "csv", "tsv"])
@pytest.mark.parametrize("by", ["file", "folder"])
def test_text_tables_name_images_in_their_folder(
    kind: str, by: str, tmp_path: Path, images: list[str], configure: Configure
) -> None:
    table = pd.DataFrame([{**row, "image": name} for row, name in zip(questions(), images, strict=True)])
    path = tmp_path / f"table.{kind.split()[0]}"
    if kind in ("csv", "tsv"):
        table.to_csv(path, index=False, quoting=csv.QUOTE_ALL, sep="\t" if kind == "tsv" else ",")
    else:
        table.to_json(path, orient="records", lines=kind != "json")
    check(open_source(configure(path if by == "file" else tmp_path)))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_image_folder_reads_as_datasets_reads_it(kind: str, tmp_path: Path, png: Png, configure: Configure) -> None:
    folder = tmp_path / "cats" / "train"
    folder.mkdir(parents=True)
    for color in COLORS:
        (folder / f"{color}.png").write_bytes(png(color))
    table = pd.DataFrame(questions()).assign(file_name=[f"{color}.png" for color in COLORS])
    if kind == "csv":
        table.to_csv(folder / "metadata.csv", index=False)
    else:
        table.to_json(folder / "metadata.jsonl", orient="records", lines=True)
    check(open_source(configure(tmp_path / "cats")))
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "cats"), split="train")
    assert set(open_source(configure(tmp_path / "cats")).columns) == set(theirs.column_names)


@pytest.mark.parametrize("several", [False, True])
def test_a_save_to_disk_folder(several: bool, loaded: datasets.Dataset, tmp_path: Path, configure: Configure) -> None:
    saved = datasets.DatasetDict({"train": loaded, "test": loaded.select([0])}) if several else loaded
    saved.save_to_disk(tmp_path / "saved")
    config = configure(tmp_path / "saved")
    check(open_source(config))
    assert source_files(config.data)
    if several:
        with pytest.raises(DataError, match=r": no split dev \(the splits are train, test\)\. Set data\.split"):
            open_source(configure(tmp_path / "saved", split="dev"))


@pytest.mark.parametrize("max_rows", [None, 4])
def test_a_hub_data_set_is_streamed_where_only_its_first_rows_are_wanted(
    max_rows: int | None, loaded: datasets.Dataset, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def load_dataset(name: str, **options: Any) -> Any:
        calls.append((name, options))
        return loaded.to_iterable_dataset() if options["streaming"] else loaded

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source(configure("cats/colours", max_rows=max_rows))
    if max_rows is None:
        check(source)
    assert [row.index for row in everything(source)] == list(range(max_rows or 5))
    assert calls == [("cats/colours", {"split": "train", "streaming": max_rows is not None})]


def test_images_of_a_hub_data_set_stay_encoded(
    loaded: datasets.Dataset, configure: Configure, monkeypatch: pytest.MonkeyPatch, png: Png
) -> None:
    several = loaded.map(lambda row: {"image": [row["image"], row["image"]]}, features=_list_of_images(loaded))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: several)
    source = open_source(configure("cats/colours"))
    cells = next(source.rows("train")).values["image"]
    assert [first_pixel(source, everything(source)[0], cell) for cell in cells] == [(255, 0, 0)] * 2
    assert all(isinstance(cell["bytes"], bytes) for cell in cells)


def _list_of_images(loaded: datasets.Dataset) -> datasets.Features:
    return datasets.Features({**loaded.features, "image": datasets.List(datasets.Image())})


def test_a_hub_that_cannot_be_reached_says_how_to_use_a_copy(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        open_source(configure("cats/colours-that-nobody-has"))
    message = str(caught.value)
    assert message.startswith("cats/colours-that-nobody-has: cannot reach the hub (ConnectionError: ")
    assert "--local-dir DIR`), copy it here and set data.source=DIR." in message


@pytest.mark.parametrize(
    "source", ["./gone", "gone.parquet", "/no/such/folder", "gone/*.jsonl", "~/no-such-folder-here"]
)
def test_a_path_that_is_not_there_is_no_hub_id(source: str, configure: Configure) -> None:
    with pytest.raises(DataError) as caught:
        open_source(configure(source))
    assert str(caught.value) == f"{source}: no such file or folder. Correct the path, or name another dataset."


def test_a_missing_column_is_named(loaded: datasets.Dataset, tmp_path: Path, configure: Configure) -> None:
    path = tmp_path / "a.parquet"
    loaded.rename_column("image", "photo").to_parquet(path)
    with pytest.raises(DataError) as caught:
        open_source(configure(path))
    assert str(caught.value) == (
        f"{path}: no column `image` with the image(s) (the columns are problem, solution, photo). "
        "Set data.columns.image=… to name the right column."
    )
    assert len(everything(open_source(configure(path, columns={"image": "photo"})))) == 5


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "saved"])
def test_an_empty_data_set_is_refused(
    name: str, loaded: datasets.Dataset, tmp_path: Path, configure: Configure
) -> None:
    path = tmp_path / name
    empty = loaded.select([])
    if name == "saved":
        empty.save_to_disk(path)
    elif name == "a.parquet":
        empty.to_parquet(path)
    else:
        path.write_text({"a.csv": "image,problem,solution\n", "a.json": "[]"}.get(name, ""))
    with pytest.raises(DataError) as caught:
        open_source(configure(path))
    assert str(caught.value) == f"{path}: the dataset has no rows. Set data.source to another one."


def test_a_folder_without_tables_is_refused(tmp_path: Path, configure: Configure) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(
        DataError, match=r": no table in the folder \(expected a \.parquet, \.jsonl, \.json, \.csv, \.tsv file"
    ):
        open_source(configure(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"image": 1}\n{"image"', "a.jsonl line 2: not valid JSON ("),
        ("a.jsonl", "[1]\n", "a.jsonl line 1: expected an object (a row), got a list"),
        ("a.json", "[1]", "a.json entry 0: expected an object (a row), got a int"),
        ("a.csv", "a,b\n1,2,3\n", "a.csv row 1: more cells than the header"),
        ("a.parquet", "PAR1", "the .parquet file is damaged ("),
        ("a.txt", "hello", "expected a file with the suffix .parquet, .jsonl, .json, .csv, .tsv, got .txt"),
    ],
)
def test_damaged_tables_are_named(name: str, content: str, message: str, tmp_path: Path, configure: Configure) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        everything(open_source(configure(tmp_path / name, columns={"problem": "image", "solution": "image"})))
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)


def test_a_link_inside_the_folder_is_read(tmp_path: Path, images: list[str], configure: Configure) -> None:
    os.symlink(tmp_path / images[0], tmp_path / "link.png")
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "link.png", "problem": "?", "solution": "A"}))
    source = open_source(configure(tmp_path / "a.jsonl"))
    raw = next(source.rows("train"))
    assert first_pixel(source, raw, raw.values["image"]) == (255, 0, 0)


def test_the_split_is_a_function_of_seed_and_row(configure: Configure) -> None:
    data = configure("x.parquet").data
    parts = [part_of(index, data) for index in range(20_000)]
    assert parts == [part_of(index, data) for index in range(20_000)]
    # 10 % of 20,000 with a standard deviation of sqrt(20000 · 0.1 · 0.9) = 42
    assert abs(parts.count("held_out") - 2000) < 4 * 42
    other = [part_of(index, configure("x.parquet", split_seed=7).data) for index in range(20_000)]
    both = sum(a == b == "held_out" for a, b in zip(parts, other, strict=True))
    assert abs(both - 200) < 4 * 14  # independent: 1 %


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("seed", [0, 42, -1])
def test_two_rows_are_enough_for_both_parts(fraction: float, seed: int, configure: Configure) -> None:
    data = configure("x.parquet", held_out_fraction=fraction, split_seed=seed).data
    assert {part_of(0, data), part_of(1, data)} == {"train", "held_out"}


def test_embedded_parts_are_streams_of_their_own(configure: Configure) -> None:
    source = open_source(configure("embedded", synthetic={"train": 30, "held_out": 20}))
    train, held_out = list(source.rows("train")), list(source.rows("held_out"))
    assert (len(train), len(held_out)) == (30, 20)
    images = [row.values["image"].tobytes() for row in [*train, *held_out]]
    assert len(set(images)) == 50
    fewer = open_source(configure("embedded", synthetic={"train": 5, "held_out": 20}))
    assert [row.values["image"].tobytes() for row in fewer.rows("held_out")] == images[30:]
    assert {row.slice for row in train} == {"prior-consistent", "prior-violating"}


def test_a_changed_file_is_another_input(tmp_path: Path, images: list[str], configure: Configure) -> None:
    table = tmp_path / "a.jsonl"
    table.write_text(json.dumps({"image": images[0], "problem": "?", "solution": "A"}))
    data = configure(tmp_path).data
    before = source_files(data)
    assert source_files(data) == before
    (tmp_path / images[0]).write_bytes(b"shorter")
    changed = source_files(data)
    table.write_text(json.dumps({"image": images[0], "problem": "?", "solution": "B"}))
    assert len({str(before), str(changed), str(source_files(data))}) == 3


def lines(path: Path, *problems: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"image": None, "problem": one, "solution": "1"}) + "\n" for one in problems))


@pytest.mark.parametrize(
    ("files", "split", "want"),
    [
        (["data/testmini-0.jsonl", "data/test-0.jsonl"], "testmini", ["data/testmini-0.jsonl"]),
        (["data/testmini-0.jsonl", "data/test-0.jsonl"], "test", ["data/test-0.jsonl"]),
        (["dev-0.jsonl", "validation-0.jsonl"], "validation", ["validation-0.jsonl"]),
        (["dev-0.jsonl", "test-0.jsonl"], "validation", ["dev-0.jsonl"]),
        (["train2014.jsonl", "val2014.jsonl"], "train", ["train2014.jsonl"]),
        (["train2014.jsonl", "val2014.jsonl"], "val2014", ["val2014.jsonl"]),
        (["vqa_trainset.jsonl", "vqa_testset.jsonl"], "test", ["vqa_testset.jsonl"]),
        (["a.jsonl", "b.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
    ],
)
def test_a_split_is_its_own_files(
    files: list[str], split: str, want: list[str], tmp_path: Path, configure: Configure
) -> None:
    for name in files:
        lines(tmp_path / name, name)
    assert [row.values["problem"] for row in everything(open_source(configure(tmp_path, split=split)))] == want


def test_tables_of_another_kind_are_named(tmp_path: Path, configure: Configure) -> None:
    lines(tmp_path / "a.jsonl", "one")
    (tmp_path / "b.csv").write_text("image,problem,solution\n,two,1\n")
    (tmp_path / "metadata.json").write_text('{"name": "mine", "version": 1}')
    source = open_source(configure(tmp_path))
    assert [row.values["problem"] for row in everything(source)] == ["one"] and source.unread == ("b.csv",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image;problem;solution\n;How many?;3\n"),
        ("a.json", json.dumps({name: {"image": None, "problem": "How many?", "solution": "3"} for name in "79"})),
    ],
)
def test_tables_of_spreadsheets_and_objects_by_id(name: str, text: str, tmp_path: Path, configure: Configure) -> None:
    (tmp_path / name).write_text(text)
    rows = everything(open_source(configure(tmp_path / name)))
    assert {(row.values["problem"], str(row.values["solution"])) for row in rows} == {("How many?", "3")}
