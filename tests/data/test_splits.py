"""Training and held-out rows: fractions, a held-out source, splits by image, several datasets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapo_stages.config import Config
from dapo_stages.data.raw_rows import RawRow
from dapo_stages.data.sources import OpenedPart, open_parts, source_files
from dapo_stages.errors import DataError

Configure = Callable[..., Config]


def write(path: Path, number: int, **cells: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image": f"{at // 3}.png", "problem": f"A or B, {at}?", "solution": "A", **cells} for at in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(config: Config) -> dict[tuple[str, str], list[RawRow]]:
    """(part, dataset) -> its rows."""
    return {(one.part, one.name): list(one.source.rows(one.part)) for one in open_parts(config)}


@pytest.mark.parametrize(("fraction", "train", "held_out"), [(0, 9, 0), (1, 0, 9), (0.0, 9, 0), (1.0, 0, 9)])
def test_nothing_or_everything_is_held_out(
    fraction: float, train: int, held_out: int, tmp_path: Path, configure: Configure
) -> None:
    found = rows_of(configure(write(tmp_path / "a.jsonl", 9), held_out_fraction=fraction))
    assert (len(found["train", ""]), len(found["held_out", ""])) == (train, held_out)


def test_a_source_of_its_own_is_held_out_whole(tmp_path: Path, configure: Configure) -> None:
    bench = write(tmp_path / "bench.jsonl", 4, problem="bench: A or B?")
    config = configure(write(tmp_path / "a.jsonl", 9), held_out_source=str(bench), max_rows=5)
    found = rows_of(config)
    assert (len(found["train", ""]), len(found["held_out", ""])) == (5, 4)
    assert {row.values["problem"] for row in found["held_out", ""]} == {"bench: A or B?"}
    assert source_files(config.data).keys() == {"a.jsonl", ":held_out:bench.jsonl"}


def test_a_split_of_the_same_source_is_held_out(tmp_path: Path, configure: Configure) -> None:
    write(tmp_path / "train.jsonl", 9)
    write(tmp_path / "test.jsonl", 4, problem="test: A or B?")
    found = rows_of(configure(tmp_path, held_out_split="test"))
    assert (len(found["train", ""]), len(found["held_out", ""])) == (9, 4)
    with pytest.raises(DataError, match=r"no files of the split dev .* data\.held_out_split is for held-out rows"):
        open_parts(configure(tmp_path, held_out_split="dev"))


def test_questions_about_an_image_stay_together(tmp_path: Path, configure: Configure) -> None:
    path = write(tmp_path / "a.jsonl", 600)
    by_row = rows_of(configure(path, held_out_fraction=0.3))
    by_image = rows_of(configure(path, held_out_fraction=0.3, split_by="image"))
    images = {part: {row.values["image"] for row in rows} for (part, _), rows in by_image.items()}
    assert not images["train"] & images["held_out"]
    assert {row.values["image"] for row in by_row["train", ""]} & {
        row.values["image"] for row in by_row["held_out", ""]
    }
    assert sum(map(len, by_image.values())) == 600
    assert 120 <= len(by_image["held_out", ""]) <= 240  # 180 expected, ± 4 standard deviations of 200 images
    # The first image is for training, the second one held out, as with rows.
    assert [row.values["image"] for row in by_image["train", ""][:3]] == ["0.png"] * 3
    assert [row.values["image"] for row in by_image["held_out", ""][:3]] == ["1.png"] * 3


def test_several_datasets_have_their_own_settings(tmp_path: Path, configure: Configure) -> None:
    write(tmp_path / "cats.jsonl", 9)
    write(tmp_path / "dogs/train.jsonl", 6, question="dogs: A or B?")
    write(tmp_path / "dogs/test.jsonl", 2, question="dogs: A or B?")
    sources = {
        "cats": {"source": str(tmp_path / "cats.jsonl"), "held_out_fraction": 0, "max_rows": 5},
        "dogs": {
            "source": str(tmp_path / "dogs"),
            "held_out_split": "test",
            "columns": {"problem": "question"},
            "system_prompt": "Bark.",
        },
    }
    config = configure("ignored", sources=sources)
    opened = open_parts(config)
    assert [(one.part, one.name) for one in opened] == [
        ("train", "cats"), ("train", "dogs"), ("held_out", "cats"), ("held_out", "dogs")
    ]  # fmt: skip
    assert [len(list(one.source.rows(one.part))) for one in opened] == [5, 6, 0, 2]

    def dogs(part: OpenedPart) -> tuple[str, str | None]:
        return part.data.columns.problem, part.data.system_prompt

    assert [dogs(one) for one in opened] == 2 * [("problem", None), ("question", "Bark.")]
    files = {"cats:cats.jsonl", "dogs:train.jsonl", "dogs:held_out:test.jsonl"}
    assert files == {name for name in source_files(config.data) if not name.endswith("other files")}


@pytest.mark.parametrize("name", ["", "a b", "../x", "7", "a" * 65])
def test_names_of_datasets_become_parts_of_ids(name: str, configure: Configure) -> None:
    with pytest.raises(ValueError, match=r"data\.sources"):
        configure("x", sources={name: {"source": "x"}})
