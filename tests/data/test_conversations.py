"""Conversations as ShareGPT, LLaVA and OpenAI write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dapo_stages.config import ColumnsConfig
from dapo_stages.data.columns import check_columns, question_of
from dapo_stages.data.conversations import UnusableRow
from dapo_stages.errors import DataError

NAMES = ColumnsConfig()

SHAREGPT = [{"from": "human", "value": "<image>Which? A. red B. green"}, {"from": "gpt", "value": "B"}]
OPENAI = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "text", "text": "Which? A. red B. green"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "<answer>B</answer>"}]},
]


@pytest.mark.parametrize("dump", [lambda cell: cell, json.dumps], ids=["list", "JSON"])
@pytest.mark.parametrize("column", ["conversations", "messages", "prompt"])
def test_the_last_turn_is_the_answer(column: str, dump: Any) -> None:
    question = question_of({"image": "a.png", column: dump(SHAREGPT)}, NAMES)
    assert question.turns == [("user", "<image>Which? A. red B. green")]
    assert (question.images, question.solution, question.options) == (["a.png"], "B", ["red", "green"])
    check_columns("cats", ["image", column], NAMES)


@pytest.mark.parametrize(
    "said",
    ["B", "B. green", "The shape is green.\nSo the answer is B.", "<think>It is A. No.</think> B", "Green.\n\n**B**"],
)
def test_the_last_turn_may_think_before_it_answers(said: str) -> None:
    turns = [SHAREGPT[0], {"from": "gpt", "value": said}]
    assert question_of({"image": "a.png", "conversations": turns}, NAMES).solution == "B"


def test_a_solution_column_overrides_the_last_turn() -> None:
    assert question_of({"image": "a.png", "conversations": SHAREGPT, "solution": "A"}, NAMES).solution == "A"
    assert question_of({"image": "a.png", "conversations": SHAREGPT, "solution": None}, NAMES).solution == "B"


def test_images_inside_the_messages_need_no_column() -> None:
    question = question_of({"messages": OPENAI}, NAMES)
    assert (question.system, question.images, question.solution) == ("Be brief.", ["data:image/png;base64,AAAA"], "B")
    assert question.turns == [("user", "<image>Which? A. red B. green")]
    check_columns("cats", ["id", "messages"], NAMES)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "input_image", "image_url": "a.png"},
    ],
)
def test_an_image_part_has_its_image_in_one_of_several_fields(part: dict[str, Any]) -> None:
    turn = {"role": "user", "content": [part, {"type": "text", "text": "Why?"}]}
    assert question_of({"messages": [turn], "solution": "because"}, NAMES).images == ["a.png"]


def test_parts_without_an_image_take_those_of_the_column() -> None:
    parts = [{"type": "image"}, {"type": "image", "image": "b.png"}, {"type": "text", "text": "Same?"}]
    row = {"image": ["a.png"], "messages": [{"role": "user", "content": parts}], "solution": "no"}
    assert question_of(row, NAMES).images == ["a.png", "b.png"]


def test_content_parts_may_be_json_in_a_text_column() -> None:
    turn = {"role": "user", "content": json.dumps([{"type": "image"}, {"type": "text", "text": "Why?"}])}
    assert question_of({"image": "a.png", "messages": [turn], "solution": "so"}, NAMES).turns == [
        ("user", "<image>Why?")
    ]


def test_text_that_looks_like_a_list_stays_text() -> None:
    turn = {"role": "user", "content": "[1, 2, 3]"}
    assert question_of({"messages": [turn], "solution": "6"}, NAMES).turns == [("user", "[1, 2, 3]")]
    assert question_of({"problem": "[1, 2, 3]", "solution": "6"}, NAMES).turns == [("user", "[1, 2, 3]")]


def test_a_conversation_without_an_answer_is_unusable() -> None:
    with pytest.raises(UnusableRow, match="no solution"):
        question_of({"image": "a.png", "conversations": SHAREGPT[:1]}, NAMES)


def test_columns_that_are_named_must_exist() -> None:
    with pytest.raises(DataError, match="no column `answer`"):
        check_columns("cats", ["image", "messages"], ColumnsConfig(solution="answer"))
    with pytest.raises(DataError, match="no column `photo`"):
        check_columns("cats", ["image", "messages"], ColumnsConfig(image="photo"))


@pytest.mark.parametrize(
    ("text", "turn", "images"),
    [
        ("Compare <image 1> and <image 2>.", "Compare <image> and <image>.", ["1.png", "2.png"]),
        ("Compare <image2> and <image1>.", "Compare <image> and <image>.", ["2.png", "1.png"]),
        ("Is <image 2> red?", "Is <image> red?", ["1.png", "2.png"]),
        ("<image 1> Is image one, <image 1>, red?", "<image> Is image one, image 1, red?", ["2.png", "1.png"]),
        ("Which?", "Which?", ["1.png", "2.png"]),
    ],
)
def test_numbered_placeholders_name_image_columns(text: str, turn: str, images: list[str]) -> None:
    names = ColumnsConfig(image=("image_1", "image_2", "image_3"))
    row = {"image_1": "1.png", "image_2": "2.png", "image_3": None, "problem": text, "solution": "yes"}
    question = question_of(row, names)
    assert (question.turns, question.images) == ([("user", turn)], images)


def test_numbers_are_those_of_the_columns_though_one_is_empty() -> None:
    names = ColumnsConfig(image=("image_1", "image_2", "image_3"))
    row = {"image_1": "1.png", "image_2": None, "image_3": "3.png", "problem": "Is <image 3>?", "solution": "yes"}
    assert question_of(row, names).images == ["1.png", "3.png"]
    with pytest.raises(UnusableRow, match=r"<image 2> in the text, but the row has 2 image\(s\)"):
        question_of({**row, "problem": "Is <image 2>?"}, names)
