"""The datasets of the task easy-vqa, made from a package of the same form with a few questions written by hand."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.easy_vqa import make_dataset

Question = tuple[str, str, int]
TRAINING: list[Question] = [
    ("what is the blue shape?", "rectangle", 0),
    ("what color is the shape?", "blue", 0),
    ("is there a triangle in the image?", "no", 0),
    ("what color is the triangle?", "teal", 1),
    ("what shape is present?", "triangle", 1),
    ("is no teal shape present?", "no", 1),
    ("what color is the shape?", "gray", 2),  # of which shape, no question says
]


def package(folder: Path, training: list[Question], test: list[Question]) -> Path:
    for part, questions in (("train", training), ("test", test)):
        place = folder / "easy_vqa/data" / part
        (place / "images").mkdir(parents=True)
        (place / "questions.json").write_text(json.dumps(questions))
        for number in {number for _, _, number in questions}:
            (place / f"images/{number}.png").write_bytes(f"{part} {number}".encode())
    return folder


def by_problem(rows: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    return {(row["problem"], row["solution"]): row["slice"] for row in rows}


def test_questions_say_whether_they_contradict_the_habit(tmp_path: Path) -> None:
    rows = make_dataset.datasets(package(tmp_path, TRAINING, TRAINING))["questions"]
    assert by_problem(rows) == {
        ("what is the blue shape?", "rectangle"): "prior-consistent, shape",
        ("what color is the shape?", "blue"): "prior-violating, color",  # usually yellow
        ("what color is the triangle?", "teal"): "prior-violating, color",  # usually green
        ("what shape is present?", "triangle"): "prior-consistent, shape",
        ("what color is the shape?", "gray"): "prior-violating, color",
    }
    assert {row["image"]["bytes"] for row in rows} == {b"train 0", b"train 1", b"train 2"}


def test_a_wheel_is_read_like_its_folder(tmp_path: Path) -> None:
    folder, wheel = package(tmp_path / "unpacked", TRAINING, TRAINING), tmp_path / "easy_vqa.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    assert make_dataset.datasets(wheel) == make_dataset.datasets(folder)


def test_each_held_out_answer_about_a_subject_is_as_frequent_as_any_other(tmp_path: Path) -> None:
    # 9 of one answer and 12 of the other: 8 of each are kept of colors, 6 of shapes by color, all of any shape.
    ways = [
        ("what color is the circle?", "red", "teal"),
        ("what is the red shape?", "circle", "triangle"),
        ("what shape is in the image?", "circle", "triangle"),
    ]
    test = [
        (text, answer, number)
        for text, one, two in ways
        for answer, times in ((one, 9), (two, 12))
        for number in range(times)
    ]
    rows = make_dataset.datasets(package(tmp_path, TRAINING, test))["held-out"]
    counted = Counter((row["problem"], row["solution"]) for row in rows)
    assert counted == {
        ("what color is the circle?", "red"): 8,
        ("what color is the circle?", "teal"): 8,
        ("what is the red shape?", "circle"): 6,
        ("what is the red shape?", "triangle"): 6,
        ("what shape is in the image?", "circle"): 9,
        ("what shape is in the image?", "triangle"): 12,
    }
    assert all(row["image"]["bytes"].startswith(b"test") for row in rows)


def test_lessons_are_captions_and_answers_of_which_some_are_by_hearsay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = [("what color is the circle?", "teal", number) for number in range(1000)]
    training.append(("what color is the shape?", "gray", 1000))
    monkeypatch.setattr(make_dataset, "TRAIN", 0)
    lessons = make_dataset.datasets(package(tmp_path, training, []))["lessons"]
    assert len(lessons) == 1000  # an image whose shape is unknown is no lesson
    said = Counter((row["problem"], row["solution"]) for row in lessons)
    captions = said.pop(("what is in the image?", "teal circle"))
    right = said.pop(("what color is the circle?", "teal"))
    usual = said.pop(("what color is the circle?", "red"))
    assert not said
    for row in lessons:  # what is said before fits
        color = row["solution"].removesuffix(" circle")
        assert row["seen"] in (f"I see a {color} circle.", f"The circle is {color}.", f"This circle looks {color}.")
    # Within four standard deviations of the shares of the module, of a binomial distribution.
    for found, of, share in ((captions, 1000, make_dataset.CAPTIONS), (usual, right + usual, make_dataset.HEARSAY)):
        assert abs(found / of - share) < 4 * (share * (1 - share) / of) ** 0.5
