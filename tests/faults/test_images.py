"""A bad image costs a row, not the run; one that is only unusual is read as it is meant."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.words import WordProcessor

from dapo_stages.handoff.manifests import Source, read_manifest
from dapo_stages.handoff.shards import Row
from faults import data_sets
from faults.images import noise, readable, saved, unreadable
from faults.table import record

ROW = 10
PLAIN = [saved(Image.fromarray(noise(seed))) for seed in (7, 8, 9)]
# Cells that name a file beside the table -> a pattern of the reason.
BAD_FILES = {
    "a file that is not there": ("gone.png", "the image file does not exist"),
    "a folder": ("folder.png", "the image file does not exist"),
    "a web page named .png": ("page.png", r"not an image \(\d+ bytes\)"),
    "an empty file": ("empty.png", r"the image is empty \(0 bytes\)"),
    "no image": (None, "expected an image, got NoneType 'None'"),
    "a file that may not be read": ("closed.png", r".*Permission denied.*|no permission.*"),
}


@pytest.fixture(scope="module")
def without_model() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dapo_stages.stages.prepare_data._processor", lambda *_: WordProcessor())
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the table and the files it names lie."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "folder.png").mkdir()
    (folder / "page.png").write_bytes(b"<html></html>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "closed.png").write_bytes(PLAIN[0])
    (folder / "closed.png").chmod(0)
    (folder / "jpeg.png").write_bytes(saved(Image.fromarray(noise()), "JPEG"))
    return folder


def bad_cells() -> dict[str, tuple[data_sets.Cell, str]]:
    found = {**unreadable(), **BAD_FILES}
    if os.geteuid() == 0:  # who may read everything
        del found["a file that may not be read"]
    return found


def prompts(data: Path) -> dict[int, Row]:
    """Rows by their number in the source."""
    source = Source(data)
    rows = [row for kind in ("train", "held_out") for row in source.rows(kind)]
    return {int(row["prompt_id"].split("-")[1]): row for row in rows}


def pixels(row: Row) -> np.ndarray:
    with Image.open(io.BytesIO(row["images"][0]["bytes"])) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


@pytest.fixture(scope="module")
def all_of_them(folder: Path, without_model: None) -> dict[str, Any]:
    """One dataset: plain rows, then bad and readable ones in turn, then plain ones."""
    good, bad = readable(), bad_cells()
    cells: list[tuple[str, data_sets.Cell]] = [("plain 0", PLAIN[0]), ("plain 1", PLAIN[1])]
    cells += [(name, cell) for name, (cell, _) in bad.items()]
    cells += [(name, data) for name, (data, _) in good.items()]
    cells += [("a JPEG named .png", "jpeg.png"), ("plain 2", PLAIN[2])]
    data_sets.write_rows(folder / "rows.parquet", [cell for _, cell in cells])
    result = data_sets.prepare(folder / "rows.parquet", folder / "run")
    assert result.code == 0, result.stderr
    return {
        "names": [name for name, _ in cells],
        "rows": prompts(folder / "run/data"),
        "counts": read_manifest(folder / "run/data").counts,
        "said": result.stderr,
    }


@pytest.mark.parametrize("name", readable())
def test_an_unusual_image_is_read_as_it_is_meant(name: str, all_of_them: dict[str, Any]) -> None:
    expected = readable()[name][1]
    found = pixels(all_of_them["rows"][all_of_them["names"].index(name)])
    assert found.shape == expected.shape and (found == expected).all()
    record(ROW, 1)


def test_the_name_of_a_file_says_nothing(all_of_them: dict[str, Any]) -> None:
    found = pixels(all_of_them["rows"][all_of_them["names"].index("a JPEG named .png")])
    with Image.open(io.BytesIO(saved(Image.fromarray(noise()), "JPEG"))) as image:
        assert (found == np.asarray(image)).all()
    record(ROW, 1)


def test_bad_images_cost_their_rows_which_are_counted_and_named(all_of_them: dict[str, Any]) -> None:
    names, counts = all_of_them["names"], all_of_them["counts"]
    assert set(range(len(names))) - all_of_them["rows"].keys() == {names.index(name) for name in bad_cells()}
    assert counts["dropped_images"] == len(bad_cells()) and counts["dropped_other"] == counts["dropped_long"] == 0
    assert len(counts["dropped_rows"]) == 5 and all(re.search(r"row \d+", why) for why in counts["dropped_rows"])
    assert f"dropped_images {len(bad_cells())}" in all_of_them["said"]


def test_other_rows_are_the_same_as_without_them(
    all_of_them: dict[str, Any], tmp_path: Path, without_model: None
) -> None:
    data_sets.write_rows(tmp_path / "rows.parquet", PLAIN)
    assert data_sets.prepare(tmp_path / "rows.parquet", tmp_path).code == 0
    alone = prompts(tmp_path / "data")
    for number, row in alone.items():
        beside = all_of_them["rows"][all_of_them["names"].index(f"plain {number}")]
        kept = ("images", "problem", "solution", "prompt_text", "prompt_ids")
        assert {key: row[key] for key in kept} == {key: beside[key] for key in kept}


@pytest.mark.parametrize("name", bad_cells())
def test_the_reason_is_said(name: str, folder: Path, tmp_path: Path, without_model: None) -> None:
    cell, words = bad_cells()[name]
    table = data_sets.write_rows(folder / "one.parquet", [PLAIN[0], PLAIN[1], cell, PLAIN[2]])
    result = data_sets.prepare(table, tmp_path, "--set", "data.on_bad_image=error")
    assert (result.code, result.stdout) == (3, "")
    where = re.escape(f"{table} row 2") + (f": {re.escape(str(cell))}" if isinstance(cell, str) else "")
    advice = r"Fix the row, or set data\.on_bad_image=skip to leave such rows out\."
    assert re.fullmatch(rf"{where}: {words}\. {advice}", result.stderr.splitlines()[-1])
    assert not (tmp_path / "data").exists()
    record(ROW, 1)


def test_nothing_but_bad_images_is_an_error(tmp_path: Path, without_model: None) -> None:
    table = data_sets.write_rows(tmp_path / "rows.parquet", [b"no", b"no", b"no"])
    result = data_sets.prepare(table, tmp_path)
    assert result.code == 3
    said = f"{table}: none of 3 rows is usable for train ({table} row 0: "
    assert result.stderr.splitlines()[-1].startswith(said)
