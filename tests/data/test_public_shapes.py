"""Small datasets in the column shapes of public ones, with the mapping that a user would write.

Each asks for the color of the image, so which answer is right is known without reading the dataset's own solution.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest

from dapo_stages.config import Config
from dapo_stages.data.prompts import Dropped, PromptMaker
from dapo_stages.data.raw_rows import PARTS
from dapo_stages.data.sources import open_source
from dapo_stages.data.survey import Answers, Survey, survey
from dapo_stages.errors import DataError
from dapo_stages.rewards.accuracy import accuracy

Png = Callable[..., bytes]
Configure = Callable[..., Config]

COLORS = ["red", "green", "blue", "yellow"]
ASKED = "What color is the shape?"
LETTERED = f"{ASKED} A. red B. green C. blue D. yellow"


@dataclass(frozen=True)
class Shape:
    """How a dataset asks for the color `at` of an image `pic`."""

    name: str
    row: Callable[[int, Any], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    file: str = "train.jsonl"
    images: int = 1
    answers: Answers = "letters"
    right: Callable[[int], str] = "ABCD".__getitem__


def columns(**names: Any) -> dict[str, Any]:
    return {"columns": names}


def human(text: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]


SHAPES = [
    Shape("DDM", lambda at, pic: {"image": pic, "problem": LETTERED, "solution": f"<answer>{'ABCD'[at]}</answer>"}),
    Shape(
        "AI2D: an index in text",
        lambda at, pic: {"image": pic, "question": ASKED, "options": COLORS, "answer": str(at)},
        columns(problem="question", options="options", solution="answer"),
    ),
    Shape(
        "A-OKVQA: an index",
        lambda at, pic: {"image": pic, "question": ASKED, "choices": COLORS, "correct_choice_idx": at},
        columns(problem="question", options="choices", solution="correct_choice_idx"),
    ),
    Shape(
        "an index from 1",
        lambda at, pic: {"image": pic, "problem": ASKED, "choices": COLORS, "solution": at + 1},
        columns(options="choices"),
    ),
    Shape(
        "BLINK: several image columns",
        lambda at, pic: {
            "image_1": pic,
            "image_2": pic if at % 2 else None,
            "question": ASKED,
            "prompt": f"{ASKED}\nSelect from the following choices.\n(A) red\n(B) green\n(C) blue\n(D) yellow",
            "choices": COLORS,
            "answer": f"({'ABCD'[at]})",
        },
        columns(image=["image_1", "image_2"], problem="prompt", options="choices", solution="answer"),
        images=2,
    ),
    Shape(
        "MMMU: numbered images, options as Python writes them",
        lambda at, pic: {
            "image_1": pic,
            "image_2": pic,
            "question": "What color is <image 2>?",
            "options": str(COLORS),
            "answer": "ABCD"[at],
        },
        columns(image=["image_1", "image_2"], problem="question", options="options", solution="answer"),
        images=2,
    ),
    Shape(
        "MMBench: a column for each option",
        lambda at, pic: {
            "image": base64.b64encode(pic).decode(),
            "question": ASKED,
            **dict(zip("ABCD", COLORS, strict=True)),
            "answer": "ABCD"[at],
        },
        columns(problem="question", options=["A", "B", "C", "D"], solution="answer"),
    ),
    Shape(
        "MathVista: the option's text, and questions without options",
        lambda at, pic: {
            "decoded_image": pic,
            "query": f"Hint: give the letter.\nQuestion: {ASKED}\nChoices:\n(A) red\n(B) green\n(C) blue\n(D) yellow",
            "choices": COLORS,
            "answer": COLORS[at],
        },
        columns(image="decoded_image", problem="query", options="choices", solution="answer"),
    ),
    Shape(
        "text of an option that only the question shows",
        lambda at, pic: {"image": pic, "problem": LETTERED, "solution": COLORS[at]},
    ),
    Shape(
        "verl: nested columns",
        lambda at, pic: {
            "prompt": [{"role": "user", "content": f"<image>{ASKED}"}],
            "images": [pic],
            "reward_model": {"ground_truth": COLORS[at], "style": "rule"},
        },
        columns(solution="reward_model.ground_truth"),
        answers="free",
        right=COLORS.__getitem__,
    ),
    Shape("VLM-R1: ShareGPT", lambda at, pic: {"image": pic, "conversations": human(f"<image>{LETTERED}", "ABCD"[at])}),
    Shape(
        "LLaVA: ShareGPT as JSON",
        lambda at, pic: {"image": pic, "conversations": json.dumps(human(f"<image>\n{LETTERED}", "ABCD"[at]))},
    ),
    Shape(
        "OpenAI: images in the messages",
        lambda at, pic: {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(pic)}"}},
                        {"type": "text", "text": LETTERED},
                    ],
                },
                {"role": "assistant", "content": f"It is {COLORS[at]}.\n<answer>{'ABCD'[at]}</answer>"},
            ]
        },
    ),
    Shape(
        "ClassLabel",
        lambda at, pic: {"image": pic, "problem": ASKED, "label": at},
        columns(solution="label"),
        file="train.parquet",
        answers="free",
        right=COLORS.__getitem__,
    ),
    Shape(
        "DocVQA: a list of accepted answers",
        lambda at, pic: {"image": pic, "question": ASKED, "answers": [COLORS[at], f"{COLORS[at]}dish"]},
        columns(problem="question", solution="answers"),
        answers="free",
        right=COLORS.__getitem__,
    ),
    Shape(
        "the_cauldron: pairs of turns",
        lambda at, pic: {"images": [pic], "texts": [{"user": LETTERED, "assistant": "ABCD"[at], "source": "x"}]},
        columns(messages="texts"),
    ),
    Shape(
        "LLaVA-CoT: the answer at the end of a long turn",
        lambda at, pic: {
            "image": pic,
            "conversations": human(ASKED, f"<SUMMARY>I look.</SUMMARY>\n\n<CONCLUSION> {COLORS[at]} </CONCLUSION>"),
        },
        answers="free",
        right=COLORS.__getitem__,
    ),
    Shape(
        "options as numpy prints them",
        lambda at, pic: {
            "image": pic,
            "problem": ASKED,
            "choices": "['red' 'green'\n 'blue' 'yellow']",
            "solution": at,
        },
        columns(options="choices"),
    ),
    Shape(
        "IconQA: options with commas between",
        lambda at, pic: {"image": pic, "problem": ASKED, "choices": "red,green,blue,yellow", "solution": COLORS[at]},
        columns(options="choices"),
    ),
    Shape(
        "options filled up to the longest list",
        lambda at, pic: {"image": pic, "problem": ASKED, "choices": [*COLORS, None, ""], "solution": "ABCD"[at]},
        columns(options="choices"),
    ),
    Shape(
        "objects with labels, in any order",
        lambda at, pic: {
            "image": pic,
            "problem": ASKED,
            "choices": [{"label": "ABCD"[one], "text": COLORS[one]} for one in (2, 0, 3, 1)],
            "solution": "ABCD"[at],
        },
        columns(options="choices"),
    ),
    Shape(
        "an object with numbers",
        lambda at, pic: {
            "image": pic,
            "problem": ASKED,
            "choices": dict(zip("0123", COLORS, strict=True)),
            "solution": at,
        },
        columns(options="choices"),
    ),
    Shape(
        "MMBench of the hub: nan in text, a column for each option",
        lambda at, pic: {
            "image": pic,
            "problem": ASKED,
            **{f"option_{letter}": text for letter, text in zip("abcde", [*COLORS, "nan"], strict=True)},
            "solution": "ABCD"[at],
        },
        columns(options=[f"option_{letter}" for letter in "abcde"]),
    ),
    Shape(
        "one number for each option",
        lambda at, pic: {
            "image": pic,
            "problem": ASKED,
            "choices": COLORS,
            "solution": [int(at == n) for n in range(4)],
        },
        columns(options="choices"),
    ),
    Shape(
        "a question with labels that are not options",
        lambda at, pic: {
            "image": pic,
            "problem": "Points (A) left, (B) right, (C) top, (D) low. What color?",
            "choices": COLORS,
            "solution": "ABCD"[at],
        },
        columns(options="choices"),
    ),
    Shape(
        "a list of ClassLabels",
        lambda at, pic: {"image": pic, "problem": ASKED, "label": [at]},
        columns(solution="label"),
        file="train.parquet",
        answers="free",
        right=COLORS.__getitem__,
    ),
]


def encoded(image: Any) -> str:
    return image if isinstance(image, str) else base64.b64encode(image).decode()


def write(shape: Shape, folder: Path, png: Png) -> Path:
    """24 rows of a shape, as a Parquet file where it has bytes or features, else as JSON lines with base64."""
    rows = []
    for number in range(24):
        color = COLORS[number % 4]
        image: Any = png(color)
        rows.append(shape.row(number % 4, image))
    path = folder / shape.file
    if path.suffix == ".parquet":
        made = datasets.Dataset.from_list(rows)
        if "label" in rows[0]:
            label = datasets.ClassLabel(names=COLORS)
            made = made.cast_column("label", datasets.List(label) if isinstance(rows[0]["label"], list) else label)
        made.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row, default=encoded) + "\n" for row in rows))
    return path


def prepared(config: Config, processor: Any) -> tuple[Survey, list[dict[str, Any]]]:
    """Every prompt of a dataset, in the order of its rows; none may be dropped."""
    source = open_source(config)
    found = survey(source, config.data)
    maker = PromptMaker(source, processor, config.data, found)
    raw = sorted((row for part in PARTS for row in source.rows(part)), key=lambda row: row.index)
    made = [maker.make(row, f"train-{row.index}") for row in raw]
    assert not [row.why for row in made if isinstance(row, Dropped)]
    return found, [row for row in made if isinstance(row, dict)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_right_answer_is_paid_and_no_other(
    shape: Shape, tmp_path: Path, png: Png, processor: Any, configure: Configure
) -> None:
    found, rows = prepared(configure(write(shape, tmp_path, png), **shape.settings), processor)
    assert found.answers == shape.answers and len(rows) == 24
    for number, row in enumerate(rows):
        wanted = [accuracy(f"<answer>{shape.right(at)}</answer>", row["solution"]) for at in range(4)]
        assert wanted == [float(at == number % 4) for at in range(4)], row["solution"]
        if shape.answers == "letters":
            shown = [row["prompt_text"].find(color) for color in COLORS]
            assert -1 not in shown and shown == sorted(shown)
    assert max(len(row["images"]) for row in rows) == shape.images


def test_the_same_questions_become_the_same_prompts_however_the_solution_is_written(
    tmp_path: Path, png: Png, processor: Any, configure: Configure
) -> None:
    """So a policy has the same accuracy on them."""
    forms: list[Callable[[int], Any]] = [
        "ABCD".__getitem__, lambda at: f"({'abcd'[at]})", COLORS.__getitem__, lambda at: at, lambda at: at + 1, str,
        lambda at: [at], lambda at: f"<answer>{COLORS[at]}</answer>",
    ]  # fmt: skip
    made = []
    for number, form in enumerate(forms):

        def row(at: int, image: Any, form: Callable[[int], Any] = form) -> dict[str, Any]:
            return {"image": image, "problem": ASKED, "options": COLORS, "solution": form(at)}

        folder = tmp_path / str(number)
        folder.mkdir()
        path = write(Shape("", row), folder, png)
        _, rows = prepared(configure(path, **columns(options="options")), processor)
        made.append([(row["prompt_ids"], row["images"], row["solution"]) for row in rows])
    assert [solution for *_, solution in made[0]] == list("ABCD") * 6
    assert all(one == made[0] for one in made)


@pytest.mark.parametrize("name", ["AI2D: an index in text", "A-OKVQA: an index", "MMBench: a column for each option"])
def test_options_in_a_column_that_nobody_named_stop_it(
    name: str, tmp_path: Path, png: Png, processor: Any, configure: Configure
) -> None:
    shape = next(shape for shape in SHAPES if shape.name == name)
    names = {key: value for key, value in shape.settings["columns"].items() if key != "options"}
    path = write(shape, tmp_path, png)
    with pytest.raises(DataError, match=r"no question can be answered right .* Set data\.columns\.options="):
        prepared(configure(path, columns=names), processor)
    found, rows = prepared(configure(path, columns=names, allow_unwinnable=True), processor)
    assert len(rows) == 24 and found.solution_format == "letter"


def rows_of_tables(*rows: dict[str, Any]) -> Iterator[str]:
    return (json.dumps({"image": None, "problem": "Which?", **row}) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("row", "problem", "advice"),
    [
        ({"solution": "B"}, "the solution is B, but the question shows no options", "data.columns.options=…"),
        (
            {"solution": "B", "choices": ["x", "y"]},
            "the solution is B, but the question shows no options",
            "data.columns.options=choices",
        ),
        (
            {"problem": "Which? A. x B. y", "solution": "7"},
            "the solution '7' is none of its 2 options",
            "data.solution_format",
        ),
        (
            {"solution": "x", "A": "x", "B": "y", "C": "z", "D": "w"},
            "the column `[A,B,C,D]` has options, but the question does not show them",
            "data.columns.options=[A,B,C,D]",
        ),
    ],
)
def test_data_that_cannot_be_won_stops_with_the_key_to_set(
    row: dict[str, Any], problem: str, advice: str, tmp_path: Path, configure: Configure
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(rows_of_tables(row, row)))
    config = configure(tmp_path / "a.jsonl")
    with pytest.raises(DataError) as caught:
        survey(open_source(config), config.data)
    assert f"no question can be answered right (looked at 1; row 0: {problem})" in str(caught.value)
    assert advice in str(caught.value) and "data.allow_unwinnable=true" in str(caught.value)
    winnable = {"problem": "Which? A. x B. y", "solution": "A"}
    (tmp_path / "a.jsonl").write_text("".join(rows_of_tables(row, row, winnable)))
    config = configure(tmp_path / "a.jsonl", held_out_fraction=0.001)
    (doubt,) = survey(open_source(config), config.data).doubts
    assert doubt.startswith("1 of the first 2 questions cannot be answered right (row 0: ") and advice in doubt


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"choices": "a red one", "solution": "red"},
            {"options": "choices"},
            "no options in choices (looked at 1 rows; the first has 'a red one'). Set data.columns.options",
        ),
        (
            {"solution": "Since both triangles are alike, " + "so it goes " * 9, "answer": "5"},
            {},
            "the solutions are long texts (32 words in the middle of 1), and no completion is compared with the column "
            "`answer`. Set data.columns.solution=answer",
        ),
    ],
)
def test_columns_that_cannot_be_meant_stop_it(
    row: dict[str, Any], columns: dict[str, Any], message: str, tmp_path: Path, configure: Configure
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(rows_of_tables(row, row)))
    config = configure(tmp_path / "a.jsonl", columns=columns)
    with pytest.raises(DataError) as caught:
        survey(open_source(config), config.data)
    assert message in str(caught.value) and "data.allow_unwinnable=true" in str(caught.value)
    config = configure(tmp_path / "a.jsonl", columns=columns, allow_unwinnable=True)
    assert survey(open_source(config), config.data).doubts == ()


def test_an_index_that_may_begin_with_0_or_1_is_told(tmp_path: Path, configure: Configure) -> None:
    rows = [{"choices": COLORS, "solution": at} for at in (1, 2, 3, 1)]
    (tmp_path / "a.jsonl").write_text("".join(rows_of_tables(*rows)))
    config = configure(tmp_path / "a.jsonl", columns={"options": "choices"}, held_out_fraction=0.001)
    found = survey(open_source(config), config.data)
    assert found.solution_format == "index"
    assert found.doubts == ("solutions fit data.solution_format=index and index_from_1 equally well; index is used",)


@pytest.mark.parametrize(
    ("solution", "right", "wrong"),
    [
        (True, ["yes", "True", "Yes."], ["no", "false"]),
        (False, ["No", "false"], ["yes", "no idea"]),
        ("[2, 4]", ["[2, 4]"], ["2", "4", "[2, 5]"]),
        (["c", "c", "e"], ["c", "C", "e"], ["c, e", "d"]),
        ("First 2, then 3.\n#### 5", ["5"], ["2", "3"]),
        ("### The final answer is: 5", ["5"], ["6"]),
    ],
)
def test_answers_without_options(
    solution: Any, right: list[str], wrong: list[str], tmp_path: Path, processor: Any, configure: Configure, png: Png
) -> None:
    row = {"image": encoded(png("red")), "problem": "Which?", "solution": solution}
    (tmp_path / "a.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    _, rows = prepared(configure(tmp_path / "a.jsonl"), processor)
    paid = [accuracy(f"<answer>{answer}</answer>", rows[0]["solution"]) for answer in right + wrong]
    assert paid == [1.0] * len(right) + [0.0] * len(wrong)


def test_a_boolean_is_an_option(tmp_path: Path, processor: Any, configure: Configure, png: Png) -> None:
    rows = [
        {"image": encoded(png("red")), "problem": "?", "choices": ["Yes", "No"], "solution": said}
        for said in (True, False)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, made = prepared(configure(tmp_path / "a.jsonl", **columns(options="choices")), processor)
    assert [row["solution"] for row in made] == ["A", "B"]


@pytest.mark.parametrize(
    ("solutions", "expected"),
    [
        (["A", "B", "A"], "letters"),
        (["3", "x + 1", "red"], "free"),
        (["A", "3", "B"], "mixed"),
        (["3", "A", "7"], "mixed"),
    ],
)
def test_the_system_prompt_fits_the_answers(
    solutions: list[str], expected: str, tmp_path: Path, configure: Configure
) -> None:
    rows = [{"solution": solutions[0]}, *({"solution": one} for one in solutions)]  # row 1 is held out
    for row in rows:
        row["problem"] = "Which? A. red B. green" if row["solution"] in "AB" else "How many?"
    (tmp_path / "a.jsonl").write_text("".join(rows_of_tables(*rows)))
    config = configure(tmp_path / "a.jsonl", held_out_fraction=0.001)
    found = survey(open_source(config), config.data)
    assert found.answers == expected
    said = found.system_prompt(config.data)
    assert ("letter" in said, "number" in said) == {
        "letters": (True, False),
        "free": (False, True),
        "mixed": (True, True),
    }[expected]
    assert found.system_prompt(configure("cats", system_prompt="Look.").data) == "Look."
