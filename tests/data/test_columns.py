"""Columns of other people's datasets, as questions."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dapo_stages.config import ColumnsConfig
from dapo_stages.data.columns import check_columns, question_of, wanted_columns
from dapo_stages.data.conversations import UnusableRow
from dapo_stages.errors import DataError

NAMES = ColumnsConfig.model_validate({})


def columns(**names: Any) -> ColumnsConfig:
    return ColumnsConfig.model_validate(names)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("conversation", "system", "turns"),
    [
        pytest.param([user("Why?")], None, [("user", "Why?")], id="text"),
        pytest.param("Why?", None, [("user", "Why?")], id="a bare string"),
        pytest.param(
            [{"role": "system", "content": "Be brief."}, user("Why?")], "Be brief.", [("user", "Why?")], id="system"
        ),
        pytest.param([user("Why?"), {"role": "assistant", "content": "B"}], None, [("user", "Why?")], id="answered"),
        pytest.param(
            [
                user(
                    [
                        {"type": "text", "text": "Is "},
                        {"type": "image"},
                        {"type": "text", "text": " red?"},
                    ]
                )
            ],
            None,
            [("user", "Is <image> red?")],
            id="parts",
        ),
        pytest.param(
            [user("A?"), {"role": "assistant", "content": "no"}, user("B?")],
            None,
            [("user", "A?"), ("assistant", "no"), ("user", "B?")],
            id="several turns",
        ),
    ],
)
@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_a_conversation_becomes_turns(column: str, conversation: Any, system: str | None, turns: list[Any]) -> None:
    question = question_of({column: conversation, "image": None, "solution": "B"}, NAMES)
    assert (question.system, question.turns) == (system, turns)


def test_the_problem_of_a_conversation_is_what_the_user_says() -> None:
    conversation = [{"role": "system", "content": "s"}, user("A?"), {"role": "assistant", "content": "no"}, user("B?")]
    assert question_of({"prompt": conversation, "solution": "B"}, NAMES).problem == "A?\n\nB?"


def test_a_problem_wins_over_a_conversation_and_an_empty_one_does_not() -> None:
    row = {"problem": "P?", "chat": [user("C?")], "solution": "B"}
    names = columns(messages="chat")
    assert question_of(row, names).problem == "P?"
    assert question_of({**row, "problem": None}, names).problem == "C?"
    assert question_of({**row, "problem": [user("L?")]}, names).problem == "L?"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"problem": "P?", "solution": None}, "no solution"),
        ({"problem": "P?", "solution": "  "}, "no solution"),
        ({"problem": "P?", "solution": ["", None]}, "no solution"),
        ({"problem": "", "solution": "A"}, "no problem"),
        ({"problem": None, "solution": "A"}, "no problem"),
        (
            {"prompt": [{"role": "assistant", "content": "A"}], "solution": "A"},
            "does not end with a question from the user",
        ),
        (
            {"prompt": [user("a"), {"role": "tool", "content": "x"}, user("b")], "solution": "A"},
            "messages with the role tool",
        ),
        ({"prompt": 3, "solution": "A"}, "not a list of messages"),
        ({"problem": "half \ud800", "solution": "A"}, "a lone surrogate"),
    ],
)
def test_rows_without_question_or_answer_are_unusable(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        question_of(row, NAMES)


@pytest.mark.parametrize(
    ("cell", "images"),
    [
        (None, []),
        ("", []),
        ("a.png", ["a.png"]),
        (b"x", [b"x"]),
        (["a", "b"], ["a", "b"]),
        ('["a.png", "b.png"]', ["a.png", "b.png"]),
        ("[a].png", ["[a].png"]),
    ],
)
def test_an_image_column_holds_one_image_or_a_list(cell: Any, images: list[Any]) -> None:
    assert question_of({"problem": "P?", "image": cell, "solution": "A"}, NAMES).images == images


def test_renamed_columns_are_found() -> None:
    names = columns(image="pic", problem="q", solution="a", slice="kind")
    question = question_of({"pic": "x.png", "q": "Q?", "a": 3, "kind": "hard"}, names)
    assert (question.images, question.problem, question.solution, question.slice) == (["x.png"], "Q?", "3", "hard")
    assert {"pic", "q", "a", "kind"} <= wanted_columns(names)


def test_further_slices_are_kept_by_column() -> None:
    names = columns(slices=["level", "year", "gone"])
    values = {"problem": "Q?", "solution": "A", "level": "hard", "year": 2024, "gone": None}
    assert question_of(values, names).labels == {"level": "hard", "year": "2024"}
    assert {"level", "year", "gone"} <= wanted_columns(names)


def test_a_missing_column_is_named_with_the_key_to_set() -> None:
    with pytest.raises(DataError) as caught:
        check_columns("cats.parquet", ["image0", "problem", "solution"], NAMES)
    assert str(caught.value) == (
        "cats.parquet: no column `image` with the image(s) (the columns are image0, problem, solution). "
        "Set data.columns.image=image0 to name the right column."
    )


def test_images_stands_in_for_image() -> None:
    check_columns("cats", ["images", "problem", "solution"], NAMES)
    assert question_of({"images": ["a.png"], "problem": "P?", "solution": "A"}, NAMES).images == ["a.png"]
    both = {"image": "b.png", "images": ["a.png"], "problem": "P?", "solution": "A"}
    assert question_of(both, NAMES).images == ["b.png"]


@pytest.mark.parametrize(
    ("present", "names", "key"),
    [
        (["image", "problem", "answer"], NAMES, "data.columns.solution=answer"),
        (["image", "question", "solution"], NAMES, "data.columns.problem="),
        (["image", "problem", "said"], NAMES, "data.columns.solution=…"),
        (["image_1", "image_2", "problem", "solution"], NAMES, "data.columns.image=[image_1,image_2]"),
        (["image", "problem", "solution"], columns(options="letters"), "data.columns.options=…"),
        (["image", "problem", "solution"], columns(messages="chat"), "data.columns.messages=…"),
        (["image", "problem", "solution"], columns(slice="level"), "data.columns.slice=…"),
        (["image", "problem", "solution"], columns(slices=("level",)), "data.columns.slices=…"),
    ],
)
def test_each_column_has_its_key(present: list[str], names: ColumnsConfig, key: str) -> None:
    with pytest.raises(DataError) as caught:
        check_columns("cats", present, names)
    assert key in str(caught.value)


def test_a_conversation_column_stands_in_for_the_problem() -> None:
    check_columns("cats", ["image", "prompt", "solution"], NAMES)
    check_columns("cats", ["image", "messages", "solution"], NAMES)


NAN = float("nan")


@pytest.mark.parametrize("missing", [None, NAN, Decimal("nan"), np.float64("nan"), pd.NaT, "", " \n\t", [NAN], [None]])
def test_a_missing_answer_is_no_answer(missing: Any) -> None:
    with pytest.raises(UnusableRow, match="no solution"):
        question_of({"problem": "What?", "solution": missing}, ColumnsConfig())


@pytest.mark.parametrize("missing", [None, NAN, "", "  "])
def test_a_missing_question_is_no_question(missing: Any) -> None:
    with pytest.raises(UnusableRow, match="no problem"):
        question_of({"problem": missing, "solution": "A"}, ColumnsConfig())


def test_missing_cells_are_nothing_wherever_they_stand() -> None:
    names = ColumnsConfig(slice="kind", slices=("level",))
    turns = [
        {"role": "user", "content": NAN},
        {"role": "user", "content": ["What", {"type": "text", "text": NAN}, "?"]},
    ]
    cells = {"problem": NAN, "prompt": turns, "image": NAN, "solution": "A", "kind": NAN, "level": NAN}
    names = names.model_copy(update={"messages": "prompt"})
    question = question_of(cells, names)
    assert question.turns == [("user", ""), ("user", "What?")]
    assert (question.images, question.slice, question.labels) == ([], "", {})


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (2.0, "2"),
        (-3.0, "-3"),
        (2.5, "2.5"),
        (1e300, "1e+300"),
        (7, "7"),
        (True, '["yes", "true"]'),
        ("2.0", "2.0"),
        ("nan", "nan"),
    ],
)
def test_numbers_become_the_text_that_was_meant(cell: Any, text: str) -> None:
    """An integer column with gaps is read as floats, so 2.0 was 2; text stays as it is."""
    assert question_of({"problem": "?", "solution": cell}, ColumnsConfig()).solution == text
